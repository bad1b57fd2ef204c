"""The law of losses of finished runs from scratch, and what warmstarts are worth by it.

A point is a loss at the end of a schedule: a run's last one or, at a constant learning rate, where every validation is
such an end, each of them. N counts the weights that a token is multiplied with: the head, and no embedding (arXiv
2406.19146). Of runs that differ in learning rate or batch alone the best at each size and budget is taken, by the mean
over seeds, and all of its seeds are points.

Intervals are the middle 95% over laws of resamples: of each size as many runs as there are, with replacement.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.method.laws import Law, fit
from litgpt_warmstart.method.limits import limits
from litgpt_warmstart.method.schedule import ScheduleName
from litgpt_warmstart.report.runs import Found, Run

Taken = Literal["ends", "validations"]
SAME_BUDGET = 0.02
"""Relative difference up to which two budgets are one: batches cut them to whole steps."""
SIZES, BUDGETS = 3, 3
"""E, A and alpha take three sizes, B and beta three budgets, of which no size needs more than two."""
SHARED = ("vocabulary", "data", "validation blocks", "block size", "optimizer", "gradient clipping", "precision")
"""Settings that all runs of a law share; parametrization and schedule, too."""
CELL, TUNED = ["model", "matmul_parameters", "budget"], ["learning_rate", "batch_size"]
POINT = [
    "run", "model", "matmul_parameters", "parameters", *TUNED, "schedule", "seed", "tokens", "hoffmann_flops",
    "val_loss",
]  # fmt: skip
GROWN = ["growth", "warmstart", "base_parameters", "base_tokens", "base_hoffmann_flops"]
SPEED_UP = ["matmul_parameters", "val_loss", "tokens", "hoffmann_flops", "base_hoffmann_flops"]


@dataclass(frozen=True, eq=False)
class Fitted:
    """A law, what it was fitted to, and the laws of resamples of that."""

    law: Law
    points: Any
    """Those of :func:`tuned` with ``fitted``, the law's loss, and ``residual``, the log of the measured one over it."""
    resamples: list[Law]
    """Empty where each size has one run."""

    @property
    def constants(self) -> pd.DataFrame:
        """The law's constants, and a of N ~ C^a, the best size for compute C = 6 N D (eq. 4 of arXiv 2203.15556)."""
        told = [vars(law) | {"a": law.beta / (law.alpha + law.beta)} for law in (self.law, *self.resamples)]
        rows = [(name, value, *interval([each[name] for each in told[1:]])) for name, value in told[0].items()]
        return pd.DataFrame(rows, columns=["constant", "value", "low", "high"]).assign(resamples=len(self.resamples))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The middle 95% of resamples, NaN of none; two of the values themselves, as some may be infinite."""
    if not values:
        return math.nan, math.nan
    low, high = np.quantile(values, (0.025, 0.975), method="inverted_cdf").tolist()
    return low, high


def split(found: Found, schedule: ScheduleName | None) -> tuple[list[Run], list[Run], list[str]]:
    """Finished runs from scratch, finished warmstarts, and notes on the others.

    Args:
        found: To look among.
        schedule: Leave out runs with others.

    Raises:
        UserError: No run from scratch has finished, or two runs are not of one law.
    """
    counted, notes = [], []
    runs = [run for run in found.runs if schedule in (None, run.settings["schedule"]["name"])]
    if not runs:
        raise UserError(f"none of the {len(found.runs)} runs that were found has --schedule {schedule}: leave it out")
    if others := len(found.runs) - len(runs):
        notes.append(f"Not counted: {others} run{'s' * (others != 1)} with another schedule")
    for run in runs:
        why = "it is continued, neither from scratch nor a warmstart" if run.kind == "continued" else None
        if why := run.why_not_counted or why:
            notes.append(f"Not counted: {run.name}: {why}")
        else:
            counted.append(run)
    notes += [f"Left out: {name}: {why}" for name, why in found.left_out.items()]
    scratch = [run for run in counted if run.kind != "warmstart"]
    if not counted:
        raise UserError(f"nothing to fit a law to has finished: {notes[-1]}")
    if not scratch:
        raise UserError(
            f"no run from scratch has finished among the {len(runs)} that were found, and a law is fitted to"
            " those: litgpt warmstart_scratch"
        )
    for run in counted:
        for name, value in _shared(scratch[0]).items():
            if value != (other := _shared(run)[name]):
                raise UserError(
                    f"{str(scratch[0].folder)!r} and {str(run.folder)!r} are not of one law: their {name} differs:"
                    f" {one_line(str(value), 60)} and {one_line(str(other), 60)}: give runs of one"
                    + ", such as --schedule constant"
                    * (name == "schedule")
                )
    return scratch, [run for run in counted if run.kind == "warmstart"], notes


def _shared(run: Run) -> dict[str, Any]:
    """What all runs of a law share, by name; cooldowns, which go with a budget, as they were asked for."""
    schedule = run.settings["schedule"]
    if schedule["name"] != "constant" and run.asked_schedule is not None:
        schedule = run.asked_schedule
    shared = {name: run.settings[name] for name in SHARED}
    return shared | {"parametrization": run.settings["muP base"][0], "schedule": schedule}


def measured(runs: Sequence[Run], taken: Taken, from_tokens_per_param: float | None) -> pd.DataFrame:
    """A row a point, with what a warmstart was grown from.

    Args:
        runs: Of one law.
        taken: The last loss of each run, or all.
        from_tokens_per_param: Where points begin. Default: 0, and for ``validations`` 1, where the start is over.

    Raises:
        UserError: Validations are asked for, and the learning rate is not constant.
    """
    every, rows = taken == "validations", []
    least = float(every) if from_tokens_per_param is None else from_tokens_per_param
    for run in runs:
        schedule, parameters, curve = run.settings["schedule"]["name"], run.record.parameters, run.val_losses
        if every and schedule != "constant":
            raise UserError(
                f"--points validations is for a constant learning rate, and these runs have --schedule {schedule},"
                " under which the last loss alone is that of a whole schedule: leave it out"
            )
        same = {
            "run": run.name, "model": run.model, "matmul_parameters": run.matmul_parameters, "parameters": parameters,
            "learning_rate": run.record.base_lr, "batch_size": run.record.global_batch_size, "schedule": schedule,
            "seed": run.seed, "growth": run.growth_key, "warmstart": f"{run.growth}, {run.source} → {run.model}",
            "base_parameters": run.record.lineage[-1].parameters if run.record.lineage else 0,
            "base_tokens": run.base_tokens, "base_hoffmann_flops": run.base_flops,
        }  # fmt: skip
        for tokens, loss in zip(curve.index.tolist(), curve.tolist(), strict=True):
            if (every or tokens == run.tokens) and tokens >= max(1, least * parameters) and math.isfinite(loss):
                rows.append(same | {"tokens": tokens, "hoffmann_flops": tokens * run.flops_per_token, "val_loss": loss})
    points: Any = pd.DataFrame(rows, columns=[*POINT, *GROWN])
    # a run, and a longer one with its seed, are the same up to the end of the first
    points = points.drop_duplicates(["model", *TUNED, "growth", "seed", "tokens", "val_loss"], ignore_index=True)
    return points.assign(budget=budgets(points["tokens"].tolist(), points["run"].tolist()))


def budgets(tokens: Sequence[int], runs: Sequence[str]) -> list[int]:
    """Of each number of tokens the least that is the same budget; no two validations of one run are."""
    runs_at: dict[int, set[str]] = defaultdict(set)
    for each, run in zip(tokens, runs, strict=True):
        runs_at[each].add(run)
    least: dict[int, int] = {}
    budget, there = 0, set[str]()
    for each in sorted(runs_at):
        if each > budget * (1 + SAME_BUDGET) or there & runs_at[each]:
            budget, there = each, set()
        least[each] = budget
        there |= runs_at[each]
    return [least[each] for each in tokens]


def tuned(points: Any) -> pd.DataFrame:
    """The points of the best learning rate and batch at each size and budget."""
    means = points.groupby([*CELL, *TUNED])["val_loss"].mean()
    best = means.loc[means.groupby(CELL).idxmin()].index
    return points[pd.MultiIndex.from_frame(points[[*CELL, *TUNED]]).isin(best)].reset_index(drop=True)


def lacking(points: Any) -> str | None:
    """What points have and would need, where they do not tell a law's five constants; None where they do."""
    of_sizes = points.groupby("matmul_parameters")["budget"].nunique()
    sizes, in_all = sum(of_sizes > 1), points["budget"].nunique()
    if sizes >= SIZES and in_all >= BUDGETS:
        return None
    return (
        f"{len(points)} points, {sizes} of {len(of_sizes)} sizes with two budgets or more, {in_all} budgets in all, are"
        f" too few for a law's five constants: it takes {2 * SIZES} points, {SIZES} sizes with two budgets or more, and"
        f" {BUDGETS} budgets in all"
    )


def fit_law(points: Any, resamples: int, seed: int) -> Fitted:
    """Fit the law to points of :func:`tuned`, and to resamples of their runs.

    Raises:
        UserError: There are too few, or their losses do not fall with tokens as a law does.
    """
    if why := lacking(points):
        raise UserError(
            f"{why}: give more runs from scratch; at a constant rate --points validations takes more of each"
        )
    law = _fitted(points)
    if not (law.beta > 0 and math.isfinite(law.A * law.B)):
        raise UserError("no law: the losses of these runs do not fall with tokens as a law does: give longer runs")
    losses = [law.loss(*place) for place in zip(points["matmul_parameters"], points["tokens"], strict=True)]
    points = points.assign(fitted=losses, residual=np.log(points["val_loss"] / losses))
    sizes = [[run.index for _, run in size.groupby("run")] for _, size in points.groupby("matmul_parameters")]
    draws, laws = np.random.default_rng(seed), []
    while len(laws) < resamples and any(len(runs) > 1 for runs in sizes):
        rows = [runs[drawn] for runs in sizes for drawn in draws.integers(len(runs), size=len(runs))]
        resample = points.loc[np.concatenate(rows)]
        if lacking(resample) is None:
            laws.append(_fitted(resample, law))
    return Fitted(law, points, laws)


def _fitted(points: Any, start: Law | None = None) -> Law:
    return fit(*(points[name].tolist() for name in ("matmul_parameters", "tokens", "val_loss")), start=start)


def worth(points: Any, fitted: Fitted, seed: int) -> pd.DataFrame:
    """What warmstarts are worth by a law, a row for each way to warmstart and budget, over seeds.

    Beside it the limits of :mod:`litgpt_warmstart.method.limits`, for as many tokens as scratch takes to that loss.
    Resamples draw the seeds, too.
    """
    draws, rows = np.random.default_rng(seed), []
    for _, same in points.groupby(["growth", "model", *TUNED, "budget"], sort=False):
        seeds, mean = same[SPEED_UP].to_numpy(dtype=float), same.mean(numeric_only=True).to_dict()
        found = [speed_ups(fitted.law, seeds)]
        found += [speed_ups(law, seeds[draws.integers(len(seeds), size=len(seeds))]) for law in fitted.resamples]
        needed, needed_flops = (mean[name] * found[0][0] for name in ("tokens", "hoffmann_flops"))
        base_flops = same["base_hoffmann_flops"].mean(skipna=False)
        at_most = limits(
            (mean["base_parameters"], mean["parameters"]), (mean["base_tokens"], needed), (base_flops, needed_flops)
        ).speed_ups
        row: dict[str, Any] = {
            "warmstart": same["warmstart"].iloc[0], "seeds": len(seeds),
            "tokens_per_param": mean["tokens"] / mean["parameters"], "tokens_from_scratch": needed,
            **{name: mean[name] for name in (*TUNED, "tokens", "hoffmann_flops", "val_loss")},
        }  # fmt: skip
        for kind, values in zip(("", "_with_base"), zip(*found, strict=True), strict=True):
            low, high = interval(values[1:])
            row |= {
                f"share_of_scratch_hoffmann_flops{kind}": 1 / values[0],
                f"speed_up{kind}": values[0], f"speed_up{kind}_low": low, f"speed_up{kind}_high": high,
                f"speed_up{kind}_limit": at_most[f"tokens{kind}"],
                f"speed_up{kind}_limit_if_loss": at_most[f"loss{kind}"],
            }  # fmt: skip
        row["distrust"] = any(row[f"speed_up{kind}"] > row[f"speed_up{kind}_limit"] for kind in ("", "_with_base"))
        largest = fitted.points[["matmul_parameters", "tokens"]].max()
        row["extrapolated"] = bool(mean["matmul_parameters"] > largest.iloc[0] or needed > largest.iloc[1])
        rows.append(row)
    return pd.DataFrame(rows)


def speed_ups(law: Law, seeds: np.ndarray) -> tuple[float, float]:
    """Compute from scratch, by a law, to the losses of warmstarts over what these took, without and with their base's.

    Over seeds it is the mean of the inverses, inverted: scratch may never get there.

    Args:
        law: By which scratch gets there.
        seeds: A row a warmstart, with the columns ``SPEED_UP``.
    """
    size, losses, tokens, flops, base_flops = seeds.T
    needed = np.array([law.tokens(*place) for place in zip(size, losses, strict=True)]) * flops / tokens
    own, whole = (float(np.mean(spent / needed)) for spent in (flops, flops + base_flops))
    return math.inf if own <= 0 else 1 / own, math.inf if whole <= 0 else 1 / whole
