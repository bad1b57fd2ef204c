"""Bad input: one line that names the thing and the remedy, status 1 or 2, no traceback, nothing written."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from litgpt.data import Alpaca, LitData, TextFiles, TinyLlama

from litgpt_warmstart.__main__ import main
from litgpt_warmstart.commands import warmstart, warmstart_grow, warmstart_plan, warmstart_scratch
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.spec import EvalArgs, TrainArgs
from tests.conftest import llama, neox


@pytest.fixture
def refused(base, tiny, tiny_settings, tmp_path, capsys):
    """Call ``warmstart`` (or another command) with changed arguments and return its one line."""

    def call(function=warmstart.setup, **changes) -> str:
        out_dir = tmp_path / "out"
        shared = dict(base=base, target=tiny[48], train=TrainArgs(max_steps=2), out_dir=out_dir, **tiny_settings)
        if function is warmstart_scratch.setup:
            del shared["base"]
        if function is warmstart_grow.setup:
            shared = {k: shared[k] for k in ("base", "target", "out_dir")}
        before = sorted(out_dir.rglob("*"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as error:
            function(**shared | changes)
        told = capsys.readouterr().err.strip()
        assert error.value.code in (1, 2) and len(told.splitlines()) == 1, told
        assert sorted(out_dir.rglob("*")) == before, "something was written"
        return told

    return call


def test_one_device_may_be_given_as_text(base, tiny, capsys):
    warmstart_plan.setup(base=base, target=tiny[48], devices="1", precision="32-true", measure=False)
    assert "time was not measured" in capsys.readouterr().out


def copied(base: Path, to: Path) -> Path:
    shutil.copytree(base, to)
    return to


def config_file(config, folder: Path) -> str:
    from litgpt.utils import save_config

    folder.mkdir(exist_ok=True)
    save_config(config, folder)
    return str(folder / "model_config.yaml")


@pytest.mark.parametrize("function", [warmstart.setup, warmstart_grow.setup])
def test_the_base_is_missing_or_no_checkpoint(refused, base, tmp_path, function):
    assert "--base is missing" in refused(function, base=None)
    assert "no-such' does not exist" in refused(function, base=tmp_path / "no-such")
    (tmp_path / "empty").mkdir()
    assert "lit_model.pth is missing" in refused(function, base=tmp_path / "empty")
    assert "give its final/ or step-*/ folder" in refused(function, base=base.parent)


def test_all_that_is_missing_is_said_at_once_and_what_to_type_first(refused):
    told = refused(base=None, target=None)
    assert "--base and --target are missing" in told and "litgpt warmstart_scratch --target 5M" in told
    assert "litgpt download" in told and "choose one of 5M" in told
    told = refused(warmstart_grow.setup, base=None, target=None, out_dir=None)
    assert "--base, --target and --out_dir are missing" in told and "the folder to write" in told


def test_the_weights_are_cut_off(refused, base, tmp_path):
    folder = copied(base, tmp_path / "cut")
    content = (folder / "lit_model.pth").read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 20):
        (folder / "lit_model.pth").write_bytes(content[:length])
        assert "cut off or damaged" in refused(base=folder), length


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_weights_hold_nan_or_inf(refused, base, tmp_path, value):
    folder = copied(base, tmp_path / "nan")
    weights = torch.load(folder / "lit_model.pth")
    weights["transformer.h.1.mlp.fc.bias"][3] = value
    torch.save(weights, folder / "lit_model.pth")
    (folder / "warmstart.yaml").unlink()  # as other programs leave it: the record has the file's SHA-256
    more = dict(lr=0.1, train=TrainArgs(max_steps=2, global_batch_size=8))
    for function, options in ((warmstart.setup, more), (warmstart_grow.setup, {})):
        told = refused(function, base=folder, **options)
        assert "NaN or Inf in transformer.h.1.mlp.fc.bias" in told


def test_the_record_is_of_a_newer_version(refused, base, tmp_path):
    folder = copied(base, tmp_path / "newer")
    content = yaml.safe_load((folder / "warmstart.yaml").read_text())
    (folder / "warmstart.yaml").write_text(yaml.safe_dump(content | {"format_version": 99}))
    assert "upgrade it" in refused(base=folder)


@pytest.mark.parametrize("function", [warmstart.setup, warmstart_grow.setup])
def test_base_and_target_do_not_fit(refused, tmp_path, function):
    target = config_file(llama(48, 4, vocab_size=4096, padded_vocab_size=4096), tmp_path / "config")
    assert "mlp_class_name" in refused(function, target=target)


def test_the_target_is_unknown_or_missing(refused, tmp_path):
    for function in (warmstart.setup, warmstart_grow.setup, warmstart_scratch.setup):
        assert "unknown scale '71M': choose one of 5M, 10M, 22M, 35M, 70M" in refused(function, target="71M")
        assert "--target is missing" in refused(function, target=None)
        assert "no.yaml': give a LitGPT name or an existing" in refused(function, target=str(tmp_path / "no.yaml"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(devices=1000), "--devices 1000: "),
        (dict(devices="1000"), "--devices 1000: "),
        (dict(devices="two"), "--devices two is no number of devices"),
        (dict(num_nodes=2), "--num_nodes 2: nothing says where the nodes meet"),
        (dict(strategy="zero"), "--strategy 'zero' is none of auto, ddp, fsdp"),
        (dict(schedule="cosin"), "--schedule 'cosin' is none of constant, warmup, cosine"),
        (dict(precision="fp32"), "--precision 'fp32' is none of bf16-true, bf16-mixed, 32-true, 16-mixed"),
        (dict(loss_impl="torch"), "--loss_impl 'torch' is none of auto, full, chunked"),
        (dict(compile="fast"), "--compile 'fast' is none of reduce-overhead, max-autotune"),
        (dict(train=TrainArgs(cooldown_shape="round")), "--train.cooldown_shape 'round' is none of linear, 1-sqrt"),
        (dict(mup_base="71M"), "unknown scale '71M'"),
        (dict(data=Alpaca()), "Alpaca is for instruction tuning"),
        (dict(data=TinyLlama("no/such")), "no/such/slimpajama/train does not exist"),
        (dict(data=TextFiles(Path("no/such"))), "No .txt files"),
        (dict(data=LitData("no/such", num_workers=1)), "LitData"),
        (dict(tokenizer_dir=Path("no/such")), "--tokenizer_dir"),
        (dict(train=TrainArgs(epochs=1)), "--train.epochs"),
        (dict(train=TrainArgs(tie_embeddings=True)), "--train.tie_embeddings"),
        (dict(eval=EvalArgs(max_new_tokens=3)), "--eval.max_new_tokens"),
        (dict(eval=EvalArgs(interval=0)), "--eval.interval must be above 0"),
        (dict(tokens_per_param=0), "--tokens_per_param must be above 0"),
        (dict(train=TrainArgs(max_tokens=100)), "less than one step"),
        (dict(train=TrainArgs(max_seq_length=65)), "--train.max_seq_length 65 is above the model's 64"),
        (dict(logger_name="wandb"), "--logger_name wandb failed (ModuleNotFoundError"),
        (dict(out_dir=Path("x" * 300)), "cannot write --out_dir"),
        (dict(resume=True), "--resume: no checkpoint in"),
        (dict(resume=Path("no/such")), "has no training_state.pth"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_an_argument_is_wrong(refused, changes, told):
    assert told in refused(**changes)


def test_mup_base_has_no_meaning_under_sp(refused):
    assert "--mup_base" in refused(warmstart_scratch.setup, parametrization="sp", mup_base="5M")


def test_no_learning_rate_batch_size_or_data_is_known(refused, base, tmp_path):
    assert "pass --lr" in refused(warmstart_scratch.setup)
    assert "pass --train.global_batch_size" in refused(warmstart_scratch.setup, lr=0.01)
    both = refused(warmstart_scratch.setup)
    assert "no learning rate and no batch size are known" in both and "pass --lr and --train.global_batch_size" in both
    foreign = copied(base, tmp_path / "foreign")
    (foreign / "warmstart.yaml").unlink()
    batch = TrainArgs(global_batch_size=8)
    assert "has no record of its own; pass --data" in refused(base=foreign, lr=0.01, train=batch, data=None)
    all_three = refused(base=foreign, data=None)
    assert "no learning rate and no batch size" in all_three and "; no data: " in all_three


def test_the_data_is_too_short_with_both_numbers_and_what_fits(refused, base, tiny, tiny_settings, tmp_path):
    told = refused(train=TrainArgs(max_tokens=50_000_000))
    assert "49,999,872 tokens asked" in told and "left of" in told
    fits = int(told.split("--train.max_tokens ")[1].split()[0])
    asked = refused(train=TrainArgs(max_tokens=fits + 512))
    assert f"{fits + 512:,} tokens asked" in asked
    warmstart.setup(base=base, target=tiny[48], out_dir=tmp_path / "fits", resume=False,
                    train=TrainArgs(max_tokens=fits, max_time=0.1), **tiny_settings)  # fmt: skip


def test_the_data_has_another_tokenizer_than_the_base(refused, base, tmp_path):
    folder = copied(base, tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((folder / name).read_text().replace("<|endoftext|>", "<|end|>"))
    assert "gives other ids than when the checkpoint was saved" in refused(base=folder)


def test_a_model_with_fewer_classes_than_the_data_has_tokens(refused, tmp_path):
    path = config_file(neox(16, 2), tmp_path / "config")
    batch = TrainArgs(global_batch_size=8, max_steps=2)
    assert "4,096 tokens, the model 96 classes" in refused(warmstart_scratch.setup, target=path, lr=0.1, train=batch)


def test_growing_into_an_existing_folder(refused, base, tiny, tmp_path):
    assert "--out_dir is missing" in refused(warmstart_grow.setup, out_dir=None)
    warmstart_grow.setup(base=base, target=tiny[48], out_dir=tmp_path / "out")
    assert "exists: pass --overwrite true" in refused(warmstart_grow.setup)
    (tmp_path / "out/mine").write_text("1")
    for overwrite in (False, True):
        assert "was not written by this command alone: it holds mine" in refused(
            warmstart_grow.setup, overwrite=overwrite
        )
    mine = copied(base, tmp_path / "copy")
    assert "holds the base" in refused(warmstart_grow.setup, base=mine, out_dir=mine, overwrite=True)


def test_overwrite_never_deletes_what_the_run_starts_from(refused, base, tmp_path):
    run = copied(base.parent, tmp_path / "run")
    assert "starts from" in refused(base=run / "final", out_dir=run, overwrite=True)
    told = refused(warmstart_scratch.setup, mup_base=str(run / "final"), out_dir=run, overwrite=True)
    assert "starts from" in told and str(run / "final") in told
    told = refused(warmstart_grow.setup, mup_base=str(run / "final"), out_dir=run / "final", overwrite=True)
    assert "holds --mup_base" in told
    assert (run / "final/lit_model.pth").is_file()


def test_growing_to_the_bases_own_size_with_its_own_seed(refused, base, tiny, tiny_settings, tmp_path):
    assert Record.load(base / "warmstart.yaml").training["seed"] == 42
    for function in (warmstart.setup, warmstart_grow.setup):
        assert "--seed 42 is the base's own" in refused(function, target=tiny[16])
    warmstart_grow.setup(base=base, target=tiny[16], out_dir=tmp_path / "grown", seed=43)


def test_resuming_a_checkpoint_of_another_run_or_one_that_was_only_grown(refused, base, tiny, tiny_settings, tmp_path):
    shared = dict(base=base, target=tiny[48], **tiny_settings)
    for name in ("out", "other"):
        warmstart.setup(train=TrainArgs(max_steps=4, save_interval=2), out_dir=tmp_path / name, **shared)
    assert "is no part of the run" in refused(resume=tmp_path / "other/step-00000002")
    warmstart_grow.setup(base=base, target=tiny[48], out_dir=tmp_path / "grown/final")
    told = refused(resume=tmp_path / "grown/final", out_dir=tmp_path / "new")
    assert "is no checkpoint of a run" in told
    assert "was not written by a run" in refused(out_dir=tmp_path / "grown")


def test_initial_checkpoint_of_another_size(refused, base, tiny):
    told = refused(warmstart_scratch.setup, initial_checkpoint_dir=base, target=tiny[48])
    assert "has n_embd 16" in told and "leave --target out" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["warmstart", "--no_such_option", "1"], "no_such_option"),
        (["warmstart", "--shrink", "much"], "shrink"),
        (["warmstart", "--alignment", "rows"], "--alignment rows: give heads or blocks or literal or interleaved"),
        (["warm"], "warm"),
        (["warmstart_grid_search", "--lrs", "0.01", "0.03"], "lists are typed with commas: 1,2,3"),
    ],
)
def test_the_command_line_is_wrong(words, told, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["litgpt-warmstart", *words])
    with pytest.raises(SystemExit) as error:
        main()
    output = capsys.readouterr().err
    assert error.value.code == 2 and len(output.splitlines()) == 1
    assert told in output


def test_debug_shows_the_traceback(base, tiny, monkeypatch):
    monkeypatch.setenv("LITGPT_WARMSTART_DEBUG", "1")
    with pytest.raises(UserError):
        warmstart.setup(base=base, target=tiny[48], shrink=2.0)


def test_hyperparameters_yaml_is_a_config_file_of_the_command(base, tiny, tiny_settings, tmp_path):
    from jsonargparse import ArgumentParser

    warmstart.setup(base=base, target=tiny[48], out_dir=tmp_path / "one", train=TrainArgs(max_steps=2), **tiny_settings)
    parser = ArgumentParser()
    parser.add_function_arguments(warmstart.setup)
    arguments = parser.instantiate_classes(parser.parse_path(str(tmp_path / "one/final/hyperparameters.yaml")))
    again = {**arguments.as_dict(), "out_dir": tmp_path / "two"}
    again["train"] = replace(arguments.train, save_interval=None)
    warmstart.setup(**again)
    first, second = (torch.load(tmp_path / run / "final/lit_model.pth") for run in ("one", "two"))
    assert all(torch.equal(first[name], second[name]) for name in first)
