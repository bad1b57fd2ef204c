"""Which runs are compared with which, and what comes of it.

A pair is a warmstart beside the run from scratch that differs in nothing but its first weights; pairs of one growth are
an arm, over seeds; arms with the same settings and budget are a comparison. Seeds may be lineages, each with a base and
an order of data of its own, which the runs of a pair share.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from statistics import fmean
from typing import Any

import pandas as pd

from litgpt_warmstart.method.limits import Limits, limits
from litgpt_warmstart.report.runs import ORDER, Found, Run
from litgpt_warmstart.report.statistics import (
    Estimate,
    difference,
    drop_tokens,
    estimate,
    losses_at,
    placed,
    speed_up,
    tokens_to_last_loss,
    tokens_to_reach,
)  # fmt: skip

Pair = tuple[Run, Run]
"""A warmstart, and the run from scratch with its seed."""


def differences(a: Run, b: Run) -> list[tuple[str, Any, Any]]:
    """Settings in which two runs differ but should not: name and both values.

    Where their budgets differ, schedules are compared as they were asked for: a fifth of the steps is another number of
    them.
    """
    same = a.max_tokens != b.max_tokens and a.asked_schedule is not None and a.asked_schedule == b.asked_schedule
    return [
        (name, value, b.settings[name])
        for name, value in a.settings.items()
        if value != b.settings[name] and not (same and name == "schedule")
    ]


@dataclass(frozen=True, eq=False)
class Arm:
    """A way to warmstart, over its seeds."""

    label: str
    members: Sequence[Pair]

    @property
    def warm(self) -> list[Run]:
        """The warmstarts."""
        return [warm for warm, _ in self.members]

    @cached_property
    def pairs(self) -> Any:
        """A row a seed: what it and scratch took to the latter's last loss; NaN if it was not met."""
        rows = pd.DataFrame([_pair(*pair) for pair in self.members])
        own, whole = rows["hoffmann_flops_to_scratch_loss"], rows["scratch_hoffmann_flops_to_its_loss"]
        rows["share_of_scratch_hoffmann_flops"] = own / whole
        rows["share_of_scratch_hoffmann_flops_with_base"] = (own + rows["base_hoffmann_flops"]) / whole
        return rows

    @property
    def is_of_lineages(self) -> bool:
        """Whether its seeds are lineages, which differ in the order of their data, too."""
        return len({scratch.settings[ORDER] for _, scratch in self.members}) > 1

    def less_scratch(self, losses: Any, scratch: Any) -> Estimate:
        """Losses of its seeds less those from scratch: seed by seed or, of lineages, of independent draws (Welch's)."""
        return difference(losses, scratch) if self.is_of_lineages else estimate(losses - scratch)

    @cached_property
    def at_tokens(self) -> Any:
        """Validation losses and scratch's, ``own`` and ``scratch`` of each seed, at validations that all share."""
        found = [pd.DataFrame({"own": w.val_losses, "scratch": s.val_losses}).dropna() for w, s in self.members]
        return pd.concat(found, axis=1, join="inner", keys=range(len(found))).drop(0, errors="ignore")

    @cached_property
    def at_compute(self) -> Any:
        """The same after as many Hoffmann FLOPs, the base's counted; nothing where they are unknown or too many."""
        found = []
        for warm, scratch in self.members:
            beside = placed(scratch.val_losses, 0.0, scratch.flops_per_token)
            # losses fall ever more slowly: from the start a line would be too high
            later = placed(warm.val_losses.drop(0, errors="ignore"), warm.base_flops, warm.flops_per_token)
            own = losses_at(later, beside.index.to_numpy())
            found.append(pd.DataFrame({"own": own, "scratch": beside}).dropna())
        return pd.concat(found, axis=1, join="inner", keys=range(len(found)))

    @property
    def reached(self) -> int:
        """Seeds that reached the scratch run's last loss."""
        return int(self.pairs["tokens_to_scratch_loss"].count())

    @property
    def whole(self) -> bool:
        return self.reached == len(self.members)

    @cached_property
    def speed_up(self) -> Estimate:
        """In Hoffmann FLOPs, the warmstart's own, over the seeds that reached the scratch run's last loss."""
        return speed_up(self.pairs["share_of_scratch_hoffmann_flops"].dropna())

    @cached_property
    def speed_up_with_base(self) -> Estimate:
        """In Hoffmann FLOPs, those of the warmstart's whole lineage; none where they are not known."""
        shares = self.pairs["share_of_scratch_hoffmann_flops_with_base"].dropna()
        return speed_up([] if self.pairs["base_hoffmann_flops"].hasnans else shares)

    @property
    def counted(self) -> Estimate:
        """With the base's compute, where that is known."""
        return self.speed_up_with_base if self.speed_up_with_base.seeds else self.speed_up

    def loss_difference(self, when: str) -> Estimate:
        """Warmstart's validation loss less scratch's: the ``first_val_loss`` or the last, ``val_loss``."""
        return self.less_scratch(self.pairs[when], self.pairs[f"scratch_{when}"])

    @cached_property
    def at_most(self) -> dict[str, float]:
        """The most that growth can give as speed-ups, see :class:`litgpt_warmstart.method.limits.Limits`, by the means
        over seeds of what it can save; NaN where what the base took is not known."""
        names = ("parameters", "tokens", "hoffmann_flops")
        columns = [self.pairs[[f"base_{name}", f"scratch_{name}"]].to_numpy() for name in names]
        found = [vars(limits(*row)).values() for row in zip(*columns, strict=True)]
        return Limits(*map(fmean, zip(*found, strict=True))).speed_ups

    @property
    def is_beyond_growth(self) -> bool:
        """Whether a speed-up is more than growth can give, so that something else is behind it."""
        counted = (self.speed_up, "tokens"), (self.speed_up_with_base, "tokens_with_base")
        return any(found.seeds > 0 and found.mean > self.at_most[carried] for found, carried in counted)


def _pair(warm: Run, scratch: Run) -> dict[str, Any]:
    """A row of pairs.csv, but for the shares."""
    tokens, scratch_tokens = tokens_to_reach(warm.val_losses, scratch.val_loss), tokens_to_last_loss(scratch.val_losses)
    return {
        "seed": warm.seed, "tokens_per_param": warm.tokens_per_param,
        "scratch_first_val_loss": scratch.val_losses.iloc[0], "first_val_loss": warm.val_losses.iloc[0],
        "scratch_val_loss": scratch.val_loss, "val_loss": warm.val_loss,
        "base_parameters": warm.record.lineage[-1].parameters, "scratch_parameters": scratch.record.parameters,
        "scratch_tokens": scratch.tokens, "scratch_tokens_to_its_loss": scratch_tokens,
        "tokens_to_scratch_loss": tokens, "base_tokens": warm.base_tokens,
        "scratch_hoffmann_flops": scratch.own_flops,
        "scratch_hoffmann_flops_to_its_loss": scratch_tokens * scratch.flops_per_token,
        "hoffmann_flops_to_scratch_loss": tokens * warm.flops_per_token, "base_hoffmann_flops": warm.base_flops,
        "validations": min(len(warm.val_losses), len(scratch.val_losses)),
        "scratch_drop_tokens": drop_tokens(scratch.induction), "drop_tokens": drop_tokens(warm.induction),
        "validated_at_start": warm.val_losses.index[0] == scratch.val_losses.index[0] == 0,
        "warmstart_run": warm.name, "scratch_run": scratch.name,
        "warmstart_dir": str(warm.folder), "scratch_dir": str(scratch.folder),
    }  # fmt: skip


@dataclass(eq=False)
class Comparison:
    """Runs that differ in their first weights only, and seeds."""

    title: str
    scratch: list[Run]
    """With different seeds."""
    arms: list[Arm]
    unfinished: list[Run]
    """With the same settings and budget; no answer counts them."""

    @property
    def tokens_per_param(self) -> float:
        return self.scratch[0].tokens_per_param

    @property
    def runs(self) -> list[Run]:
        """All that are compared."""
        return [*self.scratch, *(run for arm in self.arms for run in arm.warm)]


@dataclass
class Compared:
    """All comparisons, and what had to be left out of them."""

    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[tuple[Run, str]] = field(default_factory=list)
    """Runs that no answer counts, and why."""
    repeated: list[Run] = field(default_factory=list)
    """Of those, the ones whose settings, growth and seed another run has."""

    @property
    def runs(self) -> list[Run]:
        """All that are compared."""
        return [run for comparison in self.comparisons for run in comparison.runs]


def compare_all(found: Found) -> Compared:
    """Put warmstarts beside their runs from scratch, seed by seed.

    Runs that did not finish are noted and left out, as are repetitions: same settings, growth and seed.
    """
    result = Compared()
    kept: dict[tuple[Any, ...], Run] = {}
    for run in found.runs:
        if run.kind not in ("scratch", "warmstart"):
            continue
        key = run.settings_key, None if run.kind == "scratch" else run.growth_key, run.seed
        if why := run.why_not_counted:
            result.notes.append((run, why))
        elif (before := kept.setdefault(key, run)) is not run:
            result.repeated.append(run)
            result.notes.append((run, f"repeats {str(before.folder)!r}, which has the same settings and seed"))
    scratch = {(run.settings_key, run.seed): run for run in kept.values() if run.kind == "scratch"}
    pairs: list[Pair] = []
    for run in kept.values():
        if beside := scratch.get((run.settings_key, run.seed)):
            pairs += [(run, beside)] * (run is not beside)
        else:
            result.notes.append((run, _why_alone(run, list(scratch.values()))))
    pairs.sort(key=lambda pair: (pair[0].comparison_key, pair[0].shrink, pair[0].growth, pair[0].growth_key))
    for settings, same in groupby(pairs, key=lambda pair: pair[0].comparison_key):
        arms = [list(members) for _, members in groupby(same, key=lambda pair: pair[0].growth_key)]
        firsts = [members[0][0] for members in arms]
        beside = [run for run in scratch.values() if any(run is pair[1] for members in arms for pair in members)]
        unfinished = [r for r, _ in result.notes if r.comparison_key == settings and r.status != "finished"]
        sources = " or ".join(dict.fromkeys(run.source for run in firsts))
        title = f"{sources} → {firsts[0].model}, {firsts[0].tokens_per_param:.3g} tokens per parameter"
        made = [Arm(*arm) for arm in zip(_arm_labels(firsts), arms, strict=True)]
        result.comparisons.append(Comparison(title, beside, made, unfinished))
    result.comparisons.sort(key=lambda comparison: -comparison.tokens_per_param)  # a short budget says least
    _tell_apart(result.comparisons)
    return result


def _why_alone(run: Run, scratch: Sequence[Run]) -> str:
    """Why a warmstart has nothing to be compared with, in words."""
    alike = [other for other in scratch if other.comparison_key == run.comparison_key]
    own = [other for other in alike if other.seed == run.seed]
    if alike and not own:
        return f"no run from scratch with its seed, {run.seed}, among those with its settings"
    if not scratch:
        return "no run from scratch to compare it with: litgpt warmstart_scratch --mup_base BASE, and give that too"
    nearest = min(own or scratch, key=lambda s: (len(differences(s, run)), s.max_tokens != run.max_tokens))
    found = differences(nearest, run) or [("budget in tokens", nearest.max_tokens, run.max_tokens)]
    what, first, second = found[0]
    return f"cannot be compared with {str(nearest.folder)!r}: their {what} differs: {first} and {second}"


def _arm_labels(runs: Sequence[Run]) -> list[str]:
    """What tells warmstarts of one target from each other: how each was grown and, where these differ, from what."""
    labels = [run.growth for run in runs]
    if all(run.ancestors == runs[0].ancestors for run in runs):
        return labels
    last = [run.record.lineage[-1] for run in runs]
    return [
        f"{label}, from {run.source} at {base.tokens / base.parameters:.3g} tokens/param"
        for label, run, base in zip(labels, runs, last, strict=True)
    ]


TELLING = ("schedule", "optimizer", "learning rate", "batch size", "precision", "validation blocks", "muP base")
"""Settings that are in a comparison's title where another one of the target has others."""


def _tell_apart(comparisons: Sequence[Comparison]) -> None:
    """Have titles tell the settings that other comparisons of the same target do not share."""
    for comparison in comparisons:
        mine = comparison.scratch[0]
        same = [other.scratch[0] for other in comparisons if other.scratch[0].record.name == mine.record.name]
        for name in TELLING:
            value = mine.settings[name]
            if any(other.settings[name] != value for other in same):
                words = value["name"] if name == "schedule" else value
                comparison.title += f", {words}" if name == "optimizer" else f", {name} {words}"
