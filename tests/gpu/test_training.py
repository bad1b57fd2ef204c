"""Training on a GPU: the main job as typed, every way to compute a step, going on, memory that ends, and no waiting."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from litgpt.data import DataModule
from torch._inductor import config as inductor
from torch.utils.data import DataLoader, IterableDataset

from litgpt_warmstart.commands import warmstart
from litgpt_warmstart.run import train, tuning
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.spec import EvalArgs, TrainArgs
from tests.conftest import TRAIN, assert_same_weights, cuda_only, losses, made_once

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]
OURS = (sys.executable, "-m", "litgpt_warmstart")
MAIN = "from litgpt_warmstart.__main__ import main; main()"


def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command as typed, in a process of its own; it has to succeed."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, cwd=ROOT, env=os.environ | environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_a_base_a_warmstart_and_stock_generate_as_a_user_types_them(tiny, stdlib_path, tmp_path):
    shared = ["--train.global_batch_size", 8, "--train.max_steps", 6, "--eval.max_iters", 4, "--logger_name", "csv"]
    run(*OURS, "warmstart_scratch", "--target", tiny[16], "--lr", 0.02, "--data", "StdlibText", "--data.data_path",
        stdlib_path, "--out_dir", tmp_path / "base", *shared)  # fmt: skip
    done = run(*OURS, "warmstart", "--base", tmp_path / "base/final", "--target", tiny[48], "--out_dir",
               tmp_path / "warm", *shared)  # fmt: skip
    assert "shrink 0.4" in done.stdout
    if torch.cuda.is_available():
        assert "cuda:0, bf16-mixed" in done.stdout
    validated = losses(tmp_path / "warm", "val_loss")
    assert validated[-1] < validated[0]
    done = run(sys.executable, "-m", "litgpt", "generate", tmp_path / "warm/final", "--prompt", "def ",
               "--max_new_tokens", 5)  # fmt: skip
    assert re.search("^def .", done.stdout, re.M), done.stdout


TOLERANCES = {"32-true": 1e-3, "bf16-mixed": 0.05, "bf16-true": 0.1, "16-mixed": 0.05}
"""Of losses around 8, over six steps."""
MODES = (False, True, "reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune")
WAYS = [
    (precision, loss_impl, compile)
    for precision in TOLERANCES
    for loss_impl in ("full", "chunked")
    for compile in MODES
    if (precision, loss_impl) != ("16-mixed", "chunked")  # refused, see the next test
]


@pytest.fixture(scope="session")
def expected(base, tiny, tiny_settings, tmp_path_factory) -> list[float]:
    """Losses in fp32, eagerly, with all logits at once."""

    def make(out_dir: Path) -> None:
        own = dict(base=base, target=tiny[48], train=TRAIN, out_dir=out_dir, loss_impl="full")
        warmstart.setup(**own | tiny_settings)

    return losses(made_once(tmp_path_factory, "in-fp32-eagerly", make))


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "loss_impl", "compile"), WAYS)
def test_every_precision_loss_and_compile_mode_trains_as_fp32_does_eagerly(
    precision, loss_impl, compile, warm, expected
):
    if (precision == "16-mixed" or compile == "reduce-overhead") and not torch.cuda.is_available():
        pytest.skip("refused on a CPU")
    torch._dynamo.reset()
    searched = "ATEN,TRITON" if (precision, loss_impl) == ("bf16-mixed", "chunked") else "ATEN"  # it takes long
    with inductor.patch(max_autotune_gemm_backends=searched):
        found = losses(warm(precision=precision, loss_impl=loss_impl, compile=compile))  # two micro-batches a step
    assert found == pytest.approx(expected, abs=TOLERANCES[precision])
    assert found[-1] < found[0]


@cuda_only
def test_chunked_in_fp16_is_refused_in_one_line(warm, capsys):
    with pytest.raises(SystemExit):
        warm(precision="16-mixed", loss_impl="chunked")
    (line,) = capsys.readouterr().err.splitlines()
    assert "--loss_impl chunked: fp16's range" in line


@pytest.mark.slow
@pytest.mark.parametrize("compile", ["false", "true"])
def test_a_killed_run_goes_on_to_the_same_bits_under_deterministic_algorithms(compile, tiny, stdlib_path, tmp_path):
    command = [sys.executable, "-c", f"import torch; torch.use_deterministic_algorithms(True); {MAIN}",
               "warmstart_scratch", "--target", tiny[16], "--lr", "0.02", "--data", "StdlibText", "--data.data_path",
               str(stdlib_path), "--train.global_batch_size", "8", "--train.micro_batch_size", "4",
               "--train.max_steps", "400", "--train.save_interval", "100", "--eval.max_iters", "4",
               "--logger_name", "csv", "--resume", "auto", "--compile", compile]  # fmt: skip
    deterministic = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = subprocess.Popen(
        [*command, "--out_dir", str(killed)], cwd=ROOT, env=os.environ | deterministic, stdout=subprocess.DEVNULL
    )
    while not (killed / "step-00000100").exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (killed / "final").exists()
    for out_dir in (whole, killed):
        done = run(*command, "--out_dir", out_dir, **deterministic)
        assert ("Resuming" in done.stdout) == (out_dir == killed)
    assert losses(killed) == losses(whole)
    assert_same_weights(killed / "final", whole / "final")


@cuda_only
@pytest.mark.parametrize("words", [[], ["--eval.initial_validation", "false"]])
def test_memory_that_ends_is_one_line_with_the_remedy(words, stdlib_path, tmp_path):
    limited = f"torch.cuda.set_per_process_memory_fraction(1e9 / torch.cuda.mem_get_info()[1]); {MAIN}"
    done = subprocess.run(
        [sys.executable, "-c", f"import torch; {limited}", "warmstart_scratch", "--target", "22M", "--lr", "0.01",
         "--data", "StdlibText", "--data.data_path", stdlib_path, "--train.global_batch_size", "256",
         "--train.micro_batch_size", "256", "--train.max_steps", "1", "--compile", "false", "--loss_impl", "full",
         "--logger_name", "csv", "--out_dir", tmp_path, *words],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    line = done.stderr.splitlines()[-1]
    assert "memory is too small for a micro-batch of 256: lower --train.micro_batch_size" in line


class RandomTokens(DataModule):
    """Blocks of 257 random tokens without an end."""

    def connect(self, tokenizer=None, batch_size: int = 1, max_seq_length: int | None = None) -> None:
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        class Blocks(IterableDataset):
            def __iter__(self) -> Iterator[torch.Tensor]:
                generator = torch.Generator().manual_seed(0)
                while True:
                    yield torch.randint(1000, (257,), generator=generator)

        return DataLoader(Blocks(), self.batch_size, pin_memory=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(torch.randint(1000, (16, 257)), self.batch_size)


@cuda_only
@pytest.mark.slow
def test_a_run_that_names_no_micro_batch_finds_one_says_so_trains_with_it_and_records_it(scratch, capsys, monkeypatch):
    monkeypatch.setattr(tuning, "WORTH", 0)  # long enough for any trial
    out_dir = scratch(
        target="22M",
        lr=0.003,
        data=RandomTokens(),
        precision="bf16-mixed",
        compile=True,
        train=TrainArgs(global_batch_size=64, max_seq_length=256, max_steps=20),
        eval=EvalArgs(interval=10**6, max_iters=4),
    )
    said = capsys.readouterr().out
    found = re.search(r"; micro-batch (\d+) \((.*)\)", said)
    assert found and 64 % int(found[1]) == 0 and "too short" not in found[2], said
    assert Record.load(out_dir / "final/warmstart.yaml").training["micro_batch_size"] == int(found[1])
    trained = losses(out_dir)
    assert len(trained) > 10 and trained[-1] < trained[0]


@cuda_only
@pytest.mark.parametrize("compile", [False, True, "reduce-overhead"])
@pytest.mark.parametrize("loss_impl", ["full", "chunked"])
def test_between_logs_training_does_not_wait_for_the_gpu(compile, loss_impl, warm, monkeypatch):
    torch._dynamo.reset()
    train_step, begun = train.train_step, []

    def watched(*arguments: object) -> None:
        begun.append(torch.cuda.get_sync_debug_mode())
        if len(begun) in (
            6,
            11,
        ):  # the first steps compile, record graphs and make Adam's moments; the last one is told
            torch.cuda.set_sync_debug_mode("error" if len(begun) == 6 else "default")
        train_step(*arguments)

    monkeypatch.setattr(train, "train_step", watched)
    try:
        warm(
            precision="bf16-mixed",
            compile=compile,
            loss_impl=loss_impl,
            train=replace(TRAIN, max_steps=12, log_interval=12),
            eval=EvalArgs(interval=12, max_iters=4),
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(begun) == 12 and begun.count(2) == 5  # 2 is "error"
