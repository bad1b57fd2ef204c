"""What the runs of a study take, told before they begin: nothing is trained, prepared or written."""

from collections.abc import Sequence
from dataclasses import replace

import pandas
import torch

from litgpt_warmstart.report.page import as_text
from litgpt_warmstart.run.plan import Measurement, duration, measure, parameter_count
from litgpt_warmstart.run.tuning import give_back_memory
from litgpt_warmstart.study.outcomes import StudyRun, read_outcome

COUNTS = ["runs", "finished", "tokens", "hoffmann_flops"]


def costs(runs: Sequence[StudyRun]) -> pandas.DataFrame:
    """What runs that have no outcome yet take, a row for each model and batch size, the smallest first.

    Returns:
        Columns ``parameters``, ``batch`` (sequences a step), ``model``, ``block_size``; ``runs``, ``finished``, and of
        those that have not, from their beginning, ``tokens`` and ``hoffmann_flops``; ``run``, one of those, or None.
    """
    rows = []
    for run in runs:
        spec, finished = run.spec, read_outcome(run) is not None
        tokens = 0 if finished else run.tokens
        rows.append({
            # not by the whole config: muP's base, which is in it, makes no difference to what a model takes
            "parameters": parameter_count(spec.config), "batch": spec.global_batch_size, "model": spec.config.name,
            "block_size": spec.block_size, "runs": 1, "finished": int(finished), "tokens": tokens,
            "hoffmann_flops": spec.flops(tokens)["hoffmann_flops"], "run": None if finished else run,
        })  # fmt: skip
    # Python's whole numbers: NumPy's end at 2^63, which a study's FLOPs pass
    groups = pandas.DataFrame(rows, dtype=object).groupby(["parameters", "batch", "model", "block_size"])
    return groups.agg(dict.fromkeys(COUNTS, "sum") | {"run": "first"}).reset_index()


def measured(run: StudyRun) -> Measurement:
    """A few steps of a run's model on this device, timed."""
    start_afresh()
    # a run from scratch needs no base, and takes as long
    return measure(replace(run.spec, growth=None, start_dir=None))


def start_afresh() -> None:
    """Forget the model before, for one process that builds several."""
    torch.compiler.reset()  # it holds models
    give_back_memory()


def told_costs(found: pandas.DataFrame, time: bool = True) -> str:
    """Costs in lines, and their sum; with ``time``, that on this device, where a run of each model is timed."""
    timed = [measured(run) if time and run else None for run in found["run"]]
    speeds = [one.tokens_per_sec if one else None for one in timed]
    seconds = [tokens / speed if speed else 0.0 for tokens, speed in zip(found["tokens"], speeds, strict=True)]
    sums = {"model": "in all", "parameters": "", "batch": ""} | {name: found[name].sum() for name in COUNTS}
    rows = pandas.concat([found, pandas.DataFrame([sums])])
    table = pandas.DataFrame({
        "model": rows["model"], "parameters": [*(f"{count:,}" for count in found["parameters"]), ""],
        "batch": rows["batch"], "runs": rows["runs"], "finished": rows["finished"],
        "tokens": rows["tokens"].map("{:,}".format), "Hoffmann FLOPs": rows["hoffmann_flops"].map("{:.3g}".format),
        "tokens/s": [*(f"{speed:,.0f}" if speed else "-" for speed in speeds), ""],
        "time": [duration(each) if each else "-" for each in (*seconds, sum(seconds))],
    })  # fmt: skip
    told = "Tokens are those of the runs that have not ended; FLOPs, Hoffmann et al.'s count."
    if one := next(filter(None, timed), None):
        told += (
            f" Time is that of the runs one after another on {one.device}, {one.precision}; validation and"
            " saving are not in it."
        )
    return f"{as_text(table)}\n{told}"
