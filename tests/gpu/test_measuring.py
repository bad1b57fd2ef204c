"""What is measured on a GPU is what a CPU measures, and what a plan foretold."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
import torch
from litgpt.utils import save_config

from litgpt_warmstart.commands import warmstart_coord_check, warmstart_plan
from litgpt_warmstart.run import tuning
from litgpt_warmstart.run.norms import NORMS
from tests.conftest import TRAIN, cuda_only, losses, neox

pytestmark = pytest.mark.gpu


def test_tracked_norms_are_a_cpus(warm, on_a_cpu):
    def norms(out_dir: Path) -> dict[tuple, list[float]]:
        rows = NORMS.read(out_dir / "norms.csv")
        return {(row["step"], row["kind"], row["name"]): [*row.values()][4:] for row in rows}

    on_gpu = norms(warm("gpu", track=3))
    with on_a_cpu():
        on_cpu = norms(warm("cpu", track=3))
    assert on_gpu.keys() == on_cpu.keys() and {step for step, *_ in on_gpu} == {0, 3, 6}
    for name, expected in on_cpu.items():
        assert on_gpu[name] == pytest.approx(expected, rel=1e-3, abs=1e-4), name


def test_a_coordinate_check_finds_what_a_cpu_finds(base, tmp_path, on_a_cpu):
    def checked(out_dir: Path) -> pandas.DataFrame:
        warmstart_coord_check.setup(base=base, widths="16,32,64", shrink="0.4", num_seeds=2, out_dir=out_dir)
        return pandas.read_csv(out_dir / "coord_check.csv").query("t == 1")  # later ones differ as updates do

    on_gpu = checked(tmp_path / "gpu")
    with on_a_cpu():
        on_cpu = checked(tmp_path / "cpu")
    assert len(on_gpu) == len(on_cpu) > 50
    assert on_gpu["l1"].tolist() == pytest.approx(on_cpu["l1"].tolist(), rel=1e-3)


@cuda_only
@pytest.mark.parametrize(("precision", "compile"), [("bf16-mixed", False), ("bf16-mixed", True), ("32-true", False)])
def test_a_plan_foretells_a_runs_memory_within_a_quarter_and_its_time(precision, compile, base, warm, tmp_path):
    torch._dynamo.reset()
    save_config(neox(512, 16, vocab_size=4096, padded_vocab_size=4096), tmp_path)
    train = replace(TRAIN, global_batch_size=128, micro_batch_size=64, max_steps=10)
    asked = dict(target=str(tmp_path / "model_config.yaml"), train=train, precision=precision, compile=compile)
    warmstart_plan.setup(base=base, json=tmp_path / "plan.json", **asked)
    plan = json.loads((tmp_path / "plan.json").read_text())["measurement"]
    torch._dynamo.reset()
    tuning.give_back_memory()
    torch.cuda.reset_peak_memory_stats()
    run = warm("run", **asked)
    assert plan["peak_bytes"] / torch.cuda.max_memory_allocated() == pytest.approx(1, abs=0.25)
    speed = statistics.median(losses(run, "tokens_per_sec")[3:])
    assert 1 / 3 < plan["tokens_per_sec"] / speed < 3  # other tests run beside this one
