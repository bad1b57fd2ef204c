"""A run stopped, killed, resumed or diverged: what is saved, and with what it goes on."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from litgpt_warmstart.data.stdlib_text import stdlib_documents
from litgpt_warmstart.data.use import DataUse
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import locked
from litgpt_warmstart.method import parametrization
from litgpt_warmstart.run import train as pretrain
from litgpt_warmstart.run.folder import check_free, newest_checkpoint
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.spec import EvalArgs
from tests.conftest import TRAIN, losses, weights


@pytest.mark.slow
def test_ctrl_c_reaches_the_loaders_workers_too_and_the_run_still_saves(tiny, stdlib_path, tmp_path):
    texts, out_dir = tmp_path / "texts", tmp_path / "run"
    texts.mkdir()
    for i, text in enumerate(list(stdlib_documents().values())[:3]):
        (texts / f"{i}.txt").write_text((text + "\n") * (1 + 400_000 // (len(text) + 1)))
    process = subprocess.Popen(
        [sys.executable, "-m", "litgpt_warmstart", "warmstart_scratch", "--target", tiny[16], "--lr", "0.02",
         "--data", "TextFiles", "--data.train_data_path", texts, "--data.num_workers", "2",  # spawned, by litdata
         "--tokenizer_dir", stdlib_path, "--train.global_batch_size", "8", "--train.max_steps", "150",
         "--train.save_interval", "5", "--eval.max_iters", "8", "--compile", "false", "--precision", "32-true",
         "--logger_name", "csv", "--out_dir", out_dir],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (out_dir / "step-00000005").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "Traceback" not in output and output.count("stopping after this optimizer step") == 1
    saved = Record.load(newest_checkpoint(out_dir)[0] / "warmstart.yaml")
    assert 5 <= saved.step_count < 150 and "Go on with:" in output


def test_resume_goes_on_at_the_next_token_for_another_micro_batch(scratch, tmp_path):
    expected = losses(scratch(train=replace(TRAIN, save_interval=2)))
    scratch(train=replace(TRAIN, micro_batch_size=2), resume=tmp_path / "step-00000002")
    assert losses(tmp_path) == pytest.approx(expected, abs=1e-4)
    assert Record.load(tmp_path / "final/warmstart.yaml").data.stop_token == 6 * 8 * 65


def test_text_from_python_that_names_a_checkpoint_to_resume_from_is_a_path(scratch, tmp_path, capsys, refused):
    scratch(train=replace(TRAIN, save_interval=2))
    scratch(resume=str(tmp_path / "step-00000002"))
    assert f"Resuming {str(tmp_path / 'step-00000002')!r} at step 2" in capsys.readouterr().out
    assert "--resume 'step-2' has no training_state.pth" in refused(scratch, resume="step-2")
    scratch(resume="auto")
    assert "nothing to do" in capsys.readouterr().out


def test_a_users_folder_is_in_the_way_only_where_a_run_would_write(tmp_path):
    (tmp_path / "step-5").mkdir()
    check_free(tmp_path)
    (tmp_path / "step-00000005").mkdir()
    with pytest.raises(UserError, match="step-00000005' was not written by a run"):
        check_free(tmp_path)


def test_a_finished_run_is_left_alone_and_a_larger_budget_goes_on(scratch, tmp_path, capsys):
    stamp = os.stat(scratch() / "final/lit_model.pth").st_mtime_ns
    scratch(resume="auto")
    assert "nothing to do" in capsys.readouterr().out
    assert os.stat(tmp_path / "final/lit_model.pth").st_mtime_ns == stamp
    scratch(train=replace(TRAIN, max_steps=8), resume=True)
    assert Record.load(tmp_path / "final/warmstart.yaml").step_count == 8 == len(losses(tmp_path))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (dict(lr=0.01), "lr was 0.02, now 0.01"),
        (dict(seed=1), "seed was 42, now 1"),
        (dict(train=replace(TRAIN, global_batch_size=4)), "global_batch_size was 8, now 4"),
        (dict(optimizer="Adam"), "optimizer was AdamW, betas [0.9, 0.95], weight_decay 0.0, now Adam, betas"),
        (dict(precision="bf16-true"), "precision was 32-true, now bf16-true"),
        (dict(parametrization="sp"), "parametrization was mup, now sp"),
        (dict(schedule="cosine"), "schedule was constant, now cosine"),
        (dict(train=replace(TRAIN, max_norm=0.5)), "max_norm was 1.0, now 0.5"),
    ],
)
def test_resume_with_another_setting_is_refused_by_name(scratch, refused, change, told):
    scratch()
    assert told in refused(scratch, resume=True, **change)


def test_overwrite_removes_nothing_of_a_run_that_another_process_trains(scratch, tmp_path, refused):
    scratch()
    with locked(tmp_path, "held"):
        assert "another process is training the run in" in refused(scratch, overwrite=True)
    assert len(losses(tmp_path)) == TRAIN.max_steps and (tmp_path / "final").is_dir()


def test_a_run_that_another_process_went_on_with_is_not_begun_again(scratch, tmp_path, capsys, monkeypatch, refused):
    scratch()
    before = iter([None])  # as it was before the other process saved
    monkeypatch.setattr(pretrain, "find_resume_dir", lambda spec: next(before, tmp_path / "final"))
    capsys.readouterr()
    assert "another process has gone on with the run" in refused(scratch, resume="auto")
    assert len(losses(tmp_path)) == TRAIN.max_steps


def test_a_resumed_run_on_other_text_of_litgpts_modules_is_refused():
    was = DataUse("litgpt.data.TextFiles", dict(train_data_path="a", num_workers=1), 0)
    for same, init_args in (
        (True, dict(train_data_path=Path("a"), num_workers=4, of_a_later_version=1)),
        (False, dict(train_data_path="b")),
    ):
        now = replace(was, init_args=init_args)
        assert (was.identity(now) == now.identity(was)) == same


def test_a_diverged_run_says_so_and_keeps_the_last_checkpoint(scratch, tmp_path, refused, monkeypatch):
    scratch(train=replace(TRAIN, save_interval=2, max_steps=3))
    set_learning_rate = parametrization.set_learning_rate
    monkeypatch.setattr(
        parametrization, "set_learning_rate", lambda optimizer, lr, m: set_learning_rate(optimizer, float("nan"), m)
    )
    for max_steps, told in ((9, "the loss is nan at step 5"), (4, "loss is nan at step 4")):
        train = replace(TRAIN, max_steps=max_steps)  # seen by the next loss, and in the last step by the validation
        line = refused(scratch, train=train, resume=True, eval=EvalArgs(interval=100, max_iters=2))
        assert told in line and "lower --lr" in line and "final" in line
    unseen = EvalArgs(interval=100, final_validation=False, max_iters=2)  # and at the latest before anything is saved
    line = refused(scratch, train=replace(TRAIN, max_steps=4), resume=True, eval=unseen)
    assert "is not finite at step 4; nothing was saved there" in line
    assert Record.load(tmp_path / "final/warmstart.yaml").step_count == 3
    assert torch.isfinite(weights(tmp_path / "final")["lm_head.weight"]).all()
