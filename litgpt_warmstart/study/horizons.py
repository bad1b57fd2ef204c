"""What a warmstart buys, in one table: at horizons, with the base's compute counted, beside what growth can save.

A horizon is a number of tokens per parameter of the target. Losses there are those of runs as they were trained or, of
runs that were cooled down at several, those of their forks, between which they are interpolated in the logarithm of
tokens. A warmstart is held against scratch as good as it gets: of the learning rates that it was trained at, the one
with the lowest mean loss there.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.method.limits import Limits, limits
from litgpt_warmstart.report.page import Section, Table
from litgpt_warmstart.report.runs import Found, Run
from litgpt_warmstart.report.statistics import difference, estimate, in_words, losses_at, tokens_to_reach
from litgpt_warmstart.study.arms import Arm, run_name
from litgpt_warmstart.study.folder import read_table, section_of
from litgpt_warmstart.study.outcomes import Outcome, StudyRun

RESULTS = "*-horizons.csv"
FIRST_COLUMNS = ("arm", "tokens_per_param")
BEYOND = "beyond"
"""Marks a saving that is more than growth can give: something else is behind it."""
CAPTION = (
    "Mean validation losses at so many tokens per parameter, scratch's at the learning rate that is best there, and"
    " differences with 95% intervals: over seeds (Welch's, of independent draws) and seed by seed (paired). Tokens: the"
    " share of them after which scratch's mean loss is reached, mean over the seeds that reach it. Saved, where all do:"
    " of scratch's Hoffmann FLOPs there, and with the base's counted. Limits: the most that growth can save with the"
    " base counted, if it carries the base's loss, and if it carries what the base's tokens taught;"
    f" {BEYOND}: more than that. At a constant rate a curve's noise touches a loss before its mean does, which flatters"
    " tokens and savings; cooled losses have none of it."
)


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished run of an arm, as trained and cooled down."""

    arm: Arm
    run: Run
    cooled: pandas.Series
    """Last validation losses of its forks by the logarithm of their tokens."""

    def tokens_at(self, tokens_per_param: float) -> int:
        """Tokens of a horizon, in whole steps."""
        per_step = self.run.tokens // self.run.record.step_count
        return int(tokens_per_param * self.run.record.parameters) // per_step * per_step

    def loss(self, tokens: float, is_cooled: bool) -> float:
        """Its loss after so many tokens; NaN beyond what it tells."""
        if not is_cooled:
            return float(losses_at(self.run.val_losses, [tokens])[0])
        return float(losses_at(self.cooled, [math.log(tokens)])[0]) if tokens > 0 else math.nan

    def tokens_to_reach(self, loss: float, is_cooled: bool) -> float:
        """Tokens after which it first has a loss; NaN where it never has, or has it at its first horizon already."""
        if not is_cooled:
            return tokens_to_reach(self.run.val_losses, loss)
        is_between = len(self.cooled) > 0 and self.cooled.iloc[0] > loss
        return math.exp(tokens_to_reach(self.cooled, loss)) if is_between else math.nan


def finished(
    runs: Sequence[StudyRun], arms: Sequence[Arm], outcomes: Mapping[str, Outcome], read: Mapping[str, Run]
) -> list[Trained]:
    """The runs of arms that have finished, ``read`` by name."""
    forks = [run for run in runs if run.fork_of and outcomes[run.name].status == "finished"]
    seeds = dict.fromkeys(run.factors["seed"] for run in runs if run.factors)
    found = []
    for arm, seed in itertools.product(arms, seeds):
        if run := read.get(run_name(arm, seed)):
            own = [fork for fork in forks if fork.fork_of == run.folder]
            cooled = {math.log(fork.spec.max_tokens): outcomes[fork.name].val_loss for fork in own}
            found.append(Trained(arm, run, pandas.Series(cooled, dtype=float).sort_index()))
    return found


def answers(
    trained: Sequence[Trained], names: Mapping[Arm, str], horizons: Sequence[float], cooldown_at: Sequence[float]
) -> pandas.DataFrame:
    """A row for each arm at each horizon, as trained and, of ``cooldown_at``, cooled down; see :data:`CAPTION`."""
    places = sorted({(at, False) for at in horizons} | {(at, True) for at in cooldown_at})
    rows = []
    for at, is_cooled in places:
        told: dict[Arm, dict[Trained, float]] = {}
        for one in trained:
            loss = one.loss(one.tokens_at(at), is_cooled) if tells_of(one.arm, at) else math.nan
            if not math.isnan(loss):
                told.setdefault(one.arm, {})[one] = loss
        losses = {arm: pandas.Series({one.run.seed: loss for one, loss in own.items()}) for arm, own in told.items()}
        for arm, own in told.items():
            if scratch := best_scratch(arm, losses):
                row = _row([*own], losses[arm], losses[scratch], is_cooled, at)
                rate = "cooled" if is_cooled else arm.schedule
                rows.append(dict(arm=names[arm], tokens_per_param=at, rate=rate, scratch=names[scratch]) | row)
    return pandas.DataFrame(rows)


def tells_of(arm: Arm, at: float) -> bool:
    """Whether an arm's runs have a loss to compare at a horizon: on a way down it is none."""
    return at == arm.tokens_per_param or (at < arm.tokens_per_param and arm.schedule == "constant")


def best_scratch(arm: Arm, losses: Mapping[Arm, pandas.Series]) -> Arm | None:
    """Of the arms that train the same from scratch, at any learning rate, the best at a horizon; None without one.

    It has the lowest mean loss of those with the most seeds: one that lacks some has diverged with them. A run at a
    constant rate is the same up to a horizon whatever its budget.
    """

    def kin(arm: Arm) -> Arm:
        budget = dict(tokens_per_param=1.0) if arm.schedule == "constant" else {}
        return replace(arm, growth=Growth(shrink=0.0), lr_factor=1.0, **budget)

    found = [other for other in losses if other.growth.from_scratch and kin(other) == kin(arm)]
    return min(found, key=lambda one: (-len(losses[one]), losses[one].mean()), default=None)


def _row(trained: Sequence[Trained], own: Any, scratch: Any, is_cooled: bool, at: float) -> dict[str, Any]:
    """What the runs of an arm, one a seed, tell beside those from scratch; losses at a horizon are by seed."""
    run, tokens = trained[0].run, trained[0].tokens_at(at)
    whole, is_scratch = tokens * run.flops_per_token, own is scratch
    spent = {one.run.seed: one.run.base_flops for one in trained}
    at_compute = {one.run.seed: one.loss(tokens * (1 - spent[one.run.seed] / whole), is_cooled) for one in trained}
    reached = [] if is_scratch else [one.tokens_to_reach(scratch.mean(), is_cooled) / tokens for one in trained]
    shares = estimate([share for share in reached if not math.isnan(share)])
    saved = 1 - shares.mean if shares.seeds == len(own) else math.nan  # the mean of those that do flatters the arm
    base_flops = float(np.mean([*spent.values()]))
    of_base = base_flops / whole
    row = {
        "tokens": tokens, "seeds": len(own), "scratch_seeds": len(scratch), "loss": own.mean(),
        "scratch_loss": scratch.mean(),
    }  # fmt: skip
    for name, losses in (("less_scratch", own), ("at_equal_compute", pandas.Series(at_compute).dropna())):
        over_seeds, paired = difference(losses, scratch), estimate((losses - scratch).dropna())
        row |= (estimate([]) if is_scratch else over_seeds).columns(name)
        row |= (estimate([]) if is_scratch else paired).columns(f"{name}_paired")
    row |= shares.columns("share") | {"reached": shares.seeds, "saved": saved, "saved_with_base": saved - of_base}
    at_most = Limits(*[math.nan] * 4)
    if run.base_tokens:
        sizes = run.record.lineage[-1].parameters, run.record.parameters
        at_most = limits(sizes, (run.base_tokens, tokens), (base_flops, whole))
    row |= {f"limit_{name}": limit for name, limit in vars(at_most).items()}
    return row | {BEYOND: bool(saved > at_most.tokens or saved - of_base > at_most.tokens_with_base)}


def shown(rows: pandas.DataFrame) -> pandas.DataFrame:
    """The table as text."""

    def less(row: Mapping[Any, Any], name: str) -> str:
        return in_words(*(row[f"{name}{end}"] for end in ("", "_low", "_high")), form="+.4f")

    def share(value: float) -> str:
        return "-" if math.isnan(value) else f"{value:.0%}"

    told = []
    for row in rows.to_dict("records"):
        count = f" ({row['reached']:.0f} of {row['seeds']:.0f})"
        told.append(
            {
                "": row["arm"], "at": f"{row['tokens_per_param']:g}", "rate": row["rate"], "loss": f"{row['loss']:.4f}",
                "scratch": f"{row['scratch_loss']:.4f}" + f" ({row['scratch']})" * (row["scratch"] != "from scratch"),
                "less scratch's, over seeds": less(row, "less_scratch"),
                "seed by seed": less(row, "less_scratch_paired"),
                "equal compute, over seeds": less(row, "at_equal_compute"),
                "tokens": share(row["share"]) + count * (not math.isnan(row["share"])),
                "saved": share(row["saved"]),
                "with base": share(row["saved_with_base"]) + f" {BEYOND}" * row[BEYOND],
                "limits": f"{share(row['limit_loss_with_base'])} to {share(row['limit_tokens_with_base'])}"
                if not math.isnan(row["limit_tokens"]) else "-",
            }
        )  # fmt: skip
    return pandas.DataFrame(told)


def section(found: Found) -> Section | None:
    """The table of each study."""

    def part(name: str, folder: Path, number: int) -> Section:
        tables = []
        for order, path in enumerate(sorted(folder.glob(RESULTS)), start=1):
            rows: Any = read_table(path)
            words = ("arm", "rate", "scratch", BEYOND)
            rows = rows.assign(**{column: pandas.to_numeric(rows[column]) for column in rows if column not in words})
            rows[BEYOND] = rows[BEYOND] == "True"
            title = path.name.removesuffix(RESULTS.removeprefix("*"))
            tables.append(Table(f"horizons-{number}-{order}", title, rows, shown(rows)))
        return Section(name, tables=tables)

    return section_of("What is saved", CAPTION, found.results[RESULTS], part)
