"""Learning rates over width: does the best one stay where it is, as muTransfer has it (arXiv 2203.03466, figure 1)?

Every scale is trained from scratch on the same tokens with the same learning rates, which are given at the first one,
the muP base. Under standard parametrization nothing is carried: each scale has the rate as it is.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.model import parameter_count
from litgpt_warmstart.method.parametrization import DEFAULT, PARAMETRIZATIONS
from litgpt_warmstart.method.scales import short_name
from litgpt_warmstart.report.page import write_csv
from litgpt_warmstart.run.spec import RunSpec, TrainArgs
from litgpt_warmstart.study.coord_check import models
from litgpt_warmstart.study.folder import check_results, read_table
from litgpt_warmstart.study.grid_search import results
from litgpt_warmstart.study.outcomes import OUTCOME, Outcome, Study, StudyRun, read_outcome

TABLE, OPTIMA, PICTURE = "lr_transfer.csv", "optima.csv", "lr_transfer.png"
COLUMNS = (
    "parametrization", "scale", "n_embd", "parameters", "lr", "seed",
    "status", "first_val_loss", "val_loss", "steps", "tokens", "seconds", "run",
)  # fmt: skip
RUNS = "runs"
"""Folder of a scan's runs."""
ANY = "any"
"""The parametrization of the base's runs: every multiplier is 1 there, so that all are one."""


def plan(
    make: Callable[..., RunSpec],
    scales: Sequence[str],
    parametrizations: Sequence[str],
    lrs: Sequence[float],
    seeds: Sequence[int],
    train: TrainArgs,
    out_dir: Path,
) -> Study:
    """The runs of a scan, which ``make`` resolves: seed by seed, narrow scales first.

    Raises:
        UserError: A parametrization is unknown or named twice, there are no two scales, one is not wider than the one
            before or of another kind, or ``out_dir`` holds something else.
    """
    for name in parametrizations:
        if name not in PARAMETRIZATIONS:
            raise UserError(f"--parametrizations has no {name!r}: choose from {', '.join(PARAMETRIZATIONS)}")
        if parametrizations.count(name) > 1:
            raise UserError(f"--parametrizations has {name} twice: leave one out")
    check_results(out_dir / TABLE, COLUMNS[:3], OPTIMA, PICTURE)
    base = make(target=scales[0], out_dir=out_dir, lr=lrs[0], train=train, parametrization=DEFAULT)
    configs = models(base.config, None, scales)
    names = [short_name(config.name) for config in configs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--scales has two models called {twice!r}: give one another name")
    same = replace(train, global_batch_size=base.global_batch_size, max_seq_length=base.block_size)

    def planned(number: int, parametrization: str, lr: float, seed: int) -> StudyRun:
        scale, config = names[number], configs[number]
        way = "" if parametrization == ANY else f"-{parametrization}"
        name = f"{scale}{way}-lr-{lr!r}-seed-{seed}"
        used = DEFAULT if parametrization == ANY else parametrization
        mup_base = scales[0] if number and not PARAMETRIZATIONS[used].is_own_base else None
        spec = make(
            target=scales[number], out_dir=out_dir / RUNS / name, lr=lr, seed=seed, train=same,
            parametrization=used, mup_base=mup_base,
        )  # fmt: skip
        if spec.mup_base_dir is not None:  # whose own base, and tokens read, would be taken
            raise UserError(f"--scales {scales[0]} is a checkpoint's folder: give its model_config.yaml")
        factors = dict(
            parametrization=parametrization, scale=scale, n_embd=config.n_embd, parameters=parameter_count(config),
            lr=lr, seed=seed,
        )  # fmt: skip
        return StudyRun(name, spec, factors)

    ways = [(0, ANY), *((number, name) for number in range(1, len(scales)) for name in parametrizations)]
    runs = [planned(*way, lr, seed) for seed, way, lr in itertools.product(seeds, ways, lrs)]
    for row in earlier(out_dir, ()).itertuples():
        if row.parametrization != ANY:
            continue
        if row.scale != names[0]:
            raise UserError(
                f"{str(out_dir)!r} holds learning rates given at {row.scale}, now at {names[0]}: choose another"
                " --out_dir"
            )
        read_outcome(planned(0, ANY, float(row.lr), int(row.seed)))  # which tells of another budget, data or batch
    print(
        f"Learning rates over width at {', '.join(names)}: {len(lrs)} learning rates x {len(seeds)} seeds,"
        f" {runs[0].spec.max_tokens:,} tokens each; {len(runs)} runs"
    )
    return Study(out_dir, runs, partial(conclude, out_dir, runs))


def earlier(out_dir: Path, runs: Sequence[StudyRun]) -> Any:
    """Rows of an earlier scan in this folder, over other scales, parametrizations, learning rates or seeds.

    A run whose folder is gone is no more of it.
    """
    path = out_dir / TABLE
    rows = read_table(path) if path.is_file() else pandas.DataFrame(columns=COLUMNS)
    ours = {run.name for run in runs}
    kept = [name not in ours and (out_dir / RUNS / name / OUTCOME).is_file() for name in rows["run"]]
    return rows[np.array(kept, dtype=bool)]


def conclude(out_dir: Path, runs: Sequence[StudyRun], outcomes: Mapping[str, Outcome]) -> None:
    """Write a scan's tables and picture, and print what came out."""
    rows: Any = pandas.concat([earlier(out_dir, runs), results(runs, outcomes)])
    write_csv(out_dir / TABLE, rows[list(COLUMNS)])
