"""Ablations as data: arms over how weights are grown and how the target is trained (figures 2 and 9 of 2411.07340).

Every arm has its run from scratch beside it: the same base and target, budget, schedule, weight decay and seed.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, get_args

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.method.scales import resolve_config
from litgpt_warmstart.method.schedule import ScheduleName
from litgpt_warmstart.report.curves import tokens_to_last_loss, tokens_to_reach
from litgpt_warmstart.report.tables import COLORS
from litgpt_warmstart.run.metrics import FILE_NAME, read_metrics
from litgpt_warmstart.study.runner import Outcome, StudyRun
from litgpt_warmstart.study.tables import picture


@dataclass(frozen=True)
class Arm:
    """One way to train the target, for all seeds."""

    base: str
    """A scale that is trained first, or a checkpoint folder."""
    target: str
    growth: Growth = Growth()
    """Shrink 0 is the run from scratch."""
    tokens_per_param: float = 20.0
    schedule: ScheduleName = "constant"
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.schedule not in get_args(ScheduleName):
            raise UserError(f"--arms: schedule {self.schedule!r} is none of {', '.join(get_args(ScheduleName))}")
        if not 0 < self.tokens_per_param < math.inf or not 0 <= self.weight_decay < math.inf:
            raise UserError("--arms: tokens_per_param must be above 0, weight_decay not negative")

    @classmethod
    def of(cls, base: str, target: str, **options: Any) -> "Arm":
        """The arm with these options, some of them of its growth."""
        growing = {field.name: options.pop(field.name) for field in fields(Growth) if field.name in options}
        return cls(base, target, Growth(**growing), **options)

    @property
    def options(self) -> dict[str, Any]:
        """All that is varied, by name, those of the growth among them."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        growth = own.pop("growth")
        return {"base": own.pop("base"), "target": own.pop("target"), **growth.options, **own}

    @property
    def scratch(self) -> "Arm":
        """The run from scratch to compare it with."""
        return replace(self, growth=Growth(shrink=0.0))

    @property
    def is_scratch(self) -> bool:
        """Whether this is the run from scratch."""
        return self == self.scratch

    @property
    def name(self) -> str:
        """What tells it from an arm with all defaults, short enough for a folder and an axis."""
        parts = [f"{short_name(self.base)}-{short_name(self.target)}"]
        parts.append("scratch" if self.is_scratch else f"shrink-{self.growth.shrink:g}")
        for name, value in self.options.items():
            if name in DEFAULTS and name != "shrink" and value != DEFAULTS[name]:
                parts.append(f"{name}-{value:g}" if isinstance(value, float) else f"{value}")
        return "-".join(parts)


DEFAULTS = {
    f.name: f.default for f in (*fields(Growth), *fields(Arm)) if f.default is not MISSING and f.name != "growth"
}
"""What an arm is unless it says otherwise, by the names of its options."""


def short_name(model: str) -> str:
    """A scale, a config file's model, or the end of a checkpoint folder's path, as part of a file's name."""
    if Path(model).suffix in (".yaml", ".yml"):
        return resolve_config(model).name
    return "_".join(Path(model).parts[-2:])


def expand(arms: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]) -> list[Arm]:
    """All combinations of the lists in each of ``arms``, and the runs from scratch beside them, each once.

    Args:
        arms: Fields of :class:`Arm` with a value or a list of values; those left out have their default.
        defaults: For fields that an arm leaves out; lists, too.

    Raises:
        UserError: An unknown field, or a value that it cannot have.
    """
    known = ["base", "target", *DEFAULTS]
    found: dict[Arm, None] = {}
    for arm in arms:
        if not isinstance(arm, Mapping):
            raise UserError(f"--arms: {arm!r} is no mapping such as {{shrink: [0.2, 0.4]}}")
        if unknown := sorted(set(arm) - set(known)):
            raise UserError(f"--arms: no {unknown[0]!r} to vary: choose from {', '.join(known)}")
        values = {**defaults, **arm}
        lists = [value if isinstance(value, list | tuple) else [value] for value in values.values()]
        for combination in itertools.product(*lists):
            try:
                made = Arm.of(**{name: _typed(name, v) for name, v in zip(values, combination, strict=True)})
            except (TypeError, ValueError) as error:
                raise UserError(f"--arms: {dict(zip(values, combination, strict=True))}: {error}") from None
            if not made.growth.shrink:  # nothing is left of the base to align, and no gain
                made = replace(made, growth=Growth(shrink=0.0, perturb=made.growth.perturb))
            found[made.scratch] = None
            found[made] = None
    if not found:
        raise UserError("--arms is empty: give at least one, e.g. [{shrink: [0.2, 0.4]}]")
    return list(found)


def _typed(name: str, value: Any) -> Any:
    return float(value) if isinstance(DEFAULTS.get(name), float) else str(value)


def rows(runs: Sequence[StudyRun], outcomes: Mapping[str, Outcome]) -> list[dict[str, Any]]:
    """A row a run that trains an arm: what it was, and how it ended beside its run from scratch.

    Args:
        runs: Each with factors ``arm`` and ``seed``; those of bases have none.
        outcomes: By name.
    """
    trained = {(run.factors["arm"], run.factors["seed"]): run for run in runs if "arm" in run.factors}
    found = []
    for (arm, seed), run in trained.items():
        scratch = trained[arm.scratch, seed]
        outcome, beside = outcomes[run.name], outcomes[scratch.name]
        reached = whole = None
        if outcome.status == beside.status == "finished" and not arm.is_scratch:
            reached = tokens_to_reach(_val_losses(run), beside.val_loss)
            whole = tokens_to_last_loss(_val_losses(scratch))
        found.append(
            {
                **arm.options,
                "seed": seed,
                "status": outcome.status,
                "first_val_loss": outcome.first_val_loss,
                "val_loss": outcome.val_loss,
                "tokens": outcome.tokens,
                "matmul_flops": outcome.matmul_flops,
                "hoffmann_flops": outcome.hoffmann_flops,
                "scratch_status": beside.status,
                "scratch_val_loss": beside.val_loss,
                "tokens_to_scratch_val_loss": reached,
                "scratch_tokens_to_scratch_val_loss": whole,
                "run": run.name,
            }
        )
    return found


def _val_losses(run: StudyRun) -> list[tuple[float, float]]:
    rows = read_metrics(run.spec.out_dir / FILE_NAME)
    return [(row["tokens"], row["val_loss"]) for row in rows if "val_loss" in row]


@dataclass(frozen=True)
class Summary:
    """An arm over its seeds."""

    arm: Arm
    first_val_losses: tuple[float, ...]
    val_losses: tuple[float, ...]
    """Of the seeds that finished."""
    diverged: int
    skipped: int
    """Seeds, because the base diverged."""
    alone: int
    """Seeds that finished and whose run from scratch did not."""
    ended_above: int
    """Seeds whose own last loss was above the scratch run's, though they may have been below it before."""
    shares: tuple[float, ...]
    """Tokens to the scratch run's last loss over those that it took itself; the seeds that reached it."""


def summaries(arms: Sequence[Arm], found: Sequence[Mapping[str, Any]]) -> list[Summary]:
    """One for each arm, in their order."""
    told = []
    for arm in arms:
        mine = [row for row in found if all(row[name] == value for name, value in arm.options.items())]
        good = [row for row in mine if row["status"] == "finished"]
        beside = [row for row in good if row["scratch_status"] == "finished"]
        shares = [row["tokens_to_scratch_val_loss"] / row["scratch_tokens_to_scratch_val_loss"] for row in beside
                  if row["tokens_to_scratch_val_loss"] is not None]  # fmt: skip
        firsts = tuple(row["first_val_loss"] for row in mine if row["first_val_loss"] is not None)
        counts = [sum(row["status"] == status for row in mine) for status in ("diverged", "skipped")]
        alone, above = len(good) - len(beside), sum(row["val_loss"] > row["scratch_val_loss"] for row in beside)
        told.append(Summary(arm, firsts, tuple(row["val_loss"] for row in good), *counts, alone, above, tuple(shares)))
    return told


def labels(arms: Sequence[Arm]) -> tuple[str, list[str]]:
    """What all arms share, in words, and what tells each from the others."""
    varied = {name for name in ("base", "target", *DEFAULTS) if len({arm.options[name] for arm in arms}) > 1}

    def named(arm: Arm, names: set[str]) -> list[str]:
        parts = []
        if names & {"base", "target"}:
            parts.append(f"{short_name(arm.base)} -> {short_name(arm.target)}")
        if "tokens_per_param" in names:
            parts.append(f"{arm.tokens_per_param:g} tokens per parameter")
        if "schedule" in names:
            parts.append(arm.schedule)
        if "weight_decay" in names and arm.weight_decay:
            parts.append(f"weight decay {arm.weight_decay:g}")
        return parts

    shared = named(arms[0], {"base", "target", *DEFAULTS} - varied)
    told = []
    for arm in arms:
        told.append(", ".join(["from scratch" if arm.is_scratch else arm.growth.label, *named(arm, varied)]))
    return ", ".join(shared), told


def table(told: Sequence[Summary]) -> str:
    """Losses and tokens of each arm, mean and standard deviation over seeds, as text."""
    shared, names = labels([summary.arm for summary in told])
    width = max(map(len, names))
    lines = [shared, "", f"{'':<{width}}  {'first val loss':>16}  {'last val loss':>16}  tokens to scratch's last loss"]
    for name, summary in zip(names, told, strict=True):
        seeds = len(summary.val_losses) - summary.alone
        reached = f"{fmean(summary.shares):.0%} ({len(summary.shares)} of {seeds} seeds)" if summary.shares else "never"
        if summary.arm.is_scratch or not seeds:
            reached = "-"
        if not summary.arm.is_scratch and summary.ended_above:
            reached += f"; {summary.ended_above} ended above it"
        if not summary.arm.is_scratch and summary.alone:
            reached += f"; {summary.alone} without a run from scratch"
        for count, what in ((summary.diverged, "diverged"), (summary.skipped, "skipped, as the base diverged")):
            reached += f"; {count} {what}" if count else ""
        lines.append(
            f"{name:<{width}}  {_mean(summary.first_val_losses):>16}  {_mean(summary.val_losses):>16}  {reached}"
        )
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{fmean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def plot(told: Sequence[Summary], path: Path) -> None:
    """Draw each arm's first and last validation loss, a dot a seed and a line at the mean."""
    shared, names = labels([summary.arm for summary in told])
    with picture(path, width=4.5, height=1.6 + 0.3 * len(told), panels=2) as panels:
        for axes, what, title in zip(
            panels, ("first_val_losses", "val_losses"), ("before the first step", "at the end"), strict=True
        ):
            for y, summary in enumerate(told):
                losses = getattr(summary, what)
                color = "black" if summary.arm.is_scratch else COLORS[0]
                axes.scatter(losses, [y] * len(losses), color=color, s=14, alpha=0.7)
                if losses:
                    axes.plot([fmean(losses)] * 2, [y - 0.3, y + 0.3], color=color)
            axes.set_yticks(range(len(told)), names if axes is panels[0] else [""] * len(told), fontsize="small")
            axes.invert_yaxis()
            axes.grid(axis="x", color="0.9")
            axes.set(xlabel="validation loss (nats per token)")
            axes.set_title(title, fontsize="medium")
        panels[0].figure.suptitle(f"{shared}; a dot is a seed, a line their mean", fontsize="medium")
