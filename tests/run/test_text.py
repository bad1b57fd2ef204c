"""Perplexity and bits per byte of a validation, and what the model writes; training's numbers stay the same."""

import ast
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from litgpt.generate.base import main as generate
from litgpt.tokenizer import Tokenizer

from litgpt_warmstart.commands import warmstart_scratch
from litgpt_warmstart.data import StdlibText
from litgpt_warmstart.run.launch import carry_out
from litgpt_warmstart.run.metrics import read_metrics
from litgpt_warmstart.run.resolve import resolve
from litgpt_warmstart.run.spec import EvalArgs, RunArgs
from tests.conftest import TRAIN, assert_same_weights, losses
from tests.run.processes import train

EVAL = EvalArgs(interval=4, max_iters=10)


def test_a_validation_tells_perplexity_and_the_bits_of_each_byte_of_its_text(scratch, stdlib_path, capsys):
    out_dir = scratch()
    tokenizer = Tokenizer(stdlib_path)
    blocks = StdlibText(stdlib_path).val_batches(64, 1)
    stored = [block[0] for block, _ in zip(blocks, range(10), strict=False)]  # (65,): the first is no target
    text_bytes = sum(len(tokenizer.decode(block[1:]).encode()) for block in stored)
    rows = [row for row in read_metrics(out_dir / "metrics.csv") if "val_loss" in row]
    assert len(rows) == 3
    for row in rows:
        assert row["val_perplexity"] == pytest.approx(math.exp(row["val_loss"]), rel=1e-6)
        bits = row["val_loss"] * 10 * 64 / math.log(2) / text_bytes
        assert row["val_bits_per_byte"] == pytest.approx(bits, rel=1e-6)
    told = [line for line in capsys.readouterr().out.splitlines() if "val loss" in line]
    assert told[-1].endswith(f"| perplexity {row['val_perplexity']:,.2f} | {bits:.4f} bits per byte")


def test_bits_per_byte_do_not_depend_on_the_micro_batch(scratch):
    found = [losses(scratch(f"{size}", train=replace(TRAIN, micro_batch_size=size)), "val_bits_per_byte")[0]
             for size in (2, 8)]  # fmt: skip
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@pytest.fixture
def without_tokenizer(tiny, tiny_settings, tmp_path, monkeypatch) -> dict:
    """Arguments of a run on a user's DataModule of tokens."""
    (tmp_path / "plain_blocks.py").write_text(
        "import torch\nfrom litgpt.data import DataModule\nfrom torch.utils.data import DataLoader\n"
        "class Plain(DataModule):\n"
        "    def connect(self, tokenizer=None, batch_size=1, max_seq_length=None): self.size = batch_size\n"
        "    def train_dataloader(self): return DataLoader(torch.arange(3200).remainder(96).view(-1, 1).expand(-1, 65),"
        " self.size)\n"
        "    val_dataloader = train_dataloader\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import plain_blocks

    own = dict(target=tiny[16], lr=0.02, train=replace(TRAIN, max_steps=2), out_dir=tmp_path / "plain")
    return tiny_settings | own | dict(data=plain_blocks.Plain())


def test_without_a_tokenizer_bits_per_byte_are_a_dash(without_tokenizer, capsys):
    warmstart_scratch.setup(**without_tokenizer)
    assert "| - bits per byte" in capsys.readouterr().out
    assert losses(without_tokenizer["out_dir"], "val_bits_per_byte") == []
    assert len(losses(without_tokenizer["out_dir"], "val_perplexity")) == 2


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_sample_at_each_validation_leaves_the_run_as_it_is_bit_for_bit(scratch, capsys, compile):
    plain = scratch("plain", compile=compile)
    capsys.readouterr()
    sampling = scratch("sampling", compile=compile, sample="def ")
    samples = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sample: ")]
    assert len(samples) == 3 and all(line.startswith("sample: 'def ") and len(line) > 20 for line in samples)
    assert losses(plain) == losses(sampling) and losses(plain, "val_loss") == losses(sampling, "val_loss")
    assert_same_weights(plain / "final", sampling / "final")
    states = [torch.load(folder / "final/training_state.pth", weights_only=True) for folder in (plain, sampling)]
    assert torch.equal(states[0]["rng"]["cpu"], states[1]["rng"]["cpu"])


def test_the_last_sample_is_what_stock_generate_gives_of_the_checkpoint(warm, capsys):
    out_dir = warm(sample="class A", eval=replace(EVAL, max_new_tokens=8))
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sample: ")][-1]
    generate(out_dir / "final", prompt="class A", max_new_tokens=8, temperature=0.0, precision="32-true")
    written = ast.literal_eval(told.removeprefix("sample: "))
    assert written.startswith("class A") and f"\n{written}\n" in capsys.readouterr().out


def test_a_sample_of_two_devices_is_written_once_and_is_that_of_one(tiny, tiny_settings, tmp_path, capfd):
    def samples(*runs: str) -> list[str]:
        specs = []
        for strategy in runs:
            settings = tiny_settings | dict(eval=EvalArgs(interval=2, max_iters=4, max_new_tokens=8))
            settings |= dict(train=replace(TRAIN, micro_batch_size=2, max_steps=2), sample="class A", lr=0.02)
            args = RunArgs(**settings, devices=2 if strategy else 1, strategy=strategy or "auto")
            specs.append(
                (resolve("warmstart_scratch", tiny[48], None, None, tmp_path / f"run-{strategy}", args, {}), None)
            )
        carry_out(partial(train, specs), 2 if any(runs) else 1, 1)
        return [line for line in capfd.readouterr().out.splitlines() if line.startswith("sample: ")]

    first, last = samples("")
    assert first != last and first.startswith("sample: 'class A")
    assert samples("ddp", "fsdp") == [first, last] * 2


def test_a_sample_that_cannot_be_is_one_line_before_anything_is_written(scratch, without_tokenizer, tmp_path, refused):
    for changes, said in (
        (dict(sample=""), "--sample is empty"),
        (dict(sample="x = 1\n" * 40), "--sample has "),
        (dict(sample="a", eval=replace(EVAL, max_new_tokens=64)), "--eval.max_new_tokens 64 leaves no room"),
        (dict(sample="a", eval=replace(EVAL, max_new_tokens=0)), "--eval.max_new_tokens must be above 0"),
        (dict(eval=replace(EVAL, max_new_tokens=3)), "--eval.max_new_tokens is for --sample"),
    ):
        assert said in refused(scratch, name="refused", **changes)
    told = refused(warmstart_scratch.setup, **without_tokenizer | {"sample": "a"})
    assert "--sample needs a tokenizer" in told and "--tokenizer_dir" in told
    assert not (tmp_path / "refused").exists() and not (tmp_path / "plain").exists()
