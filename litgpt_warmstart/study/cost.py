"""What the runs of a study take, told before they begin: nothing is trained, prepared or written."""

import gc
import math
from collections.abc import Sequence
from dataclasses import replace

import pandas
import torch

from litgpt_warmstart.method.flops import hoffmann_flops_per_token
from litgpt_warmstart.run.measurement import measure
from litgpt_warmstart.run.plan import duration, parameter_count
from litgpt_warmstart.study.outcomes import StudyRun, read_outcome


def costs(runs: Sequence[StudyRun], measured: bool = True) -> pandas.DataFrame:
    """What runs take, a row for each model and batch size, the smallest first.

    Args:
        runs: Those that have an outcome take nothing.
        measured: Whether to build each model and time a few steps of it.

    Returns:
        ``tokens`` and ``hoffmann_flops`` are those of the runs that have not ended, from their beginning;
        ``tokens_per_sec`` and ``seconds``, one run after another, without validation and saving, are NaN where nothing
        was measured.

    Raises:
        UserError: A model does not fit into the device's memory.
    """
    groups: dict[tuple[int, int, str, int], list[StudyRun]] = {}
    for run in runs:
        spec = run.spec
        # not by the whole config: muP's base, which is in it, makes no difference to what a model takes
        key = parameter_count(spec.config), spec.train.global_batch_size, spec.config.name, spec.block_size
        groups.setdefault(key, []).append(run)
    rows = []
    for (parameters, batch_size, model, block_size), members in sorted(groups.items(), key=lambda group: group[0][:2]):
        left = [run.spec for run in members if read_outcome(run) is None]
        tokens = sum(spec.max_steps * spec.tokens_per_step for spec in left)
        row = {
            "model": model,
            "parameters": parameters,
            "batch_size": batch_size,
            "runs": len(members),
            "finished": len(members) - len(left),
            "tokens": tokens,
            "hoffmann_flops": tokens * hoffmann_flops_per_token(members[0].spec.config, block_size),
            "tokens_per_sec": math.nan,
            "seconds": math.nan,
            "measured_on": "",
        }
        if measured and left:
            start_afresh()
            # a run from scratch needs no base, and takes as long
            timed = measure(replace(left[0], growth=None, source_dir=None, command="warmstart_scratch"))
            row["tokens_per_sec"] = timed.tokens_per_sec
            row["seconds"] = tokens / timed.tokens_per_sec
            row["measured_on"] = f"{timed.device}, {timed.precision}"
        rows.append(row)
    return pandas.DataFrame(rows)


def start_afresh() -> None:
    """Forget the model before, for one process that builds several."""
    torch._dynamo.reset()  # it compiles a code object for a few models only, then goes on eagerly
    gc.collect()
    torch.cuda.empty_cache()


def told_costs(found: pandas.DataFrame) -> str:
    """Costs in lines, and their sum."""
    whole = found.sum(numeric_only=True)
    timed = found[found["seconds"].notna()]
    shown = pandas.DataFrame(
        {
            "model": [*found["model"], "in all"],
            "parameters": [*found["parameters"].map("{:,}".format), ""],
            "batch": [*found["batch_size"], ""],
            "runs": [*found["runs"], int(whole["runs"])],
            "finished": [*found["finished"], int(whole["finished"])],
            "tokens": [f"{tokens:,}" for tokens in (*found["tokens"], int(whole["tokens"]))],
            "Hoffmann FLOPs": [f"{flops:.3g}" for flops in (*found["hoffmann_flops"], whole["hoffmann_flops"])],
            "tokens/s": [*("-" if math.isnan(rate) else f"{rate:,.0f}" for rate in found["tokens_per_sec"]), ""],
            "time": [
                *("-" if math.isnan(seconds) else duration(seconds) for seconds in found["seconds"]),
                duration(whole["seconds"]) if len(timed) else "-",
            ],
        }
    )
    lines = [
        shown.to_string(index=False),
        "Tokens are those of the runs that have not ended; FLOPs, Hoffmann et al.'s count.",
    ]
    if len(timed):
        lines[1] += (
            f" Time is that of the runs one after another on {timed['measured_on'].iloc[0]}; validation and saving are"
            " not in it."
        )
    return "\n".join(lines)
