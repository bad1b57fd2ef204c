"""The optimizer that a user names, in any of LitGPT's and jsonargparse's spellings, resolved once."""

import importlib
import inspect
import math
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
import yaml

from litgpt_warmstart.errors import UserError, nearest, one_line
from litgpt_warmstart.method.muon import Muon

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
        """What the class is called with; ``fused`` where it has that and the user's arguments go with it."""
        init_args = {name: tuple(v) if isinstance(v, list) else v for name, v in self.init_args.items()}
        others = ("fused", "foreach", "differentiable", "capturable")
        if fused and "fused" in inspect.signature(self.cls).parameters and not set(others) & set(self.init_args):
            init_args["fused"] = True
        return init_args

    @property
    def cls(self) -> type[torch.optim.Optimizer]:
        """The class that the user named."""
        return _imported(self.class_path)

    @property
    def name(self) -> str:
        """Of the class, torch's own without their module."""
        return self.class_path.removeprefix("torch.optim.")

    def __str__(self) -> str:
        return ", ".join([self.name, *(f"{key} {value}" for key, value in self.init_args.items())])


def resolve_optimizer(optimizer: str | Mapping[str, Any]) -> ChosenOptimizer:
    """The optimizer that ``--optimizer`` names, whichever way its arguments were given; they are tried out.

    Raises:
        UserError: No such class, an argument that it does not take, or one that does not normalize the gradient entry
            by entry as Adam does, and is not Muon: muP's learning rates hold for no other.
    """
    path, init_args = named(optimizer)
    cls: Any = _imported(path)
    is_optimizer = inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer)
    parameters = inspect.signature(cls).parameters if is_optimizer else {}
    adam_like = "betas" in parameters or (parameters and issubclass(cls, ENTRY_BY_ENTRY))
    if not adam_like or issubclass(cls, torch.optim.SparseAdam):
        raise UserError(
            f"--optimizer {path}: muP's learning rates hold for optimizers that normalize the gradient entry by entry:"
            " choose AdamW, Adam, NAdam, RAdam, Adamax, Adagrad or RMSprop, or Muon"
        )
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name, value in init_args.items():
        if name == "params" or (name not in parameters and not takes_any):
            known = ", ".join(known for known in parameters if known != "params")
            raise UserError(f"--optimizer {path} has no argument {name!r}: it takes {known}{nearest(name, parameters)}")
        default = parameters[name].default if name in parameters else None
        init_args[name] = value = _plain(value) if isinstance(value, str) else value
        if not _is_like(value, default):
            raise UserError(f"--optimizer {path}: {name} is {one_line(repr(value), 60)}: its default is {default}")
    lr = init_args.pop("lr", None)
    chosen = _chosen(path, cls, init_args, lr)
    make: Any = cls  # whose arguments are nobody's to know here
    try:
        make(_trial_groups(), lr=1e-3 if lr is None else lr, **chosen.arguments(fused=True))
    except Exception as error:  # a ValueError of torch's; of another's class anything
        raise UserError(f"--optimizer {path}: {one_line(error)}: change that argument") from error
    return chosen


def _trial_groups() -> list[dict[str, Any]]:
    """A matrix and a vector, as :func:`~litgpt_warmstart.method.parametrization.build_optimizer` groups them."""
    matrix, vector = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((1, 1), (1,)))
    return [dict(params=[matrix], orthogonal=True), dict(params=[vector])]


def recorded_optimizer(content: Any) -> ChosenOptimizer:
    """The optimizer that a record tells of, in today's form; nothing is imported.

    The first landing wrote the user's own form, and read ``init_args`` of it alone.
    """
    told = content if isinstance(content, Mapping) else {"class_path": content}
    path, init_args = str(told.get("class_path") or DEFAULT), told.get("init_args")
    init_args = dict(init_args) if isinstance(init_args, Mapping) else {}
    init_args.pop("lr", None)
    module_name, _, name = path.rpartition(".")
    cls: Any = _with_adamw(getattr(sys.modules.get(module_name or "torch.optim"), name, None))
    known = inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer)
    return _chosen(path, cls, init_args) if known else ChosenOptimizer(path, init_args)


def named(optimizer: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The class's name, and the arguments, which stand under ``init_args``, or beside the name, or both.

    Those beside the name go first: jsonargparse puts there what a flag says of one that a file has under ``init_args``.

    Raises:
        UserError: It is neither a name nor a mapping with one.
    """
    if isinstance(optimizer, str):
        return optimizer, {}
    beside = dict(optimizer) if isinstance(optimizer, Mapping) else {"class_path": optimizer}
    path, init_args = beside.pop("class_path", DEFAULT), beside.pop("init_args", None) or {}
    if not isinstance(path, str) or not isinstance(init_args, Mapping):
        raise UserError("--optimizer: give a class's name, or class_path and init_args, names and values")
    return path, {**init_args, **beside}


def mups(optimizer: str | dict) -> str | dict:
    """The same; Adam with torch's betas where none are given, as mup's own coordinate check has it."""
    path, init_args = named(optimizer)
    if path.removeprefix("torch.optim.") != "Adam":
        return optimizer
    return {"class_path": path, "init_args": {"betas": [0.9, 0.999], **init_args}}


def _imported(path: str) -> Any:
    module_name, _, name = path.rpartition(".")
    try:
        return _with_adamw(getattr(importlib.import_module(module_name or "torch.optim"), name))
    except Exception as error:  # what a user's module does when it is imported
        raise UserError(
            f"no optimizer {path!r} ({one_line(error, 100)}): give a class of torch.optim such as AdamW, or a full"
            f" import path{nearest(path, vars(torch.optim))}"
        ) from error


def _with_adamw(cls: Any) -> Any:
    """A class that was named; for torch's Muon, which takes matrices alone, the one that has AdamW beside it."""
    return Muon if cls is not None and cls is getattr(torch.optim, "Muon", None) else cls


def _chosen(path: str, cls: type, init_args: Mapping[str, Any], lr: float | None = None) -> ChosenOptimizer:
    """One path for each class, however it was named; ours and the user's arguments, without the class's defaults."""
    if _with_adamw(getattr(torch.optim, cls.__name__, None)) is cls:
        path = f"torch.optim.{cls.__name__}"
    defaults = {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}
    told = {name: value for name, value in OURS.items() if name in defaults}
    for name, value in init_args.items():
        default = defaults.get(name, inspect.Parameter.empty)
        value, default = (list(each) if isinstance(each, tuple) else each for each in (value, default))
        if name in told or value != default:
            told[name] = value
    return ChosenOptimizer(path, told, lr)


def _plain(text: str) -> Any:
    """What a flag's text says in YAML, which, in its version 1.1, takes 1e-6 without a dot for text."""
    for read in (float, yaml.safe_load):
        with suppress(ValueError, yaml.YAMLError):
            return read(text)
    return text


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value is of a default's kind; numbers are finite, and a bool is none."""
    if isinstance(default, tuple):
        return isinstance(value, list | tuple) and len(value) == len(default) and all(
            _is_like(a, b) for a, b in zip(value, default, strict=True)
        )  # fmt: skip
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and (isinstance(default, bool) or default in (None, inspect.Parameter.empty))
    is_finite = isinstance(value, int | float) and math.isfinite(value)
    return is_finite or (not isinstance(default, int | float) and (default is not None or value is None))
