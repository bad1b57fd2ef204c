"""What the runs of an experiment take, told before they begin: nothing is trained, prepared or written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from litgpt_warmstart.method.flops import hoffmann_flops_per_token
from litgpt_warmstart.run.measurement import Measurement, measure
from litgpt_warmstart.run.plan import duration, parameter_count
from litgpt_warmstart.run.spec import RunSpec
from litgpt_warmstart.study.runner import StudyRun, read_outcome, start_afresh


@dataclass(frozen=True)
class Cost:
    """What the runs of one model with one batch size take."""

    model: str
    parameters: int
    batch_size: int
    """Sequences per step."""
    runs: int
    finished: int
    """Of them; what they took is not counted."""
    tokens: int
    """Of the runs that have not ended, from their beginning."""
    hoffmann_flops: int
    measurement: Measurement | None

    @property
    def seconds(self) -> float:
        """On the measured device, one run after another; without validation and saving."""
        return self.tokens / self.measurement.tokens_per_sec


def costs(runs: Sequence[StudyRun], measured: bool = True) -> list[Cost]:
    """Group runs by model and batch size, the smallest first.

    Args:
        runs: Those that have an outcome take nothing.
        measured: Whether to build each model and time a few steps of it.

    Raises:
        UserError: A model does not fit into the device's memory.
    """
    groups: dict[tuple[str, int, int, int], list[StudyRun]] = {}
    for run in runs:
        parameters = parameter_count(run.spec.config)
        # not by the whole config: muP's base, which is in it, makes no difference to what a model takes
        key = run.spec.config.name, parameters, run.spec.tokens_per_step // run.spec.block_size, run.spec.block_size
        groups.setdefault(key, []).append(run)
    found = []
    for (model, parameters, batch_size, _), members in groups.items():
        left = [run.spec for run in members if read_outcome(run) is None]
        tokens = sum(spec.max_steps * spec.tokens_per_step for spec in left)
        measurement = None
        if measured and left:
            start_afresh()
            measurement = measure(_from_scratch(left[0]))
        spec = members[0].spec
        flops = tokens * hoffmann_flops_per_token(spec.config, spec.block_size)
        ended = len(members) - len(left)
        found.append(Cost(model, parameters, batch_size, len(members), ended, tokens, flops, measurement))
    return sorted(found, key=lambda cost: (cost.parameters, cost.batch_size))


def _from_scratch(spec: RunSpec) -> RunSpec:
    """A run of the same model and step that needs no base: it takes as long."""
    return replace(spec, source_dir=None, growth=None, command="warmstart_scratch")


def table(found: Sequence[Cost]) -> str:
    """Costs in lines, and their sum."""
    rows = [("model", "parameters", "batch", "runs", "finished", "tokens", "Hoffmann FLOPs", "tokens/s", "time")]
    for cost in found:
        timed = cost.measurement
        rows.append(
            (
                cost.model, f"{cost.parameters:,}", str(cost.batch_size), str(cost.runs), str(cost.finished),
                f"{cost.tokens:,}", f"{cost.hoffmann_flops:.3g}", f"{timed.tokens_per_sec:,.0f}" if timed else "-",
                duration(cost.seconds) if timed else "-",
            )
        )  # fmt: skip
    timed = [cost for cost in found if cost.measurement]
    seconds = sum(cost.seconds for cost in timed)
    rows.append(
        (
            "in all", "", "", str(sum(c.runs for c in found)), str(sum(c.finished for c in found)),
            f"{sum(c.tokens for c in found):,}", f"{sum(c.hoffmann_flops for c in found):.3g}", "",
            duration(seconds) if timed else "-",
        )
    )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    told = "Tokens are those of the runs that have not ended; FLOPs, Hoffmann et al.'s count."
    if timed:
        device = timed[0].measurement.device
        told += (
            f" Time is that of the runs one after another on {device}, {timed[0].measurement.precision}; validation"
            " and saving are not in it."
        )
    return "\n".join([*lines, told])
