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
from litgpt_warmstart.report.compare import Compared, differences
from litgpt_warmstart.report.page import Section, Table, readable
from litgpt_warmstart.report.runs import Found, Run
from litgpt_warmstart.report.sections import line
from litgpt_warmstart.report.statistics import Estimate, estimate, speed_up, tokens_to_last_loss, tokens_to_reach
from litgpt_warmstart.run.checkpoint import WEIGHTS

SAME_COMPUTE = 0.05
"""Relative difference up to which two chains are compared; budgets are cut to whole steps."""
NOT_KNOWN = "What the training before this chain took is not known: no comparison by compute."


@dataclass(frozen=True, eq=False)
class Chain:
    """A base, what was grown from it, and so on, beside the last scale from scratch."""

    stages: list[Run]
    """Oldest first."""
    scratch: Run | None = None
    """At another budget perhaps: that of the chain's compute."""

    @property
    def end(self) -> Run:
        return self.stages[-1]

    @property
    def flops(self) -> float:
        """Hoffmann FLOPs of the whole lineage, also before the first stage; NaN where a part of it does not tell."""
        return self.stages[0].base_flops + sum(run.own_flops for run in self.stages)

    @property
    def share(self) -> float:
        """Hoffmann FLOPs of the lineage until the last stage was at scratch's last loss, over scratch's own to it; NaN
        if it was not."""
        if self.scratch is None:
            return math.nan
        left = self.end.tokens - tokens_to_reach(self.end.val_losses, self.scratch.val_loss)
        own = tokens_to_last_loss(self.scratch.val_losses) * self.scratch.flops_per_token
        return (self.flops - left * self.end.flops_per_token) / own

    @property
    def paired(self) -> bool:
        """Whether the run from scratch has the last stage's seed."""
        return self.scratch is not None and self.scratch.seed == self.end.seed

    @property
    def runs(self) -> list[Run]:
        """The stages, and the run from scratch after them."""
        return [*self.stages, *([self.scratch] if self.scratch else [])]

    @property
    def title(self) -> str:
        """Its scales, tokens per parameter of each, and how they were grown."""
        return " → ".join(
            ", ".join(filter(None, [f"{run.model} at {run.tokens_per_param:.3g} tokens per parameter", run.growth]))
            for run in self.stages
        )

    @property
    def path(self) -> str:
        """Its scales."""
        return " → ".join(filter(None, [self.stages[0].source, *(run.model for run in self.stages)]))


def parent(run: Run, runs: Sequence[Run]) -> Run | None:
    """The run, among those given, whose last checkpoint a run was grown from."""
    if not run.record.lineage:
        return None
    *before, last = run.record.lineage
    for other in runs:
        record, weights = other.record, other.folder / "final" / WEIGHTS
        told = (record.name, record.parameters, record.tokens, record.data, record.growth, *record.lineage)
        if other is run or told != (last.name, last.parameters, last.tokens, last.data, last.growth, *before):
            continue
        if not weights.is_file():  # deleted to save space
            if Path(last.path).parent.name == other.folder.resolve().name:
                return other
        elif file_sha256(weights) == last.sha256:
            return other
    return None


def chains(found: Found, compared: Compared) -> list[Chain]:
    """Chains that end in a run from which none of the others was grown.

    A base and one warmstart are a chain where they have finished and stand beside a run from scratch of another budget.

    Args:
        found: To look among.
        compared: A base and a run that is compared at its own budget are shown there; repetitions are left out.
    """
    runs = [run for run in found.runs if run not in compared.repeated]
    parents = {run: before for run in runs if run.kind == "warmstart" and (before := parent(run, runs))}
    linked = []
    for end in parents.keys() - set(parents.values()):
        stages = [end]
        while before := parents.get(stages[0]):
            stages.insert(0, before)
        chain = Chain(stages, _scratch(Chain(stages), runs))
        if len(stages) > 2 or (chain.scratch and finished(chain) and end not in compared.runs):
            linked.append(chain)
    return sorted(linked, key=lambda chain: runs.index(chain.end))


def finished(chain: Chain) -> bool:
    """Whether all of its runs, the one from scratch included, have."""
    return all(run.status == "finished" for run in chain.runs)


def _scratch(chain: Chain, runs: Sequence[Run]) -> Run | None:
    """The run from scratch at the last scale whose compute is nearest to the chain's, with its seed if there is one."""
    spent = 0.0 if math.isnan(chain.flops) else chain.flops
    fit = [run for run in runs if run.kind == "scratch" and _same_settings(run, chain.end)]
    return min(fit, key=lambda run: (run.seed != chain.end.seed, abs(run.own_flops - spent)), default=None)


def _same_settings(a: Run, b: Run) -> bool:
    """Whether two runs share all that matters but where in the data they began."""
    return {name for name, *_ in differences(a, b)} <= {"first token"}


def over_seeds(linked: Sequence[Chain]) -> list[list[Chain]]:
    """Chains that differ in the seeds of their stages only, together, each last seed once."""
    groups: dict[Any, list[Chain]] = {}
    repeated: Counter[Any] = Counter()
    for chain in linked:
        stages = tuple((run.comparison_key, run.growth_key) for run in chain.stages)
        key = stages, chain.scratch and (chain.scratch.max_tokens, chain.paired)
        groups.setdefault((key, repeated[key, chain.end.seed]), []).append(chain)
        repeated[key, chain.end.seed] += 1
    return list(groups.values())


def at_equal_compute(groups: Sequence[list[Chain]]) -> list[list[tuple[Chain, Chain]]]:
    """Two groups' chains seed by seed, where these end in the same model with the same settings after the same compute.

    They differ in the scales between, or in how these were grown.
    """
    found = []
    for a, b in combinations([group for group in groups if not math.isnan(group[0].flops)], 2):
        seeds = [(x, y) for x in a for y in b if x.end.seed == y.end.seed]
        if seeds and abs(a[0].flops / b[0].flops - 1) <= SAME_COMPUTE and _same_settings(a[0].end, b[0].end):
            found.append(seeds)
    return found


def chain_verdict(group: Sequence[Chain]) -> str:
    """The last stage beside its run from scratch, by the compute of the whole lineage, over seeds."""
    chain, scratch = group[0], group[0].scratch
    if math.isnan(chain.flops) or scratch is None:
        return NOT_KNOWN
    group = group if chain.paired else group[:1]  # several would share one run from scratch
    ours, theirs, difference = _losses([(c.end, c.scratch) for c in group if c.scratch])
    shares = [c.share for c in group if not math.isnan(c.share)]
    reached = (
        f"It reached that loss with {len(shares)} of {len(group)} seeds: a speed-up of {speed_up(shares).words()}."
    )
    return (
        f"With all compute of its lineage, {chain.flops:.3g} Hoffmann FLOPs, the last validation loss is {ours}; from"
        f" scratch{' with another seed' * (not chain.paired)}, with {scratch.own_flops:.3g} Hoffmann FLOPs"
        f" ({scratch.tokens_per_param:.3g} tokens per parameter), it is {theirs}: difference"
        f" {difference.words(4, '+')}. {reached if shares else 'It did not reach that loss: no speed-up.'}"
    )


def beside_verdict(pairs: Sequence[tuple[Chain, Chain]]) -> str:
    """Two ways to one scale at the same compute, seed by seed: their scales, or how they grew where these are alike."""
    a, b = pairs[0]
    ways = (a.path, b.path) if a.path != b.path else (a.title, b.title)
    first, second, found = _losses([(x.end, y.end) for x, y in pairs])
    ahead = f"{ways[found.mean > 0]} is ahead" if found.low > 0 or found.high < 0 else "not told apart"
    return (
        f"{ways[0]} beside {ways[1]}: after {a.flops:.3g} and {b.flops:.3g} Hoffmann FLOPs of the lineage the last"
        f" validation loss is {first} and {second}: difference {found.words(4, '+')}, {ahead}."
    )


def _losses(ends: Sequence[tuple[Run, Run]]) -> tuple[str, str, Estimate]:
    """Last losses of the first and the second runs, means over seeds, and their difference."""
    over = f" (mean of {len(ends)} seeds)" * (len(ends) > 1)
    first, second = (f"{fmean(run.val_loss for run in runs):.4f}{over}" for runs in zip(*ends, strict=True))
    return first, second, estimate([x.val_loss - y.val_loss for x, y in ends])


def stages_table(linked: Sequence[Chain]) -> pd.DataFrame:
    """Stages with what their lineage had spent by then, and the run from scratch below them."""
    rows = []
    for number, chain in enumerate(linked, start=1):
        flops = chain.stages[0].base_flops
        for run in chain.runs:
            flops = run.own_flops + (0.0 if run is chain.scratch else flops)
            rows.append({
                "chain": number, "stage": run.model, "kind": run.growth or "from scratch",
                "hoffmann_flops_of_lineage": flops, "tokens": run.tokens,
                "tokens_per_param": run.tokens_per_param, "first_val_loss": float(run.val_losses.iloc[0]),
                "val_loss": run.val_loss, "status": run.status, "run": run.name,
            })  # fmt: skip
    return pd.DataFrame(rows)


def successive(linked: Sequence[Chain]) -> Section:
    """Chains of warmstarts against the compute of their lineage; those of one last scale share a figure."""
    section = Section(
        "Successive warmstarts", "The training losses are faint; a dotted line is where a model was grown."
    )
    done = over_seeds([chain for chain in linked if finished(chain)])
    section.answers = [f"{group[0].title}: {chain_verdict(group)}" for group in done if group[0].scratch]
    section.answers += map(beside_verdict, at_equal_compute(done))
    for chain in linked:
        if chain.scratch is None:
            section.notes.append(f"{chain.title}: no run from scratch of the last scale to compare it with")
        elif not finished(chain):
            section.notes.append(f"{chain.title}: not all of its runs have finished, so no answer counts it")
    by_end: dict[str, list[Chain]] = {}
    for group in over_seeds(linked):
        by_end.setdefault(group[0].end.model, []).append(group[0])
    section.figures = [lineage_figure(f"successive-{n}", ways) for n, ways in enumerate(by_end.values(), start=1)]
    table = stages_table(linked)
    section.tables = [Table("successive", "Stages, and the run from scratch below them.", table, readable(table))]
    return section


def lineage_figure(name: str, ways: Sequence[Chain]) -> figures.Figure:
    """Losses of ways to one scale, a seed of each, against the compute of their lineage."""
    lines = [line(w.title, figures.style(n), [[run] for run in w.stages], by_compute=True) for n, w in enumerate(ways)]
    model, scratch = ways[0].end.model, next((chain.scratch for chain in ways if chain.scratch), None)
    if scratch:
        label = f"{model} from scratch, {scratch.tokens_per_param:.3g} tokens per parameter"
        lines.append(line(label, figures.style(-1), [[scratch]], by_compute=True))
    caption = f"Ways to {model}: loss against the Hoffmann FLOPs of the whole lineage, one seed of each."
    return figures.loss_curves(name, caption, lines, "Hoffmann FLOPs of the lineage")
