"""Runs of seconds as studies have them."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from litgpt_warmstart.data import StdlibText
from litgpt_warmstart.run.resolve import resolve
from litgpt_warmstart.run.spec import EvalArgs, RunArgs, RunSpec, TrainArgs


def rows(table: Path) -> list[dict[str, str]]:
    with table.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def settings(stdlib_path) -> dict:
    """What the commands of studies share."""
    return dict(data=StdlibText(stdlib_path), precision="32-true", compile=False, logger_name="csv",
                eval=EvalArgs(interval=100, max_iters=4))  # fmt: skip


@pytest.fixture
def make_spec(tiny, settings, tmp_path) -> Callable[..., RunSpec]:
    """Makes the specification of a run of 4 steps from scratch at width 16."""

    def make(folder: str, lr: float = 0.02, seed: int = 1, **changes: object) -> RunSpec:
        train = TrainArgs(global_batch_size=4, micro_batch_size=changes.pop("micro_batch_size", 4),
                          max_steps=changes.pop("max_steps", 4),
                          save_interval=changes.pop("save_interval", None),
                          cooldown_steps=changes.pop("cooldown_steps", None))  # fmt: skip
        own = dict(target=tiny[16], initial_checkpoint_dir=None)
        args = RunArgs(lr=lr, seed=seed, train=train, resume="auto", **(settings | changes))
        return resolve("warmstart_scratch", tiny[16], None, None, tmp_path / "runs" / folder, args, own)

    return make
