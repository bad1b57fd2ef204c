"""Chains: a base, what was grown from it, and so on, by the compute of all (figures 6 and 11 of the paper).

A chain stands beside the run from scratch of its last scale, at another budget perhaps: that of the chain's compute.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from litgpt_warmstart.files import file_sha256
from litgpt_warmstart.report import figures
from litgpt_warmstart.report.compare import Compared, Row, differences, own_flops
from litgpt_warmstart.report.page import Section, Table, readable
from litgpt_warmstart.report.runs import Runs
from litgpt_warmstart.report.statistics import (
    SMOOTHING,
    band,
    estimate,
    placed,
    smoothed,
    speed_up,
    tokens_to_last_loss,
    tokens_to_reach,
)  # fmt: skip
from litgpt_warmstart.run.checkpoint import WEIGHTS
from litgpt_warmstart.run.record import Ancestor

COLUMNS = ("tokens", "tokens_per_param", "first_val_loss", "val_loss", "status", "run")
"""Of the table of runs, those that the table of stages has."""
SAME_COMPUTE = 0.05
"""Relative difference up to which two chains are compared; budgets are cut to whole steps."""


@dataclass(frozen=True)
class Chain:
    """A base, what was grown from it, and so on, beside the last scale from scratch."""

    stages: list[Row]
    """Oldest first."""
    scratch: Row | None = None
    """At another budget perhaps: that of the chain's compute."""
    flops_to_scratch_loss: float = math.nan
    """Hoffmann FLOPs of the whole lineage until the last stage was at scratch's last loss; NaN if it was not."""
    share: float = math.nan
    """The same over what the run from scratch took to that loss."""

    @property
    def end(self) -> Row:
        """The last stage."""
        return self.stages[-1]

    @property
    def flops(self) -> float:
        """Hoffmann FLOPs of the whole lineage, also before the first stage; NaN where a part of it does not tell."""
        return self.stages[0]["base_hoffmann_flops"] + sum(map(own_flops, self.stages))

    @property
    def paired(self) -> bool:
        """Whether the run from scratch has the last stage's seed."""
        return self.scratch is not None and self.scratch["seed"] == self.end["seed"]

    @property
    def runs(self) -> list[Row]:
        """The stages, and the run from scratch after them."""
        return [*self.stages, *([self.scratch] if self.scratch else [])]

    @property
    def finished(self) -> bool:
        return all(run["status"] == "finished" for run in self.runs)


def parent(run: Row, rows: Sequence[Row]) -> Row | None:
    """The run, among those given, whose last checkpoint a run was grown from."""
    line = run["record"].lineage
    return next((other for other in rows if line and other is not run and _is(other, line[-1], line[:-1])), None)


def _is(run: Row, ancestor: Ancestor, before: tuple[Ancestor, ...]) -> bool:
    record = run["record"]
    told = (ancestor.name, ancestor.parameters, ancestor.tokens, ancestor.data, ancestor.growth)
    if told != (record.name, record.parameters, record.tokens, record.data, record.growth) or before != record.lineage:
        return False
    weights = Path(run["folder"]) / "final" / WEIGHTS
    if not weights.is_file():  # deleted to save space
        return Path(ancestor.path).parent.name == Path(run["folder"]).resolve().name
    return file_sha256(weights) == ancestor.sha256


def chains(runs: Runs, compared: Compared) -> list[Chain]:
    """Chains that end in a run from which none of the others was grown.

    A base and one warmstart are a chain where they have finished and stand beside a run from scratch of another budget.

    Args:
        runs: To look among.
        compared: A base and a run that is compared at its own budget are shown there; repetitions are left out.
    """
    rows = [row for row in runs.rows() if row["run"] not in compared.repeated]
    parents = {row["run"]: found for row in rows if row["kind"] == "warmstart" and (found := parent(row, rows))}
    grown_from = {found["run"] for found in parents.values()}
    shown = {name for comparison in compared.comparisons for name in comparison.runs}
    found = []
    for row in rows:
        if row["run"] in grown_from or row["run"] not in parents:
            continue
        stages = [row]
        while before := parents.get(stages[0]["run"]):
            stages.insert(0, before)
        chain = _beside(runs, Chain(stages), rows)
        if len(stages) > 2 or (chain.scratch and chain.finished and row["run"] not in shown):
            found.append(chain)
    return found


def _beside(runs: Runs, chain: Chain, rows: Sequence[Row]) -> Chain:
    """A chain with the run from scratch at the last scale whose compute is nearest to the chain's."""
    spent = 0.0 if math.isnan(chain.flops) else chain.flops
    fit = [row for row in rows if row["kind"] == "scratch" and _same_settings(row, chain.end)]
    if not fit:
        return chain
    scratch = min(fit, key=lambda row: (row["seed"] != chain.end["seed"], abs(own_flops(row) - spent)))
    left = chain.end["tokens"] - tokens_to_reach(runs.val_losses(chain.end["run"]), scratch["val_loss"])
    flops = chain.flops - left * chain.end["hoffmann_flops_per_token"]
    own = tokens_to_last_loss(runs.val_losses(scratch["run"])) * scratch["hoffmann_flops_per_token"]
    return Chain(chain.stages, scratch, flops, flops / own)


def _same_settings(a: Row, b: Row) -> bool:
    """Whether two runs share all that matters but where in the data they began."""
    return {name for name, *_ in differences(a, b)} <= {"first token"}


def over_seeds(found: Sequence[Chain]) -> list[list[Chain]]:
    """Chains that differ in the seeds of their stages only, together, each last seed once."""
    groups: dict[Any, list[Chain]] = {}
    repeated: Counter[Any] = Counter()
    for chain in found:
        stages = tuple((run["settings_key"], run["growth_key"]) for run in chain.stages)
        key = stages, chain.scratch and (chain.scratch["max_tokens"], chain.paired)
        groups.setdefault((key, repeated[key, chain.end["seed"]]), []).append(chain)
        repeated[key, chain.end["seed"]] += 1
    return list(groups.values())


def same_seeds(a: Sequence[Chain], b: Sequence[Chain]) -> list[tuple[Chain, Chain]]:
    """Chains of two groups whose last stages have the same seed."""
    seeds = {chain.end["seed"]: chain for chain in b}
    return [(chain, seeds[chain.end["seed"]]) for chain in a if chain.end["seed"] in seeds]


def at_equal_compute_of(found: Sequence[Chain]) -> list[tuple[list[Chain], list[Chain]]]:
    """Pairs of groups that end in the same model with the same settings after the same compute.

    They differ in the scales between, or in how these were grown.
    """
    groups = [group for group in over_seeds(found) if not math.isnan(group[0].flops)]
    return [
        (a, b)
        for a, b in combinations(groups, 2)
        if same_seeds(a, b) and abs(a[0].flops / b[0].flops - 1) <= SAME_COMPUTE and _same_settings(a[0].end, b[0].end)
    ]


def chain_title(chain: Chain) -> str:
    """A chain's scales, tokens per parameter of each, and how they were grown."""
    return " → ".join(
        f"{run['model']} at {run['tokens_per_param']:.3g} tokens per parameter"
        + f", {run['growth']}" * bool(run["growth"])
        for run in chain.stages
    )


def chain_path(chain: Chain) -> str:
    """A chain's scales."""
    return " → ".join(filter(None, [chain.stages[0]["source"], *(run["model"] for run in chain.stages)]))


def way_labels(a: Chain, b: Chain) -> tuple[str, str]:
    """What two chains to one scale are called: their scales, and how they were grown where these are the same."""
    named = chain_path if chain_path(a) != chain_path(b) else chain_title
    return named(a), named(b)


def chain_verdict(group: Sequence[Chain]) -> str:
    """The last stage beside its run from scratch, by the compute of the whole lineage, over seeds."""
    chain = group[0]
    scratch = chain.scratch
    if math.isnan(chain.flops) or scratch is None:
        return "What the training before this chain took is not known: no comparison by compute."
    if not chain.paired:  # several would share one run from scratch
        group = group[:1]
    beside = [(c.end["val_loss"], c.scratch["val_loss"]) for c in group if c.scratch]
    told = (
        f"With the compute of the whole chain, {chain.flops:.3g} Hoffmann FLOPs, the last stage's validation loss is"
        f" {fmean(ours for ours, _ in beside):.4f}; from scratch{'' if chain.paired else ' with another seed'} it is"
        f" {fmean(theirs for _, theirs in beside):.4f} at {own_flops(scratch):.3g} Hoffmann FLOPs"
        f" ({scratch['tokens_per_param']:.3g} tokens per parameter){_over(group)}. Difference:"
        f" {estimate([ours - theirs for ours, theirs in beside]).words(4, '+')}."
    )
    reached = [c for c in group if not math.isnan(c.share)]
    if not reached:
        return told + " The chain did not reach the scratch run's last loss: no speed-up."
    counts = "" if len(reached) == len(group) else f" with {len(reached)} of {len(group)} seeds"
    return told + (
        f" The chain reached that loss{counts} after {fmean(c.flops_to_scratch_loss for c in reached):.3g} Hoffmann"
        f" FLOPs: a speed-up of {speed_up([c.share for c in reached]).words()}, all compute of its lineage counted."
    )


def beside_verdict(a: Sequence[Chain], b: Sequence[Chain]) -> str:
    """Two ways to one scale at the same compute, seed by seed."""
    ends = [(x.end["val_loss"], y.end["val_loss"]) for x, y in same_seeds(a, b)]
    found, ways = estimate([x - y for x, y in ends]), way_labels(a[0], b[0])
    told = "not told apart"
    if found.has_interval and not found.low <= 0 <= found.high:
        told = f"{ways[found.mean > 0]} is ahead"
    return (
        f"At {a[0].flops:.3g} and {b[0].flops:.3g} Hoffmann FLOPs of the whole lineage the last validation losses are"
        f" {fmean(x for x, _ in ends):.4f} and {fmean(y for _, y in ends):.4f}{_over(ends)}; difference"
        f" {found.words(4, '+')}: {told}."
    )


def _over(seeds: Sequence[Any]) -> str:
    return "" if len(seeds) == 1 else f", means over {len(seeds)} seeds"


def successive(linked: Sequence[Chain], runs: Runs) -> Section:
    """Chains of warmstarts against the compute of their lineage; those of one last scale share a figure."""
    section = Section(
        "Successive warmstarts", "The training losses are faint; a dotted line is where a model was grown."
    )
    finished = over_seeds([chain for chain in linked if chain.finished])
    for group in finished:
        if group[0].scratch:
            section.answers.append(f"{chain_title(group[0])}: {chain_verdict(group)}")
    for a, b in at_equal_compute_of([chain for group in finished for chain in group]):
        section.answers.append(f"{' beside '.join(way_labels(a[0], b[0]))}: {beside_verdict(a, b)}")
    rows = []
    for number, chain in enumerate(linked, start=1):
        flops = chain.stages[0]["base_hoffmann_flops"]
        for run in chain.runs:
            flops = own_flops(run) + (0.0 if run is chain.scratch else flops)
            told = {"chain": number, "stage": run["model"], "kind": run["growth"] or "from scratch"}
            rows.append(told | {"hoffmann_flops_of_lineage": flops} | {column: run[column] for column in COLUMNS})
        if chain.scratch is None:
            section.notes.append(f"{chain_title(chain)}: no run from scratch of the last scale to compare it with")
        elif not chain.finished:
            section.notes.append(f"{chain_title(chain)}: not all of its runs have finished, so no answer counts it")
    by_end: dict[str, list[Chain]] = {}
    for group in over_seeds(linked):
        by_end.setdefault(group[0].end["model"], []).append(group[0])
    for number, (model, ways) in enumerate(by_end.items(), start=1):
        section.figures.append(_lineage_figure(f"successive-{number}", model, ways, runs))
    table = pd.DataFrame(rows)
    section.tables.append(Table("successive", "Stages, and the run from scratch below them.", table, readable(table)))
    return section


def _lineage_figure(name: str, model: str, ways: Sequence[Chain], runs: Runs) -> figures.Figure:
    """Losses of ways to one scale, a seed of each, against the compute of their lineage."""
    drawn: dict[str, list[Row]] = {chain_title(chain): chain.stages for chain in ways}
    scratch = next((chain.scratch for chain in ways if chain.scratch), None)
    if scratch:
        drawn[f"{model} from scratch, {scratch['tokens_per_param']:.3g} tokens per parameter"] = [scratch]
    unit, named = figures.flops_unit(max(sum(map(own_flops, stages)) for stages in drawn.values()))
    lines = []
    for number, (label, stages) in enumerate(drawn.items()):
        begin, starts = stages[0]["base_hoffmann_flops"], []
        shown: list[pd.DataFrame] = []
        faint: list[pd.Series] = []
        flops = 0.0 if math.isnan(begin) or stages == [scratch] else begin
        for run in stages:
            per_token = run["hoffmann_flops_per_token"]
            smooth = smoothed(runs.losses(run["run"]), SMOOTHING * run["tokens"])
            shown.append(placed(band([runs.val_losses(run["run"])]), flops, per_token))
            faint.append(placed(smooth, flops, per_token))
            starts.append(flops)
            flops += own_flops(run)
        look = figures.style(-1 if stages == [scratch] else number)
        lines.append(figures.Line(label, look, pd.concat(shown), pd.concat(faint), starts=tuple(starts[1:])))
    caption = f"Ways to {model}: loss against the Hoffmann FLOPs of the whole lineage, one seed of each."
    return figures.loss_curves(name, caption, lines, f"{named} of the lineage", unit)
