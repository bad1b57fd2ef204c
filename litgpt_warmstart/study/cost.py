"""What the runs of a study take, told before they begin: nothing is trained, prepared or written."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas
import torch

from litgpt_warmstart.method.flops import hoffmann_flops_per_token
from litgpt_warmstart.run.plan import duration, parameter_count
from litgpt_warmstart.run.tuning import Measurement, measure
from litgpt_warmstart.study.folder import as_text
from litgpt_warmstart.study.outcomes import StudyRun, read_outcome


@dataclass(frozen=True)
class Cost:
    """What the runs of one model with one batch size take."""

    model: str
    parameters: int
    batch_size: int
    """Sequences per step."""
    runs: int
    finished: int
    """Those of them whose tokens are not counted."""
    tokens: int
    """Of the runs that have not ended, from their beginning."""
    hoffmann_flops: float
    measurement: Measurement | None

    @property
    def seconds(self) -> float:
        """On the measured device, one run after another, without validation and saving; 0 where nothing was timed."""
        return self.tokens / self.measurement.tokens_per_sec if self.measurement else 0.0


def costs(runs: Sequence[StudyRun], measured: bool = True) -> list[Cost]:
    """What runs that have no outcome yet take, for each model and batch size, the smallest first.

    Where ``measured``, each model is built, and a few steps of it are timed.
    """
    groups: dict[tuple[int, int, str, int], list[StudyRun]] = {}
    for run in runs:
        spec = run.spec
        # not by the whole config: muP's base, which is in it, makes no difference to what a model takes
        key = parameter_count(spec.config), spec.global_batch_size, spec.config.name, spec.block_size
        groups.setdefault(key, []).append(run)
    found = []
    for (parameters, batch_size, model, block_size), members in sorted(groups.items(), key=lambda group: group[0][:2]):
        left = [run.spec for run in members if read_outcome(run) is None]
        tokens = sum(spec.max_tokens for spec in left)
        flops = tokens * hoffmann_flops_per_token(members[0].spec.config, block_size)
        timed = None
        if measured and left:
            start_afresh()
            # a run from scratch needs no base, and takes as long
            timed = measure(replace(left[0], growth=None, source_dir=None, command="warmstart_scratch"))
        ended = len(members) - len(left)
        found.append(Cost(model, parameters, batch_size, len(members), ended, tokens, flops, timed))
    return found


def start_afresh() -> None:
    """Forget the model before, for one process that builds several."""
    torch._dynamo.reset()  # it compiles a code object for a few models only, then goes on eagerly
    gc.collect()
    torch.cuda.empty_cache()


def told_costs(found: Sequence[Cost]) -> str:
    """Costs in lines, and their sum."""
    timed = [cost.measurement for cost in found if cost.measurement]
    sums = {name: sum(getattr(cost, name) for cost in found) for name in ("runs", "finished", "tokens")}
    sums |= {"hoffmann_flops": sum(cost.hoffmann_flops for cost in found), "seconds": sum(c.seconds for c in found)}
    rows = [{**vars(cost), "seconds": cost.seconds} for cost in found] + [{**sums, "model": "in all"}]
    speeds = [f"{c.measurement.tokens_per_sec:,.0f}" if c.measurement else "-" for c in found]
    table = {
        "model": [row["model"] for row in rows],
        "parameters": [*(f"{cost.parameters:,}" for cost in found), ""],
        "batch": [*(str(cost.batch_size) for cost in found), ""],
        "runs": [row["runs"] for row in rows],
        "finished": [row["finished"] for row in rows],
        "tokens": [f"{row['tokens']:,}" for row in rows],
        "Hoffmann FLOPs": [f"{row['hoffmann_flops']:.3g}" for row in rows],
        "tokens/s": [*speeds, ""],
        "time": [duration(row["seconds"]) if row.get("measurement", timed) else "-" for row in rows],
    }
    told = "Tokens are those of the runs that have not ended; FLOPs, Hoffmann et al.'s count."
    if timed:
        told += (
            f" Time is that of the runs one after another on {timed[0].device}, {timed[0].precision}; validation and"
            " saving are not in it."
        )
    return f"{as_text(pandas.DataFrame(table))}\n{told}"
