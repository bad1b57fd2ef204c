"""Runs that were grown one from another, and the compute of a whole lineage (figures 6 and 11 of arXiv 2411.07340)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from litgpt_warmstart.files import file_sha256
from litgpt_warmstart.report.curves import tokens_to_last_loss, tokens_to_reach
from litgpt_warmstart.report.groups import budget, differences, growth, settings
from litgpt_warmstart.report.old_runs import Run
from litgpt_warmstart.run.checkpoint import WEIGHTS
from litgpt_warmstart.run.record import Ancestor


@dataclass(frozen=True)
class Chain:
    """A base, what was grown from it, and so on, beside the last scale from scratch."""

    stages: tuple[Run, ...]
    """Oldest first."""
    scratch: Run | None
    """At another budget perhaps: that of the chain's compute."""

    @property
    def before(self) -> float | None:
        """FLOPs of all training before the first stage, which is not always among the runs; None if not known."""
        return self.stages[0].base_flops

    @property
    def flops(self) -> float | None:
        """Hoffmann et al.'s, of the whole lineage; None where a part of it does not tell."""
        own = sum(stage.tokens * stage.flops_per_token for stage in self.stages)
        return None if self.before is None else self.before + own

    @property
    def flops_to_scratch_loss(self) -> float | None:
        """Of the whole lineage, until the last stage reached the scratch run's last loss; None if it did not."""
        last = self.stages[-1]
        tokens = tokens_to_reach(last.val_losses, self.scratch.val_losses[-1][1])
        if tokens is None or self.flops is None:
            return None
        return self.flops - (last.tokens - tokens) * last.flops_per_token

    @property
    def share(self) -> float | None:
        """FLOPs of the whole lineage to the scratch run's last loss over the run's own; None if it was not reached."""
        spent = self.flops_to_scratch_loss
        own = tokens_to_last_loss(self.scratch.val_losses) * self.scratch.flops_per_token
        return None if spent is None else spent / own

    @property
    def paired(self) -> bool:
        """Whether the run from scratch has the last stage's seed."""
        return self.scratch is not None and self.scratch.seed == self.stages[-1].seed

    @property
    def finished(self) -> bool:
        return all(run.status == "finished" for run in (*self.stages, *([self.scratch] if self.scratch else [])))


def parent(run: Run, runs: Sequence[Run]) -> Run | None:
    """The run, among those given, whose last checkpoint a run was grown from."""
    if not run.record.lineage:
        return None
    ancestor = run.record.lineage[-1]
    return next((other for other in runs if other is not run and _is(other, ancestor, run.record.lineage[:-1])), None)


def _is(run: Run, ancestor: Ancestor, before: tuple[Ancestor, ...]) -> bool:
    record = run.record
    told = (ancestor.name, ancestor.parameters, ancestor.tokens, ancestor.data, ancestor.growth)
    if told != (record.name, record.parameters, record.tokens, record.data, record.growth) or before != record.lineage:
        return False
    weights = run.out_dir / "final" / WEIGHTS
    if not weights.is_file():  # deleted to save space
        return Path(ancestor.path).parent.name == run.out_dir.resolve().name
    return file_sha256(weights) == ancestor.sha256


def chains(runs: Sequence[Run], compared: Sequence[Run]) -> list[Chain]:
    """Chains that end in a run from which none of the others was grown.

    A base and one warmstart are a chain where they have finished and stand beside a run from scratch of another budget.

    Args:
        runs: To look among.
        compared: Those with a run from scratch of their own budget beside them: a base and one of these is shown there.
    """
    parents = {id(run): parent(run, runs) for run in runs if run.warmstarted}
    grown_from = {id(found) for found in parents.values() if found}
    shown = {id(run) for run in compared}
    found = []
    for run in runs:
        if id(run) in grown_from or not parents.get(id(run)):
            continue
        stages = [run]
        while (before := parents.get(id(stages[0]))) is not None:
            stages.insert(0, before)
        chain = Chain(tuple(stages), _beside(tuple(stages), runs))
        if len(stages) > 2 or (chain.scratch and chain.finished and id(run) not in shown):
            found.append(chain)
    return found


def _beside(stages: tuple[Run, ...], runs: Sequence[Run]) -> Run | None:
    """The run from scratch at the last scale whose compute is nearest to the chain's."""
    last, spent = stages[-1], Chain(stages, None).flops or 0.0
    fit = [run for run in runs if run.from_scratch
           and not [d for d in differences(run, last) if d[0] != "first token"]]  # fmt: skip
    return min(
        fit, key=lambda run: (run.seed != last.seed, abs(run.tokens * run.flops_per_token - spent)), default=None
    )


SAME_COMPUTE = 0.05
"""Relative difference up to which two chains are compared; budgets are cut to whole steps."""


def over_seeds(found: Sequence[Chain]) -> list[list[Chain]]:
    """Chains that differ in the seeds of their stages only, together, each last seed once."""
    groups: dict[str, list[dict[int, Chain]]] = {}
    for chain in found:
        stages = [(settings(run), budget(run), run.warmstarted and growth(run)) for run in chain.stages]
        beside = chain.scratch and (budget(chain.scratch), chain.paired)
        same, seed = groups.setdefault(f"{stages} {beside}", []), chain.stages[-1].seed
        group = next((group for group in same if seed not in group), None)
        if group is None:
            same.append(group := {})
        group[seed] = chain
    return [list(group.values()) for same in groups.values() for group in same]


def same_seeds(a: Sequence[Chain], b: Sequence[Chain]) -> list[tuple[Chain, Chain]]:
    """Chains of two groups whose last stages have the same seed."""
    seeds = {chain.stages[-1].seed: chain for chain in b}
    return [(chain, seeds[seed]) for chain in a if (seed := chain.stages[-1].seed) in seeds]


def at_equal_compute_of(found: Sequence[Chain]) -> list[tuple[list[Chain], list[Chain]]]:
    """Pairs of groups that end in the same model with the same settings after the same compute.

    They differ in the scales between, or in how these were grown.
    """
    groups = [group for group in over_seeds(found) if group[0].flops is not None]
    return [
        (a, b)
        for a, b in combinations(groups, 2)
        if same_seeds(a, b)
        and abs(a[0].flops / b[0].flops - 1) <= SAME_COMPUTE
        and {name for name, *_ in differences(a[0].stages[-1], b[0].stages[-1])} <= {"first token"}
    ]
