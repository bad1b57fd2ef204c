"""Which runs are compared with which, and what comes of it.

A pair is a warmstart beside the run from scratch that differs in nothing but its first weights; pairs of one growth are
an arm, over seeds; arms with the same settings and budget are a comparison. Runs are rows of the table in
:mod:`.runs`, as dictionaries.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

import pandas as pd

from litgpt_warmstart.report.runs import Runs, lineage
from litgpt_warmstart.report.statistics import (
    Estimate,
    estimate,
    losses_at,
    placed,
    speed_up,
    tokens_to_last_loss,
    tokens_to_reach,
)  # fmt: skip

MIN_VALIDATIONS = 4
"""Fewer points make an interpolated token count a guess."""

Row = dict[str, Any]


def own_flops(run: Row) -> float:
    """Hoffmann FLOPs of a run, as far as it logged."""
    return run["tokens"] * run["hoffmann_flops_per_token"]


def differences(a: Row, b: Row) -> list[tuple[str, Any, Any]]:
    """Settings in which two runs differ but should not: name and both values.

    Where their budgets differ, schedules are compared as they were asked for: a fifth of the steps is another number of
    them.
    """
    found = [(name, value, b["settings"][name]) for name, value in a["settings"].items()
             if value != b["settings"][name]]  # fmt: skip
    if a["max_tokens"] != b["max_tokens"] and a["asked_schedule"] and a["asked_schedule"] == b["asked_schedule"]:
        found = [difference for difference in found if difference[0] != "schedule"]
    return found


@dataclass(frozen=True, eq=False)
class Arm:
    """A way to warmstart, over its seeds."""

    label: str
    pairs: pd.DataFrame
    """A row a seed, see :func:`pair`."""
    at_tokens: pd.DataFrame
    """Validation losses less scratch's, a column a seed, after as many tokens; validations that all share."""
    at_compute: pd.DataFrame
    """The same after as many Hoffmann FLOPs, the base's counted; nothing where they are unknown or too many."""

    @property
    def reached(self) -> int:
        """Seeds that reached the scratch run's last loss."""
        return len(self.pairs["tokens_to_scratch_loss"].dropna())

    @property
    def whole(self) -> bool:
        return self.reached == len(self.pairs)

    @cached_property
    def speed_up(self) -> Estimate:
        """In Hoffmann FLOPs, the warmstart's own, over the seeds that reached the scratch run's last loss."""
        return speed_up(self.pairs["share_of_scratch_hoffmann_flops"].dropna().tolist())

    @cached_property
    def speed_up_with_base(self) -> Estimate:
        """In Hoffmann FLOPs, those of the warmstart's whole lineage; none where they are not known."""
        shares = self.pairs["share_of_scratch_hoffmann_flops_with_base"].dropna().tolist()
        return speed_up([] if self.pairs["base_hoffmann_flops"].hasnans else shares)

    def loss_difference(self, when: str) -> Estimate:
        """Warmstart's validation loss less scratch's: the ``first_val_loss`` or the last, ``val_loss``."""
        return estimate((self.pairs[when] - self.pairs[f"scratch_{when}"]).tolist())

    @property
    def limits(self) -> tuple[float, float]:
        """The most that growth can give, without and with the base's compute.

        If it carries all that the base has learnt from D_b tokens, the target needs D_b fewer of its D_t. So the
        speed-up is 1 / (1 - D_b / D_t) at most, with the base's compute C_b of scratch's C_t in the denominator, too.
        """
        tokens = fmean(self.pairs["base_tokens"] / self.pairs["scratch_tokens"])
        flops = fmean(self.pairs["base_hoffmann_flops"] / self.pairs["scratch_hoffmann_flops"])
        return (1 / (1 - tokens), 1 / (1 - tokens + flops)) if tokens < 1 else (math.inf, math.inf)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs that differ in their first weights only, and seeds."""

    title: str
    scratch: list[Row]
    """With different seeds."""
    arms: list[Arm]
    unfinished: list[Row]
    """With the same settings and budget; no answer counts them."""

    @property
    def tokens_per_param(self) -> float:
        return self.scratch[0]["tokens_per_param"]

    @property
    def runs(self) -> list[str]:
        """Names of all that are compared."""
        warm = (name for arm in self.arms for name in arm.pairs["warmstart_run"])
        return [*(run["run"] for run in self.scratch), *warm]


@dataclass
class Compared:
    """All comparisons, and what had to be left out of them."""

    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[tuple[Row, str]] = field(default_factory=list)
    """Runs that no answer counts, and why."""
    repeated: set[str] = field(default_factory=set)
    """Of those, the ones whose settings, growth and seed another run has."""


def pair(runs: Runs, warm: Row, scratch: Row) -> Row:
    """What a warmstart and the run from scratch with its seed took to the latter's last loss; NaN if it was not met."""
    curve, beside = runs.val_losses(warm["run"]), runs.val_losses(scratch["run"])
    tokens = tokens_to_reach(curve, scratch["val_loss"])
    flops, base = tokens * warm["hoffmann_flops_per_token"], warm["base_hoffmann_flops"]
    scratch_tokens = tokens_to_last_loss(beside)
    scratch_flops = scratch_tokens * scratch["hoffmann_flops_per_token"]
    return {
        "seed": warm["seed"], "tokens_per_param": warm["tokens_per_param"],
        "scratch_first_val_loss": scratch["first_val_loss"], "first_val_loss": warm["first_val_loss"],
        "scratch_val_loss": scratch["val_loss"], "val_loss": warm["val_loss"],
        "scratch_tokens": scratch["tokens"], "scratch_tokens_to_its_loss": scratch_tokens,
        "tokens_to_scratch_loss": tokens, "base_tokens": warm["base_tokens"],
        "scratch_hoffmann_flops": own_flops(scratch), "scratch_hoffmann_flops_to_its_loss": scratch_flops,
        "hoffmann_flops_to_scratch_loss": flops, "base_hoffmann_flops": base,
        "share_of_scratch_hoffmann_flops": flops / scratch_flops,
        "share_of_scratch_hoffmann_flops_with_base": (flops + base) / scratch_flops,
        "validations": min(len(curve), len(beside)), "validated_at_start": curve.index[0] == beside.index[0] == 0,
        "warmstart_run": warm["run"], "scratch_run": scratch["run"],
        "warmstart_dir": warm["folder"], "scratch_dir": scratch["folder"],
    }  # fmt: skip


def _arm(runs: Runs, label: str, members: Sequence[tuple[Row, Row]]) -> Arm:
    at_tokens, at_compute = [], []
    for warm, scratch in members:
        curve, beside = runs.val_losses(warm["run"]), runs.val_losses(scratch["run"])
        at_tokens.append((curve - beside).dropna().drop(0, errors="ignore"))
        later = curve.drop(0, errors="ignore")  # losses fall ever more slowly: from the start a line would be too high
        later = placed(later, warm["base_hoffmann_flops"], warm["hoffmann_flops_per_token"])
        beside = placed(beside, 0.0, scratch["hoffmann_flops_per_token"])
        at_compute.append((pd.Series(losses_at(later, beside.index.to_numpy()), beside.index) - beside).dropna())
    rows = pd.DataFrame([pair(runs, warm, scratch) for warm, scratch in members])
    return Arm(label, rows, *(pd.concat(found, axis=1, join="inner") for found in (at_tokens, at_compute)))


def compare_all(runs: Runs) -> Compared:
    """Put warmstarts beside their runs from scratch, seed by seed.

    Runs that did not finish are noted and left out, as are repetitions: same settings, growth and seed.
    """
    result = Compared()
    scratch: dict[int, dict[int, Row]] = {}
    warm: dict[int, dict[int, dict[int, Row]]] = {}
    unfinished: dict[int, list[Row]] = {}
    for run in runs.rows():
        key, seed = run["settings_key"], run["seed"]
        if run["kind"] not in ("scratch", "warmstart"):
            continue
        if run["status"] != "finished":
            unfinished.setdefault(key, []).append(run)
            result.notes.append((run, f"{run['status']}: {run['told']}"))
            continue
        if runs.val_losses(run["run"]).index[-1] < run["tokens"]:
            result.notes.append((run, "was not validated at its end: leave --eval.final_validation on"))
            continue
        seeds = scratch if run["kind"] == "scratch" else warm.setdefault(key, {})
        seeds = seeds.setdefault(key if run["kind"] == "scratch" else run["growth_key"], {})
        if seed in seeds:
            result.repeated.add(run["run"])
            why = f"repeats {seeds[seed]['folder']!r}, which has the same settings and seed"
            result.notes.append((run, why))
            continue
        seeds[seed] = run
    cold = [run for seeds in scratch.values() for run in seeds.values()]
    for key, grown in warm.items():
        beside = scratch.get(key, {})
        alone = [run for seeds in grown.values() for run in seeds.values() if run["seed"] not in beside]
        result.notes += [(run, _why_alone(run, cold, bool(beside))) for run in alone]
        arms = [[(run, beside[seed]) for seed, run in seeds.items() if seed in beside] for seeds in grown.values()]
        arms = sorted(filter(None, arms), key=lambda members: (members[0][0]["shrink"], members[0][0]["growth"]))
        if arms:
            labels = arm_labels([members[0][0] for members in arms])
            seeds = {run["seed"] for members in arms for _, run in members}
            members = [run for seed, run in beside.items() if seed in seeds]
            made = [_arm(runs, label, members) for label, members in zip(labels, arms, strict=True)]
            sources = list(dict.fromkeys(members[0][0]["source"] for members in arms))
            path = f"{' or '.join(sources)} → {members[0]['model']}"
            title = f"{path}, {members[0]['tokens_per_param']:.3g} tokens per parameter"
            result.comparisons.append(Comparison(title, members, made, unfinished.get(key, [])))
    result.comparisons.sort(key=lambda comparison: -comparison.tokens_per_param)  # a short budget says least
    _tell_apart(result.comparisons)
    return result


def _why_alone(run: Row, scratch: Sequence[Row], other_seeds: bool) -> str:
    """Why a warmstart has nothing to be compared with, in words."""
    if other_seeds:
        return f"no run from scratch with its seed, {run['seed']}, among those with its settings"
    if not scratch:
        return "no run from scratch to compare it with: litgpt warmstart_scratch --mup_base BASE, and give that too"
    nearest = min(scratch, key=lambda s: (len(differences(s, run)), s["max_tokens"] != run["max_tokens"]))
    found = differences(nearest, run) or [("budget in tokens", nearest["max_tokens"], run["max_tokens"])]
    what, first, second = found[0]
    return f"cannot be compared with {nearest['folder']!r}: their {what} differs: {first} and {second}"


def arm_labels(rows: Sequence[Row]) -> list[str]:
    """What tells warmstarts of one target from each other."""
    lines = [
        [(a.name, a.parameters, a.tokens, a.growth and a.growth.shrink) for a in row["record"].lineage] for row in rows
    ]
    labels = []
    for row in rows:
        label, ancestor = row["growth"], row["record"].lineage[-1]
        if any(line != lines[0] for line in lines):
            label += f", from {lineage(row['record'])} at {ancestor.tokens / ancestor.parameters:.3g} tokens/param"
        labels.append(label)
    return labels


TELLING = ("schedule", "optimizer", "learning rate", "batch size", "precision", "validation blocks", "muP base")
"""Settings that are in a comparison's title where another one of the target has others."""


def _tell_apart(comparisons: list[Comparison]) -> None:
    for place, comparison in enumerate(comparisons):
        mine = comparison.scratch[0]["settings"]
        same = [other.scratch[0]["settings"] for other in comparisons
                if other.scratch[0]["record"].name == comparison.scratch[0]["record"].name]  # fmt: skip
        telling = [name for name in TELLING if any(other[name] != mine[name] for other in same)]
        parts = [comparison.title, *(_in_words(name, mine[name]) for name in telling)]
        comparisons[place] = Comparison(", ".join(parts), comparison.scratch, comparison.arms, comparison.unfinished)


def _in_words(name: str, value: Any) -> str:
    if name == "schedule":
        return f"schedule {value['name']}"
    return f"{name} {value}" if name != "optimizer" else str(value)
