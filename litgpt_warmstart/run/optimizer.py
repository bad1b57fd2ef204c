"""The optimizer that a user names, in any of LitGPT's and jsonargparse's spellings, resolved once."""

import importlib
import inspect
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import yaml

from litgpt_warmstart.errors import UserError, one_line

DEFAULT = "AdamW"
OURS = {"betas": [0.9, 0.95], "weight_decay": 0.0}
"""What a class that has these arguments gets here unless the user says otherwise."""
ENTRY_BY_ENTRY = (torch.optim.Adagrad, torch.optim.RMSprop)
"""Optimizers without betas that divide each entry of the gradient by its own size."""


@dataclass(frozen=True)
class ChosenOptimizer:
    """An optimizer's class, and its arguments but for those that are the class's own defaults."""

    class_path: str
    init_args: dict[str, Any]
    lr: float | None = field(default=None, compare=False)
    """What the user gave among the arguments; no part of the choice, since muP scales it."""

    @property
    def plain(self) -> dict[str, Any]:
        """As hyperparameters.yaml and records have it."""
        return {"class_path": self.class_path, "init_args": self.init_args}

    def arguments(self, fused: bool) -> dict[str, Any]:
        """What the class is called with.

        Args:
            fused: Whether to take its fused implementation, where it has one and the user's arguments go with it.
        """
        init_args = {name: tuple(v) if isinstance(v, list) else v for name, v in self.init_args.items()}
        others = ("fused", "foreach", "differentiable", "capturable")
        if fused and "fused" in inspect.signature(self.cls).parameters and not set(others) & set(self.init_args):
            init_args["fused"] = True
        return init_args

    @property
    def cls(self) -> type[torch.optim.Optimizer]:
        """The class that the user named."""
        return _imported(self.class_path)

    def __str__(self) -> str:
        name = self.class_path.removeprefix("torch.optim.")
        return ", ".join([name, *(f"{key} {value}" for key, value in self.init_args.items())])


def resolve_optimizer(optimizer: str | Mapping[str, Any]) -> ChosenOptimizer:
    """The optimizer that ``--optimizer`` names, whichever way its arguments were given; they are tried out.

    Raises:
        UserError: No such class, an argument that it does not take, or one that does not normalize the gradient entry
            by entry as Adam does: muP's learning rates hold for no other.
    """
    path, init_args = named(optimizer)
    cls: Any = _imported(path)
    is_optimizer = inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer)
    parameters = inspect.signature(cls).parameters if is_optimizer else {}
    adam_like = "betas" in parameters or (parameters and issubclass(cls, ENTRY_BY_ENTRY))
    if not adam_like or issubclass(cls, torch.optim.SparseAdam):
        raise UserError(
            f"--optimizer {path}: muP's learning rates hold for optimizers that normalize the gradient entry by entry:"
            " choose AdamW, Adam, NAdam, RAdam, Adamax, Adagrad or RMSprop"
        )
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name, value in init_args.items():
        if name == "params" or (name not in parameters and not takes_any):
            known = ", ".join(known for known in parameters if known != "params")
            raise UserError(f"--optimizer {path} has no argument {name!r}: it takes {known}")
        default = 1e-3 if name == "lr" else parameters[name].default if name in parameters else None
        init_args[name] = value = _plain(value) if isinstance(value, str) else value
        if not _is_like(value, default):
            raise UserError(f"--optimizer {path}: {name} is {one_line(repr(value), 60)}: its default is {default}")
    lr = init_args.pop("lr", None)
    chosen = ChosenOptimizer(_canonical(path, cls), _told(init_args, cls), lr)
    make: Any = cls  # whose arguments are nobody's to know here
    try:
        make([torch.nn.Parameter(torch.zeros(1))], lr=1e-3 if lr is None else lr, **chosen.arguments(fused=True))
    except Exception as error:  # a ValueError of torch's; of another's class anything
        raise UserError(f"--optimizer {path}: {one_line(error)}: change that argument") from error
    return chosen


def recorded_optimizer(content: Any) -> ChosenOptimizer:
    """The optimizer that a record tells of, in today's form; nothing is imported.

    The first landing wrote the user's own form, and read ``init_args`` of it alone.
    """
    path, init_args = content, {}
    if isinstance(content, Mapping):
        path, init_args = content.get("class_path") or DEFAULT, content.get("init_args")
    path, init_args = str(path), dict(init_args) if isinstance(init_args, Mapping) else {}
    init_args.pop("lr", None)
    module_name, _, name = path.rpartition(".")
    cls = getattr(sys.modules.get(module_name or "torch.optim"), name, None)
    if not (inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer)):
        return ChosenOptimizer(path, init_args)
    return ChosenOptimizer(_canonical(path, cls), _told(init_args, cls))


def named(optimizer: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The class's name, and the arguments, which stand under ``init_args``, or beside the name, or both.

    Those beside the name go first: jsonargparse puts there what a flag says of one that a file has under ``init_args``.

    Raises:
        UserError: It is neither a name nor a mapping with one.
    """
    if isinstance(optimizer, str):
        return optimizer, {}
    beside = dict(optimizer)
    path, init_args = beside.pop("class_path", DEFAULT), beside.pop("init_args", None) or {}
    if not isinstance(path, str) or not isinstance(init_args, Mapping):
        raise UserError("--optimizer: give a class's name, or class_path and init_args, names and values")
    return path, {**init_args, **beside}


def _imported(path: str) -> Any:
    module_name, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name or "torch.optim"), name)
    except Exception as error:  # what a user's module does when it is imported
        raise UserError(
            f"no optimizer {path!r} ({one_line(error, 100)}): give a class of torch.optim such as AdamW, or a full"
            " import path"
        ) from error


def _canonical(path: str, cls: type) -> str:
    """One path for each class, however it was named."""
    known = getattr(torch.optim, cls.__name__, None) is cls
    return f"torch.optim.{cls.__name__}" if known else path


def _told(init_args: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """Ours and the user's arguments, without those that are the class's own defaults anyway."""
    parameters = inspect.signature(cls).parameters
    ours = {name: value for name, value in OURS.items() if name in parameters}
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in init_args.items()}
    own = {name for name, value in given.items() if name in parameters and _same(value, parameters[name].default)}
    return ours | {name: value for name, value in given.items() if name in ours or name not in own}


def _same(value: Any, default: Any) -> bool:
    return value == (list(default) if isinstance(default, tuple) else default)


def _plain(text: str) -> Any:
    """What a flag's text says in YAML, which, in its version 1.1, takes 1e-6 without a dot for text."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value is of a default's kind; numbers are finite, and a bool is none."""
    if isinstance(default, tuple):
        return isinstance(value, list | tuple) and len(value) == len(default) and all(
            _is_like(a, b) for a, b in zip(value, default, strict=True)
        )  # fmt: skip
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and (isinstance(default, bool) or default in (None, inspect.Parameter.empty))
    if isinstance(default, int | float):
        return isinstance(value, int | float) and math.isfinite(value)
    return default is not None or value is None or (isinstance(value, int | float) and math.isfinite(value))
