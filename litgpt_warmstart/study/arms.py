"""Arms of an ablation: what is varied of how weights are grown and the target is trained, named and in order.

Every arm has its run from scratch beside it: the same base and target, and all of its training.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pandas

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.method.scales import resolve_config
from litgpt_warmstart.method.schedule import SCHEDULES, ScheduleName
from litgpt_warmstart.run.optimizer import OURS, named


@dataclass(frozen=True)
class Arm:
    """One way to grow and train the target, for all seeds."""

    base: str
    """A scale that is trained first, or a checkpoint folder."""
    target: str
    growth: Growth = Growth()
    """How the base becomes the target; shrink 0 is the run from scratch."""
    tokens_per_param: float = 20.0
    schedule: ScheduleName = "constant"
    weight_decay: float = 0.0
    lr_factor: float = 1.0
    """Of the learning rate that is carried to the target; that of the bases is left alone."""
    optimizer: str | dict[str, Any] | None = field(default=None, hash=False)
    """Its name or config; None for the command's."""
    beta2: float | None = None
    """The second of its betas; None for its own."""
    optimizer_args: tuple[tuple[str, Any], ...] = field(default=(), hash=False)
    """More of its arguments, names and values, which an arm has as ``optimizer.NAME``."""

    def __post_init__(self) -> None:
        if self.beta2 is not None and not 0 < self.beta2 < 1:
            raise UserError(f"beta2 {self.beta2:g} must lie between 0 and 1")
        if self.schedule not in SCHEDULES:
            raise UserError(f"schedule {self.schedule!r} is none of {', '.join(SCHEDULES)}")
        if not 0 < self.tokens_per_param < math.inf or not 0 <= self.weight_decay < math.inf:
            raise UserError("tokens_per_param must be above 0, weight_decay not negative")
        if not 0 < self.lr_factor < math.inf:
            raise UserError(f"lr_factor {self.lr_factor:g} must be above 0")
        told = named(self.optimizer or "")[1] | dict(self.optimizer_args)
        if "lr" in told:  # runs have --lr, or a grid's, instead
            raise UserError("a learning rate is no argument of the optimizer here: vary lr_factor, or a grid's --lrs")
        if self.weight_decay and "weight_decay" in told:
            raise UserError("weight_decay is given twice, as the optimizer's argument, too: leave one out")

    @property
    def options(self) -> dict[str, Any]:
        """All that is varied, by name, those of the growth among them."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"base": own.pop("base"), "target": own.pop("target")} | own.pop("growth").options | own

    @property
    def cells(self) -> dict[str, Any]:
        """The options as a table has them: a mapping, which only shrink may be, as text."""
        return {name: as_cell(value) for name, value in self.options.items()}

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Arm":
        """The arm with these options, as YAML has them; what is left out is as by default."""
        own = {name.removeprefix(OF_OPTIMIZER): v for name, v in options.items() if name.startswith(OF_OPTIMIZER)}
        typed = {name: _typed(name, v) for name, v in options.items() if not name.startswith(OF_OPTIMIZER)}
        typed["optimizer_args"] = tuple(own.items())
        growth = Growth(**{field.name: typed.pop(field.name) for field in fields(Growth) if field.name in typed})
        return cls(growth=growth if growth.shrink else growth.without_source, **typed)

    @property
    def scratch(self) -> "Arm":
        """The run from scratch to compare it with."""
        return replace(self, growth=Growth(shrink=0.0))

    @property
    def name(self) -> str:
        """What tells it from an arm with all defaults, short enough for a folder and an axis."""
        grown = "scratch" if self.growth.from_scratch else f"shrink-{self.growth.shrink_of('hidden'):g}"
        parts = [f"{short_name(self.base)}-{short_name(self.target)}", grown]
        plain = ("tokens_per_param", "schedule", "weight_decay", "lr_factor")
        own = {name: getattr(self, name) for name in plain}
        told = self.growth.differences | {name: value for name, value in own.items() if value != DEFAULTS[name]}
        # perturb first, as the first landing had it, so that its folders are found
        for name, value in sorted(told.items(), key=lambda option: option[0] != "perturb"):
            parts.append(f"{name.replace(' ', '-')}-{value:g}" if isinstance(value, float) else f"{value}")
        return "-".join([*parts, *(word.replace(" ", "-") for word in self.optimizer_words)])

    @property
    def optimizer_words(self) -> list[str]:
        """What of its optimizer is not the command's, a few words each."""
        path, init_args = named(self.optimizer) if self.optimizer is not None else ("", {})
        told = init_args | ({"beta2": self.beta2} if self.beta2 is not None else {}) | dict(self.optimizer_args)
        return [path.rpartition(".")[2]] * bool(path) + [f"{name} {value}" for name, value in told.items()]

    def trained_with(self, optimizer: str | dict[str, Any]) -> str | dict[str, Any]:
        """The optimizer, given the command's. A UserError if that has a weight decay of its own."""
        path, init_args = named(optimizer if self.optimizer is None else self.optimizer)
        if "weight_decay" in init_args:
            raise UserError("--optimizer has a weight_decay of its own: vary weight_decay in --arms instead")
        more = dict(self.optimizer_args)
        if self.beta2 is not None:
            first = (more.get("betas") or init_args.get("betas") or OURS["betas"])[0]
            more["betas"] = [first, self.beta2]
        if self.weight_decay:
            more["weight_decay"] = self.weight_decay
        return {"class_path": path, "init_args": {**init_args, **more}} if more else self.optimizer or optimizer


OF_OPTIMIZER = "optimizer."
DEFAULTS = Arm("", "").options
"""What an arm has where nothing else is said."""


def _typed(name: str, value: Any) -> Any:
    """An option of an arm as YAML has it, as its kind; what a mapping of shrink or optimizer has is looked at there."""
    kind = float if name == "beta2" else type(DEFAULTS[name])
    if name == "optimizer" or (name == "shrink" and isinstance(value, dict)) or (name == "beta2" and value is None):
        return value
    if kind is float and not isinstance(value, bool):
        with suppress(TypeError, ValueError):
            return float(value)
    if kind is str and isinstance(value, str | Path):
        return str(value)
    raise UserError(f"{name} {value!r}: give a {'number' if kind is float else 'name'}, or leave it out")


def short_name(model: str) -> str:
    """A scale, a config file's model, or the end of a checkpoint folder's path, as part of a file's name."""
    if Path(model).suffix in (".yaml", ".yml"):
        return resolve_config(model).name
    return "_".join(Path(model).parts[-2:])


def run_name(arm: Arm, seed: int) -> str:
    """Name and folder of the run of an arm and a seed."""
    return f"{arm.name}-seed-{seed}"


def as_cell(value: Any) -> Any:
    """A value, or a mapping's in words: ``embedding 1, hidden 0.4``."""
    if isinstance(value, dict | tuple):
        value = dict(value)
        return ", ".join(f"{name} {v:g}" if isinstance(v, float) else f"{name} {v}" for name, v in value.items())
    return "" if value is None else value


def expand(arms: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any], option: str = "--arms") -> list[Arm]:
    """All combinations of the lists in each of ``arms``, and the runs from scratch beside them, each once.

    Each of ``arms`` and ``defaults``, for what an arm leaves out, has options with a value or a list of values;
    ``option`` is where they were typed, for messages.
    """
    expanded: dict[Arm, None] = {}
    known = [*(name for name in DEFAULTS if name != "optimizer_args"), f"{OF_OPTIMIZER}ARGUMENT"]
    for arm in arms:
        if not isinstance(arm, Mapping):
            raise UserError(f"{option}: {arm!r} is no mapping such as {{shrink: [0.2, 0.4]}}")
        for name in arm:
            if name not in known and not str(name).startswith(OF_OPTIMIZER):
                raise UserError(f"{option}: no {name!r} to vary: choose from {', '.join(known)}")
        values = {**defaults, **arm}
        lists = [value if isinstance(value, list | tuple) else [value] for value in values.values()]
        for combination in itertools.product(*lists):
            try:
                made = Arm.of(dict(zip(values, combination, strict=True)))
            except UserError as error:
                raise UserError(f"{option}: {error}") from None
            expanded |= {made.scratch: None, made: None}
    if not expanded:
        raise UserError(f"{option} is empty: give at least one value to vary")
    return list(expanded)


def labels(arms: Sequence[Arm]) -> tuple[str, list[str]]:
    """What all arms share, in words, and what tells each from the others."""
    words = dict(
        tokens_per_param="{:g} tokens per parameter", schedule="{}", weight_decay="weight decay {:g}",
        lr_factor="{:g} x the learning rate",
    )  # fmt: skip
    untold = dict(weight_decay=0.0, lr_factor=1.0)
    names = {"base", "target", *words}
    varied = {name for name in names if len({arm.options[name] for arm in arms}) > 1}
    optimizers = {tuple(arm.optimizer_words) for arm in arms}

    def named(arm: Arm, names: set[str]) -> list[str]:
        models = [f"{short_name(arm.base)} -> {short_name(arm.target)}"] * bool(names & {"base", "target"})
        told = [name for name in words if name in names and arm.options[name] != untold.get(name)]
        return models + [words[name].format(arm.options[name]) for name in told]

    own = [
        ["from scratch" if arm.growth.from_scratch else arm.growth.label, *named(arm, varied)]
        + arm.optimizer_words * (len(optimizers) > 1)
        for arm in arms
    ]
    shared = named(arms[0], names - varied) + arms[0].optimizer_words * (len(optimizers) == 1)
    return ", ".join(shared), [", ".join(parts) for parts in own]


def from_scratch(rows: pandas.DataFrame) -> Any:
    """Which of these rows are of runs from scratch."""
    growths = zip(*(rows[name] for name in Growth().options), strict=True)
    scratch = [not isinstance(options[0], str) and Growth(*options).from_scratch for options in growths]
    return pandas.Series(scratch, rows.index, dtype=bool)


def by_arm(rows: pandas.DataFrame, names: Sequence[str]) -> list[tuple[str, Any]]:
    """Each arm's name and its rows, a seed each."""
    groups = rows.groupby(list(DEFAULTS), sort=False, dropna=False)
    return [(name, seeds) for name, (_, seeds) in zip(names, groups, strict=True)]
