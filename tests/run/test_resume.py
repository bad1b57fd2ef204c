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

from litgpt_warmstart.__main__ import main
from litgpt_warmstart.commands import warmstart_scratch
from litgpt_warmstart.data.stdlib_text import stdlib_documents
from litgpt_warmstart.data.use import DataUse
from litgpt_warmstart.files import LOCK, locked
from litgpt_warmstart.method import parametrization
from litgpt_warmstart.run import train as pretrain
from litgpt_warmstart.run.folder import MANIFEST, OUTCOME, newest_checkpoint
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.spec import EvalArgs
from tests.conftest import TRAIN, assert_same_weights, losses, weights


def command(out_dir: Path, tiny: dict, stdlib_path: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "litgpt_warmstart", "warmstart_scratch", "--target", tiny[16], "--lr", "0.02",
        "--data", "StdlibText", "--data.data_path", str(stdlib_path), "--train.global_batch_size", "8",
        "--train.max_steps", "60", "--train.save_interval", "5", "--eval.interval", "20", "--eval.max_iters", "8",
        "--compile", "false", "--precision", "32-true", "--logger_name", "csv", "--out_dir", str(out_dir), *more,
    ]  # fmt: skip


def in_this_process(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command without the seconds that a process of its own takes to begin."""
    monkeypatch.setattr(sys, "argv", ["litgpt-warmstart", *arguments[3:]])
    main()


def start_and_signal(arguments: list[str], folder: Path, number: int) -> subprocess.CompletedProcess:
    """Start a run and send it a signal once a checkpoint folder is there."""
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not folder.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    return subprocess.CompletedProcess(arguments, process.returncode, output)


@pytest.mark.slow
def test_a_run_killed_in_the_middle_and_resumed_ends_with_the_same_weights_bit_for_bit(
    tiny, stdlib_path, tmp_path, monkeypatch
):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    in_this_process(command(undisturbed, tiny, stdlib_path), monkeypatch)
    result = start_and_signal(command(killed, tiny, stdlib_path), killed / "step-00000020", signal.SIGKILL)
    assert result.returncode == -signal.SIGKILL and not (killed / "final").exists()
    for folder in killed.glob("step-*"):  # whatever is there is whole
        assert weights(folder) and Record.load(folder / "warmstart.yaml").step_count == int(folder.name[5:])
    in_this_process(command(killed, tiny, stdlib_path, "--resume", "true"), monkeypatch)
    assert_same_weights(undisturbed / "final", killed / "final")
    assert losses(undisturbed) == losses(killed)
    assert losses(undisturbed, "val_loss") == losses(killed, "val_loss")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(tiny, stdlib_path, tmp_path, number):
    result = start_and_signal(command(tmp_path, tiny, stdlib_path), tmp_path / "step-00000005", number)
    assert result.returncode == 128 + number, result.stdout
    assert "Traceback" not in result.stdout
    told = result.stdout.split("Go on with:")[1].strip().splitlines()[0]
    assert told.endswith("--resume true") and "warmstart_scratch --target" in told
    saved = newest_checkpoint(tmp_path)[0]
    assert 5 <= Record.load(saved / "warmstart.yaml").step_count < 60
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == [LOCK, MANIFEST]


@pytest.mark.slow
def test_ctrl_c_reaches_the_loaders_workers_too_and_the_run_still_saves(tiny, stdlib_path, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for i, text in enumerate(list(stdlib_documents().values())[:3]):
        (texts / f"{i}.txt").write_text((text + "\n") * (1 + 400_000 // (len(text) + 1)))
    data = ["--data", "TextFiles", "--data.train_data_path", str(texts), "--data.num_workers", "2"]
    arguments = [*command(tmp_path / "run", tiny, stdlib_path), "--tokenizer_dir", str(stdlib_path)]
    start = arguments.index("--data")
    arguments[start : start + 4] = data  # litdata prepares it here and makes the workers spawned ones
    arguments[arguments.index("--train.max_steps") + 1] = "150"
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/step-00000005").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "Traceback" not in output and output.count("stopping after this optimizer step") == 1
    saved = Record.load(newest_checkpoint(tmp_path / "run")[0] / "warmstart.yaml")
    assert 5 <= saved.step_count < 150 and "Go on with:" in output


def test_resume_goes_on_at_the_next_token_for_another_micro_batch(tiny, tiny_settings, tmp_path):
    shared = dict(target=tiny[16], lr=0.02, out_dir=tmp_path, **tiny_settings)
    warmstart_scratch.setup(train=replace(TRAIN, save_interval=2), **shared)
    expected = losses(tmp_path)
    warmstart_scratch.setup(train=replace(TRAIN, micro_batch_size=2), resume=tmp_path / "step-00000002", **shared)
    assert losses(tmp_path) == pytest.approx(expected, abs=1e-4)
    assert Record.load(tmp_path / "final/warmstart.yaml").data.stop_token == 6 * 8 * 65


def test_a_finished_run_is_left_alone_and_a_larger_budget_goes_on(tiny, tiny_settings, tmp_path, capsys):
    shared = dict(target=tiny[16], lr=0.02, out_dir=tmp_path, **tiny_settings)
    warmstart_scratch.setup(train=TRAIN, **shared)
    stamp = os.stat(tmp_path / "final/lit_model.pth").st_mtime_ns
    warmstart_scratch.setup(train=TRAIN, resume="auto", **shared)
    assert "nothing to do" in capsys.readouterr().out
    assert os.stat(tmp_path / "final/lit_model.pth").st_mtime_ns == stamp
    warmstart_scratch.setup(train=replace(TRAIN, max_steps=8), resume=True, **shared)
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
def test_resume_with_another_setting_is_refused_by_name(tiny, tiny_settings, tmp_path, capsys, change, told):
    shared = dict(target=tiny[16], lr=0.02, out_dir=tmp_path, train=TRAIN, **tiny_settings)
    warmstart_scratch.setup(**shared)
    with pytest.raises(SystemExit):
        warmstart_scratch.setup(**shared | dict(resume=True) | change)
    assert told in capsys.readouterr().err


def test_two_processes_do_not_train_the_same_run_at_once(tiny, tiny_settings, tmp_path, capsys):
    settings = dict(target=tiny[16], lr=0.02, out_dir=tmp_path, train=TRAIN, **tiny_settings)
    warmstart_scratch.setup(**settings)
    before = (tmp_path / "metrics.csv").read_text()
    capsys.readouterr()
    with locked(tmp_path, "held"), pytest.raises(SystemExit):
        warmstart_scratch.setup(**settings, overwrite=True)
    assert capsys.readouterr().err == (
        f"litgpt warmstart_scratch: error: another process is training the run in {str(tmp_path)!r}: wait for it, or"
        " choose another --out_dir\n"
    )
    assert (tmp_path / "metrics.csv").read_text() == before and (tmp_path / "final").is_dir()
    (tmp_path / OUTCOME).write_text('{"status": "finished", "step_count": 6, "settings": {}}')
    warmstart_scratch.setup(**settings, overwrite=True)
    assert not (tmp_path / OUTCOME).exists()


def test_a_run_that_another_process_went_on_with_is_not_begun_again(tiny, tiny_settings, tmp_path, capsys, monkeypatch):
    settings = dict(target=tiny[16], lr=0.02, out_dir=tmp_path, train=TRAIN, **tiny_settings)
    warmstart_scratch.setup(**settings)
    before = iter([None])  # as it was before the other process saved
    monkeypatch.setattr(pretrain, "find_resume_dir", lambda spec: next(before, tmp_path / "final"))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        warmstart_scratch.setup(**settings, resume="auto")
    assert "another process has gone on with the run" in capsys.readouterr().err
    assert len(losses(tmp_path)) == TRAIN.max_steps


def test_a_resumed_run_on_other_text_of_litgpts_modules_is_refused():
    was = DataUse("litgpt.data.TextFiles", dict(train_data_path="a", num_workers=1), 0)
    for same, init_args in (
        (True, dict(train_data_path=Path("a"), num_workers=4, of_a_later_version=1)),
        (False, dict(train_data_path="b")),
    ):
        now = replace(was, init_args=init_args)
        assert (was.identity(now) == now.identity(was)) == same


def test_a_diverged_run_says_so_and_keeps_the_last_checkpoint(tiny, tiny_settings, tmp_path, capsys, monkeypatch):
    shared = dict(target=tiny[16], lr=0.02, out_dir=tmp_path, **tiny_settings)
    warmstart_scratch.setup(train=replace(TRAIN, save_interval=2, max_steps=3), **shared)
    set_learning_rate = parametrization.set_learning_rate
    monkeypatch.setattr(
        parametrization, "set_learning_rate", lambda optimizer, lr, m: set_learning_rate(optimizer, float("nan"), m)
    )
    shared["eval"] = EvalArgs(interval=100, max_iters=2)
    for max_steps, told in ((9, "the loss is nan at step 5"), (4, "loss is nan at step 4")):
        with pytest.raises(SystemExit) as error:  # seen by the next loss, and in the last step by the validation
            warmstart_scratch.setup(train=replace(TRAIN, max_steps=max_steps), resume=True, **shared)
        assert error.value.code == 1
        output = capsys.readouterr().err
        assert told in output and "lower --lr" in output and "final" in output
    settings = shared | dict(eval=EvalArgs(final_validation=False, max_iters=2))
    with pytest.raises(SystemExit):  # and at the latest before anything is saved
        warmstart_scratch.setup(train=replace(TRAIN, max_steps=4), resume=True, **settings)
    assert "is not finite at step 4; nothing was saved there" in capsys.readouterr().err
    assert Record.load(tmp_path / "final/warmstart.yaml").step_count == 3
    assert torch.isfinite(weights(tmp_path / "final")["lm_head.weight"]).all()
