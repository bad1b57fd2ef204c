"""Runs of seconds as experiments have them."""

import pytest

from litgpt_warmstart.data import StdlibText
from litgpt_warmstart.run.resolve import resolve
from litgpt_warmstart.run.spec import EvalArgs, RunArgs, RunSpec, TrainArgs


@pytest.fixture
def make_spec(tiny, stdlib_path, tmp_path):
    """Makes the specification of a run of 4 steps from scratch at width 16."""

    def make(folder: str, lr: float = 0.02, seed: int = 1, **changes: object) -> RunSpec:
        train = TrainArgs(global_batch_size=4, micro_batch_size=4, max_steps=changes.pop("max_steps", 4),
                          save_interval=changes.pop("save_interval", None))  # fmt: skip
        data = changes.pop("data", None) or StdlibText(stdlib_path)
        own = dict(target=tiny[16], parametrization="mup", initial_checkpoint_dir=None)
        args = RunArgs(
            lr=lr, seed=seed, train=train, data=data, precision="32-true", compile=False, logger_name="csv",
            eval=EvalArgs(interval=100, max_iters=4), resume="auto", **changes,
        )  # fmt: skip
        return resolve("warmstart_scratch", tiny[16], None, None, "mup", tmp_path / "runs" / folder, args, own)

    return make
