"""litgpt warmstart_fit: the law of losses over size and tokens, and what warmstarts are worth by it."""

from pathlib import Path
from typing import Literal

from litgpt_warmstart.edge import command, options
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.schedule import ScheduleName

RESAMPLES = range(20, 10_001)


@command
@options()
def setup(
    runs: list[Path],
    out_dir: Path = Path("out/warmstart_fit"),
    schedule: ScheduleName | None = None,
    points: Literal["ends", "validations"] = "ends",
    from_tokens_per_param: float | None = None,
    resamples: int = 200,
    seed: int = 0,
) -> None:
    """Fit L(N, D) = E + A/N^alpha + B/D^beta to finished runs from scratch, and say what warmstarts are worth by it.

    By Huber loss on log losses (arXiv 2203.15556, approach 3), N counting the head and no embedding (arXiv 2406.19146);
    of runs that differ in learning rate or batch alone the best at each size and budget is taken. A warmstart's worth
    is the compute that scratch takes to its loss by the law, over its own, with the base's counted and without. Writes
    law.csv, points.csv, warmstarts.csv and law.png, which warmstart_report shows, too. Trains nothing.

    Arguments:
        runs: Folders of runs, of studies, or of several of them; whatever is beneath them is found. All have the same
            data, vocabulary, block size, parametrization, schedule and optimizer, and there are three sizes with two
            budgets or more from scratch, and three budgets in all.
        out_dir: The folder to write; an earlier fit in it is replaced.
        schedule: Which runs to take where there are several schedules, such as ``constant`` and, of their forks that
            cool down, ``wsd``.
        points: What is fitted: ``ends``, the last validation loss of each run, or ``validations``, all of them, which
            takes a constant learning rate, where each is the end of a budget.
        from_tokens_per_param: Leave out losses at fewer tokens per parameter. Default: 0, and 1 for ``validations``,
            where the start of a run is over.
        resamples: Of the runs, for the intervals: each is a fit of about a twentieth of a second, longer with
            ``validations``.
        seed: Of the resamples.
    """
    from litgpt_warmstart.report.runs import find
    from litgpt_warmstart.study import law
    from litgpt_warmstart.study.folder import check_results, study_folder

    if resamples not in RESAMPLES:
        raise UserError(f"--resamples {resamples:,}: give {RESAMPLES[0]} to {RESAMPLES[-1]:,}")
    if from_tokens_per_param is not None and from_tokens_per_param < 0:
        raise UserError(f"--from_tokens_per_param {from_tokens_per_param:g} is below 0: leave it out, or raise it")
    found = find([Path(run) for run in runs])
    check_results(out_dir / law.RESULTS, law.COLUMNS, law.POINTS, law.WARMSTARTS, law.PICTURE)
    with study_folder(out_dir):
        law.conduct(found, out_dir, schedule, points, from_tokens_per_param, resamples, seed)
