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

from litgpt_warmstart.report.runs import Runs, ancestors
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


@dataclass(eq=False)
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
    kept: dict[tuple[int, int, int], Row] = {}
    unfinished: dict[int, list[Row]] = {}
    for run in runs.rows():
        if run["kind"] not in ("scratch", "warmstart"):
            continue
        key = run["settings_key"], -1 if run["kind"] == "scratch" else run["growth_key"], run["seed"]
        if run["status"] != "finished":
            unfinished.setdefault(run["settings_key"], []).append(run)
            result.notes.append((run, f"{run['status']}: {run['told']}"))
        elif runs.val_losses(run["run"]).index[-1] < run["tokens"]:
            result.notes.append((run, "was not validated at its end: leave --eval.final_validation on"))
        elif key in kept:
            result.repeated.add(run["run"])
            why = f"repeats {kept[key]['folder']!r}, which has the same settings and seed"
            result.notes.append((run, why))
        else:
            kept[key] = run
    scratch = {(settings, seed): run for (settings, growth, seed), run in kept.items() if growth < 0}
    compared: dict[int, dict[int, list[tuple[Row, Row]]]] = {}
    for (settings, growth, seed), run in kept.items():
        if growth < 0:
            continue
        if beside := scratch.get((settings, seed)):
            compared.setdefault(settings, {}).setdefault(growth, []).append((run, beside))
        else:
            result.notes.append((run, _why_alone(run, list(scratch.values()))))
    for settings, grown in compared.items():
        arms = sorted(grown.values(), key=lambda members: (members[0][0]["shrink"], members[0][0]["growth"]))
        firsts = [members[0][0] for members in arms]
        made = [_arm(runs, *arm) for arm in zip(arm_labels(firsts), arms, strict=True)]
        seeds = {run["seed"] for members in arms for run, _ in members}
        beside = [run for (its, seed), run in scratch.items() if its == settings and seed in seeds]
        sources = " or ".join(dict.fromkeys(run["source"] for run in firsts))
        title = f"{sources} → {firsts[0]['model']}, {firsts[0]['tokens_per_param']:.3g} tokens per parameter"
        result.comparisons.append(Comparison(title, beside, made, unfinished.get(settings, [])))
    result.comparisons.sort(key=lambda comparison: -comparison.tokens_per_param)  # a short budget says least
    _tell_apart(result.comparisons)
    return result


def _why_alone(run: Row, scratch: Sequence[Row]) -> str:
    """Why a warmstart has nothing to be compared with, in words."""
    if any(other["settings_key"] == run["settings_key"] for other in scratch):
        return f"no run from scratch with its seed, {run['seed']}, among those with its settings"
    if not scratch:
        return "no run from scratch to compare it with: litgpt warmstart_scratch --mup_base BASE, and give that too"
    nearest = min(scratch, key=lambda s: (len(differences(s, run)), s["max_tokens"] != run["max_tokens"]))
    found = differences(nearest, run) or [("budget in tokens", nearest["max_tokens"], run["max_tokens"])]
    what, first, second = found[0]
    return f"cannot be compared with {nearest['folder']!r}: their {what} differs: {first} and {second}"


def arm_labels(rows: Sequence[Row]) -> list[str]:
    """What tells warmstarts of one target from each other: how each was grown and, where these differ, from what."""
    lines = [ancestors(row["record"]) for row in rows]
    labels = [row["growth"] for row in rows]
    if all(line == lines[0] for line in lines):
        return labels
    for place, row in enumerate(rows):
        last = row["record"].lineage[-1]
        labels[place] += f", from {row['source']} at {last.tokens / last.parameters:.3g} tokens/param"
    return labels


TELLING = ("schedule", "optimizer", "learning rate", "batch size", "precision", "validation blocks", "muP base")
"""Settings that are in a comparison's title where another one of the target has others."""


def _tell_apart(comparisons: Sequence[Comparison]) -> None:
    """Have titles tell the settings that other comparisons of the same target do not share."""
    for comparison in comparisons:
        mine = comparison.scratch[0]
        same = [other.scratch[0] for other in comparisons if other.scratch[0]["record"].name == mine["record"].name]
        for name in TELLING:
            value = mine["settings"][name]
            if any(other["settings"][name] != value for other in same):
                comparison.title += f", {_in_words(name, value)}"


def _in_words(name: str, value: Any) -> str:
    if name == "schedule":
        return f"schedule {value['name']}"
    return f"{name} {value}" if name != "optimizer" else str(value)
