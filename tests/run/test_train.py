"""The loop: LitGPT's losses under SP, muP's rates at every step, resumes to the bit, no token twice."""

import csv
import itertools
import math
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import litgpt.pretrain
import pytest
import torch
import yaml
from lightning.fabric.loggers import CSVLogger
from litgpt.config import Config
from litgpt.data import TextFiles
from litgpt.model import GPT
from litgpt.tokenizer import Tokenizer
from litgpt.utils import save_config

from litgpt_warmstart import files
from litgpt_warmstart.commands import warmstart, warmstart_grow
from litgpt_warmstart.data import StdlibText
from litgpt_warmstart.data.loaders import start_method_kept
from litgpt_warmstart.data.stdlib_text import stdlib_documents
from litgpt_warmstart.method import parametrization
from litgpt_warmstart.run import breaking_off, checkpoint
from litgpt_warmstart.run import train as pretrain
from litgpt_warmstart.run.metrics import read_metrics
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.spec import EvalArgs, TrainArgs
from tests.conftest import TRAIN, assert_same_weights, build, losses, weights

# --- the same numbers as LitGPT's own loop ------------------------------------------------------------------------


def pretrain_with_litgpt(
    out_dir: Path, config: Config, data, initial: Path | None, optimizer: dict, steps: int, **more
):
    """Losses of ``litgpt.pretrain.main`` with a constant learning rate; it leaves out_dir/final."""
    fabric = L.Fabric(devices=1, precision="32-true", loggers=CSVLogger(out_dir, name="csv"))
    train = litgpt.pretrain.TrainArgs(
        global_batch_size=8, micro_batch_size=4, max_tokens=steps * 8 * 64, max_norm=1.0,
        min_lr=optimizer["init_args"]["lr"], lr_warmup_steps=None, save_interval=None,
    )  # fmt: skip
    argv, sys.argv = sys.argv, ["litgpt", "pretrain", "pythia-14m"]  # its save_checkpoint parses the command line anew
    try:
        with torch.compiler.set_stance("force_eager"), start_method_kept():
            litgpt.pretrain.main(
                fabric=fabric, devices=1, seed=42, initial_checkpoint_dir=initial, resume=False, config=config,
                data=data, out_dir=out_dir, train=train, eval=litgpt.pretrain.EvalArgs(interval=1000, max_iters=2),
                optimizer=optimizer, **more,
            )  # fmt: skip
    finally:
        sys.argv = argv
    fabric.logger.finalize("success")
    lines = next((out_dir / "csv").glob("*/metrics.csv")).read_text().splitlines()
    column = lines[0].split(",").index("loss")
    return [float(cells[column]) for line in lines[1:] if (cells := line.split(","))[column]]


OPTIMIZER = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01, "betas": [0.9, 0.95], "weight_decay": 0.0}}


def test_the_same_sp_run_has_litgpts_losses(scratch, tiny, stdlib_path, tmp_path):
    config, initial = Config.from_file(tiny[16]), tmp_path / "initial"
    initial.mkdir()
    torch.save(build(config, seed=7).state_dict(), initial / "lit_model.pth")
    (initial / "model_config.yaml").write_text(Path(tiny[16]).read_text())
    expected = pretrain_with_litgpt(
        tmp_path / "stock", config, StdlibText(stdlib_path), initial, OPTIMIZER, 20, tokenizer_dir=None, tokenizer=None
    )
    own = dict(target=None, lr=None, initial_checkpoint_dir=initial, parametrization="sp", optimizer=OPTIMIZER)
    ours = losses(scratch("ours", train=replace(TRAIN, max_steps=20), **own))
    assert len(ours) == len(expected) == 20
    assert ours[0] == pytest.approx(expected[0], abs=1e-5)
    assert ours == pytest.approx(expected, abs=1e-3)
    assert ours[-1] < ours[0] - 1  # and it learns


@pytest.fixture(scope="module")
def text_files(tmp_path_factory) -> Path:
    """Three small text files."""
    folder = tmp_path_factory.mktemp("text")
    for i, text in enumerate(list(stdlib_documents().values())[:3]):
        (folder / f"{i}.txt").write_text((text + "\n") * (1 + 40_000 // (len(text) + 1)))
    return folder


@pytest.mark.slow
def test_litgpts_own_checkpoint_and_data_work_end_to_end(
    tiny, tiny_settings, text_files, stdlib_path, tmp_path, refused
):
    stock, config = tmp_path / "stock", Config.from_file(tiny[16])
    tokenizer = dict(tokenizer_dir=stdlib_path, tokenizer=Tokenizer(stdlib_path))
    pretrain_with_litgpt(stock, config, TextFiles(text_files, num_workers=0), None, OPTIMIZER, 3, **tokenizer)
    assert "model" in torch.load(stock / "final/lit_model.pth", weights_only=True)

    warmstart_grow.setup(base=stock / "final", target=tiny[48], out_dir=tmp_path / "grown")
    record = Record.load(tmp_path / "grown/warmstart.yaml")
    assert record.mup_base_config["n_embd"] == 16 and record.width_mult == 3  # its own shapes
    assert record.lineage[0].sha256 == files.file_sha256(stock / "final/lit_model.pth")

    foreign = dict(base=stock / "final", target=tiny[48], **tiny_settings)
    for missing, told in (({"data": None}, "pass --data"), ({"lr": None}, "pass --lr")):
        assert told in refused(warmstart.setup, **foreign | {"lr": 0.01, "out_dir": tmp_path / "none"} | missing)

    data = TextFiles(text_files, num_workers=1)
    shared = foreign | dict(data=data, lr=0.01, out_dir=tmp_path / "run")
    train = replace(TRAIN, max_steps=6, save_interval=3)
    warmstart.setup(train=train, **shared)
    expected = losses(tmp_path / "run")
    use = Record.load(tmp_path / "run/final/warmstart.yaml").data
    assert (use.class_path, use.fingerprint, use.start_token) == ("litgpt.data.TextFiles", None, None)  # unknown
    assert (tmp_path / "run/final/tokenizer.json").is_file()
    warmstart.setup(train=train, resume=tmp_path / "run/step-00000003", **shared)
    assert losses(tmp_path / "run") == pytest.approx(expected, abs=1e-6)

    told = refused(warmstart.setup, **shared | dict(out_dir=tmp_path / "long", train=replace(TRAIN, max_steps=10_000)))
    assert "the data is too short: 5,120,000 tokens asked" in told


# --- warmstarts ---------------------------------------------------------------------------------------------------


def test_warmstart_takes_lr_batch_data_and_mup_base_from_the_record(warm, base, tmp_path):
    warm(data=None, train=TrainArgs(max_steps=3))
    before, after = Record.load(base / "warmstart.yaml"), Record.load(tmp_path / "final/warmstart.yaml")
    assert (after.base_lr, after.global_batch_size) == (before.base_lr, before.global_batch_size) == (0.02, 8)
    assert after.mup_base_config["n_embd"] == 16 and after.width_mult == 3
    assert after.data.fingerprint == before.data.fingerprint
    assert after.data.start_token == before.data.stop_token == 10 * 8 * 65  # disjoint, and nothing wasted
    assert after.data.stop_token == 13 * 8 * 65
    assert [a.name for a in after.lineage] == ["neox-16"] and after.lineage[0].tokens == 10 * 8 * 64
    assert after.lineage[0].sha256 == files.file_sha256(base / "lit_model.pth")
    assert (after.growth.shrink, after.growth.alignment) == (0.4, "heads")
    for name in ("tokenizer.json", "tokenizer_config.json", "model_config.yaml", "hyperparameters.yaml"):
        assert (tmp_path / "final" / name).is_file()


def test_a_mup_base_named_as_the_record_has_it_keeps_the_records_rate_and_batch(warm, tiny):
    record = Record.load(warm(mup_base=tiny[16], train=TrainArgs(max_steps=1)) / "final/warmstart.yaml")
    assert (record.base_lr, record.global_batch_size, record.mup_base_config["n_embd"]) == (0.02, 8, 16)


def test_a_tiled_base_starts_at_its_own_last_validation_loss(warm, base, tmp_path):
    thrice = dict(n_embd=48, n_head=6, n_query_groups=6, intermediate_size=192)
    save_config(replace(checkpoint.read_header(base).config, name="wide", **thrice), tmp_path)
    target = str(tmp_path / "model_config.yaml")
    warm(target=target, operator="tile", shrink=1.0, train=replace(TRAIN, max_steps=1))
    last, first = losses(base.parent, "val_loss")[-1], losses(tmp_path, "val_loss")[0]
    assert first == pytest.approx(last, abs=1e-5)


def test_shrink_0_is_the_scratch_run_with_the_same_batches_bit_for_bit(warm, scratch, base, tiny):
    runs = warm("warm", shrink=0.0), scratch("scratch", target=tiny[48], mup_base=str(base), lr=None)
    assert_same_weights(*(run / "final" for run in runs))
    assert losses(runs[0]) == losses(runs[1])
    uses = [Record.load(run / "final/warmstart.yaml").data for run in runs]
    assert uses[0] == uses[1] and uses[0].start_token == 10 * 8 * 65


def test_warmstart_equals_grow_then_train(warm, scratch, base, tiny, tmp_path):
    warmstart_grow.setup(base=base, target=tiny[48], out_dir=tmp_path / "grown")
    runs = warm("warm"), scratch("trained", target=None, lr=None, initial_checkpoint_dir=tmp_path / "grown")
    assert_same_weights(*(run / "final" for run in runs))
    one, two = (Record.load(run / "final/warmstart.yaml") for run in runs)
    assert (one.lineage, one.growth, one.data) == (two.lineage, two.growth, two.data)


def test_perturb_0_starts_from_the_shrunk_base_alone(warm, tmp_path):
    for perturb, seed in itertools.product((0.0, 1.0), (1, 2)):
        warm(f"{perturb}-{seed}", perturb=perturb, seed=seed, train=replace(TRAIN, max_steps=1))
    first = {run.name: losses(run, "val_loss")[0] for run in tmp_path.iterdir()}
    assert first["0.0-1"] == first["0.0-2"] and first["1.0-1"] != first["1.0-2"]


def test_a_checkpoint_starts_with_its_own_loss_under_sp_and_under_another_mup_base(warm, scratch, tiny, tmp_path):
    wide = warm("wide") / "final"
    expected = losses(wide.parent, "val_loss")[-1]
    other = tmp_path / "other.yaml"  # as wide as the checkpoint, with heads of the muP base's size
    config = yaml.safe_load(Path(tiny[48]).read_text()) | dict(n_head=6, n_query_groups=6, head_size=8)
    other.write_text(yaml.safe_dump(config))
    for name, more in (("as_is", {}), ("sp", dict(parametrization="sp")), ("mup_base", dict(mup_base=str(other)))):
        run = scratch(name, target=None, initial_checkpoint_dir=wide, train=replace(TRAIN, max_steps=1), **more)
        assert losses(run, "val_loss")[0] == pytest.approx(expected, abs=1e-5), name


def test_a_comparison_run_takes_the_bases_tokenizer(scratch, base, tiny):
    run = scratch(mup_base=str(base), target=tiny[48], train=replace(TRAIN, max_steps=1))
    assert (run / "final/tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_a_chain_keeps_its_first_mup_base_and_reads_no_token_twice(warm, tiny, tmp_path):
    wider = tmp_path / "wider.yaml"
    config = yaml.safe_load(Path(tiny[48]).read_text()) | dict(n_embd=96, n_head=8, n_query_groups=8, head_size=12)
    wider.write_text(yaml.safe_dump(config | dict(name="neox-96", intermediate_size=384)))
    third = warm("third", base=warm("second") / "final", target=str(wider))
    record = Record.load(third / "final/warmstart.yaml")
    assert record.mup_base_config["n_embd"] == 16 and record.width_mult == 6
    assert [ancestor.name for ancestor in record.lineage] == ["neox-16", "neox-48"]
    assert [ancestor.growth and ancestor.growth.shrink for ancestor in record.lineage] == [None, 0.4]
    ranges = [(use.start_token, use.stop_token) for use in record.data_uses]
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges)) and len(ranges) == 3


# --- learning rates, validation, budget ---------------------------------------------------------------------------


def test_groups_have_mups_rates_times_the_schedule_at_every_step(warm, tmp_path, monkeypatch):
    seen = []
    set_learning_rate = parametrization.set_learning_rate

    def record(optimizer, base_lr, multiplier):
        set_learning_rate(optimizer, base_lr, multiplier)
        seen.append({round(group["lr_scale"], 6): group["lr"] for group in optimizer.param_groups if group["params"]})

    monkeypatch.setattr(parametrization, "set_learning_rate", record)
    train = replace(TRAIN, max_steps=8, lr_warmup_steps=2, min_lr=0.25, save_interval=3)
    warm(train=train, schedule="cosine")
    expected = [0.0, 0.5, *(0.25 + 0.375 * (1 + math.cos(math.pi * step / 6)) for step in range(6))]
    for step, (rates, multiplier) in enumerate(zip(seen, expected, strict=True)):
        assert rates == pytest.approx({1.0: 0.02 * multiplier, round(1 / 3, 6): 0.02 / 3 * multiplier}), step
    logged = [row["learning_rate"] for row in read_metrics(tmp_path / "metrics.csv") if "learning_rate" in row]
    assert logged == pytest.approx([0.02 * m for m in expected])

    seen.clear()  # and after a resume in the middle
    warm(train=train, schedule="cosine", resume=tmp_path / "step-00000003")
    for rates, multiplier in zip(seen, expected[3:], strict=True):
        assert rates == pytest.approx({1.0: 0.02 * multiplier, round(1 / 3, 6): 0.02 / 3 * multiplier})


def test_validations_are_a_tenth_of_the_run_apart_and_not_twice_at_its_end(warm):
    run = warm(train=replace(TRAIN, max_steps=21), eval=EvalArgs(max_iters=4))
    steps = [row["step"] for row in read_metrics(run / "metrics.csv") if "val_loss" in row]
    assert steps == [0, 3, 6, 9, 12, 15, 18, 21]


def test_tokens_per_sec_counts_every_step_and_no_validation_or_save(warm, tmp_path, monkeypatch):
    def slow(seconds, function):
        def slowed(*args):
            time.sleep(seconds)
            return function(*args)

        return slowed

    monkeypatch.setattr(parametrization, "set_learning_rate", slow(0.05, parametrization.set_learning_rate))
    monkeypatch.setattr(pretrain, "validate", slow(0.25, pretrain.validate))
    monkeypatch.setattr(breaking_off, "save", slow(0.5, breaking_off.save))
    train = replace(TRAIN, max_steps=8, log_interval=4, save_interval=3)
    start = time.perf_counter()
    warm(train=train, eval=EvalArgs(max_iters=4, interval=1))
    whole = time.perf_counter() - start
    logged = [row for row in read_metrics(tmp_path / "metrics.csv") if "tokens_per_sec" in row]
    seconds = [4 * 8 * 64 / row["tokens_per_sec"] for row in logged]
    assert len(seconds) == 2 and min(seconds) >= 4 * 0.05
    assert sum(seconds) <= logged[-1]["seconds"] - 2 * 0.5 + 0.01  # two saves, which count among seconds
    assert logged[-1]["seconds"] <= whole - 8 * 0.25 - 0.5  # no validation does, nor the save at the end


def test_the_gradients_norm_is_told_as_it_was_before_clipping(scratch):
    found = {limit: losses(scratch(f"{limit}", train=replace(TRAIN, max_norm=limit)), "grad_norm")
             for limit in (None, 1e9, 1e-3)}  # fmt: skip
    assert found[None] == pytest.approx(found[1e9], rel=1e-6) and len(found[None]) == 6
    assert found[1e-3][0] == pytest.approx(found[None][0], rel=1e-6) and found[None][0] > 0.01


def test_a_line_and_the_logger_tell_what_litgpts_and_wandbs_users_look_for(scratch, capsys):
    out_dir = scratch()
    lines = [line for line in capsys.readouterr().out.splitlines() if " tokens/s" in line]
    assert re.search(
        r"step +6 of 6 \| loss \d\.\d+ \| grad norm \d\S+ \| [\d,]+ tokens/s \| \d+\.\d% of the measured peak"
        r" \| \d+ s left",
        lines[-1],
    )
    with (out_dir / "logs/csv/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = {"train/loss": "loss", "val/loss": "val_loss", "train/grad_norm": "grad_norm",
             "train/learning_rate": "learning_rate", "val/perplexity": "val_perplexity",
             "val/bits_per_byte": "val_bits_per_byte", "throughput/tokens_per_sec": "tokens_per_sec",
             "val_ppl": "val_perplexity", "throughput/tokens": "tokens", "throughput/time": "seconds"}  # fmt: skip
    for name, ours in names.items():
        assert [row[name] for row in rows] == [row[ours] for row in rows] and any(row[name] for row in rows), name
    assert {"throughput/device/mfu", "throughput/remaining_time"} <= rows[0].keys()
    assert "mfu" not in (out_dir / "metrics.csv").read_text()  # a clock's, which tokens_per_sec gives


def test_a_resumed_run_goes_on_with_its_run_of_wandb(scratch, tmp_path, monkeypatch):
    asked = []

    def choose(logger_name: str, out_dir: Path, **more: Any) -> CSVLogger:
        asked.append((logger_name, more["id"], more["resume"]))
        return CSVLogger(out_dir, version=more["id"])

    monkeypatch.setattr(pretrain, "choose_logger", choose)
    monkeypatch.setattr(CSVLogger, "log_hyperparams", lambda *_: None, raising=False)
    scratch(logger_name="wandb", train=replace(TRAIN, max_steps=3))
    scratch(logger_name="wandb", resume=True)
    (_, first, allowed), again = asked
    assert again == ("wandb", first, "allow") and allowed == "allow" and re.fullmatch(r"[0-9a-f]{8}", first)
    scratch("another", logger_name="wandb")
    assert asked[-1][1] != first
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    scratch("named", logger_name="wandb")
    assert asked[-1][1] == "mine"


def test_wandb_itself_goes_on_with_the_same_run(scratch, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    for more in (dict(train=replace(TRAIN, max_steps=3)), dict(resume=True)):
        scratch("run", logger_name="wandb", **more)
        __import__("wandb").finish()
    ids = [folder.name.rpartition("-")[2] for folder in (tmp_path / "wandb").glob("offline-run-*")]
    recorded = Record.load(tmp_path / "run/final/warmstart.yaml").training["wandb_id"]
    assert ids and set(ids) == {recorded}


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4, 8])
def test_validation_is_the_same_blocks_whatever_the_micro_batch(warm, tiny_settings, micro_batch_size):
    train = replace(TRAIN, max_steps=1, micro_batch_size=micro_batch_size)
    run = warm(train=train, eval=EvalArgs(max_iters=7))
    model = build_from(run / "final")
    data = tiny_settings["data"]
    blocks = torch.from_numpy(data.tokens("val")[: 7 * 65].astype("int64")).view(7, 65)
    logits = model(blocks[:, :-1])
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten()).item()
    assert losses(run, "val_loss")[-1] == pytest.approx(expected, abs=2e-5)


def build_from(folder: Path) -> GPT:
    model = GPT(Config.from_file(folder / "model_config.yaml"))
    model.load_state_dict(torch.load(folder / "lit_model.pth", weights_only=True))
    return model


def test_the_budget_is_cut_to_whole_steps_and_max_tokens_goes_before_tokens_per_param(warm):
    for name, arguments, tokens in (
        ("per_param", dict(tokens_per_param=0.01, train=TrainArgs(save_interval=None)), 4096),
        ("max_tokens", dict(train=TrainArgs(max_tokens=1500)), 1024),
        ("max_steps", dict(train=TrainArgs(max_steps=1)), 512),
    ):
        run = warm(name, **arguments)
        record = Record.load(run / "final/warmstart.yaml")
        assert record.tokens == tokens, (name, record.parameters)
        assert len(losses(run)) == tokens // 512
    assert record.matmul_flops > 0


def test_max_time_ends_the_run_with_a_checkpoint(warm):
    run = warm(train=replace(TRAIN, max_steps=400, max_time=1.0))
    assert 0 < Record.load(run / "final/warmstart.yaml").step_count < 400


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16)])
def test_bf16_stays_close_to_fp32(warm, precision, dtype):
    runs = [warm(name, precision=name) for name in (precision, "32-true")]
    assert weights(runs[0] / "final")["lm_head.weight"].dtype == dtype
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), abs=0.05)


def test_without_a_compiler_training_goes_on_eagerly_and_says_so(warm, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    warm(train=replace(TRAIN, max_steps=1), compile=True)
    told = [line for line in capsys.readouterr().out.splitlines() if "torch.compile" in line]
    assert told == ["Training without torch.compile: no C++ compiler 'no-such-compiler'; install one for more speed"]
