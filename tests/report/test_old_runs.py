"""Run folders in: whole ones, half-written ones, and other things."""

import shutil

import pytest

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.report.event_files import LOGS
from litgpt_warmstart.report.old_runs import Run, Unread, display_names, find, read_or_say
from tests.report.conftest import FLOPS_PER_TOKEN, PER_STEP


def test_a_run_is_read_with_its_curves_and_status(make_run):
    run = Run.read(make_run("a", [8.0, 6.0, 4.0]))
    assert run.val_losses == [(0, 8.0), (20 * PER_STEP, 6.0), (40 * PER_STEP, 4.0)]
    assert run.losses[0] == (PER_STEP, 8.9) and len(run.losses) == 40
    assert run.status == "finished" and run.tokens == 40 * PER_STEP and run.tokens_per_param == 2.0
    assert run.flops_per_token == pytest.approx(FLOPS_PER_TOKEN[48])


def test_flops_of_an_older_metrics_file_are_counted_from_the_config(make_run):
    assert Run.read(make_run("a", [8.0, 4.0], hoffmann=False)).flops_per_token == FLOPS_PER_TOKEN[48]


def test_runs_are_found_beneath_folders_each_once_and_not_in_their_own_logs(study):
    logs = study.folder / "base" / "logs" / "csv" / "version_0"
    logs.mkdir(parents=True)
    shutil.copy(study.folder / "base" / "metrics.csv", logs)
    found = find([study.folder, study.folder / "base", study.folder.parent])
    assert len(found.runs) == 7 and found.unread == ()


def test_a_run_whose_metrics_go_on_behind_its_checkpoint_has_not_finished(make_run):
    out_dir = make_run("a", [8.0, 6.0, 4.0], planned=40)
    make_run.metrics(out_dir, [8.0, 6.0, 4.0], 60)
    run = Run.read(out_dir)
    assert run.status == "not finished" and run.told.startswith("step 60 of 40; last written 20")


def test_what_is_half_written_is_said_and_skipped(study):
    study("no-checkpoint", [8.0, 7.0], checkpoint=None, steps=4)
    (study.folder / "header").mkdir()
    (study.folder / "header" / "metrics.csv").write_text("step,tokens,loss\n")
    torn = study("torn", [8.0, 7.0])
    (torn / "final" / "warmstart.yaml").write_text("name: [")
    odd = study("odd", [8.0, 7.0])
    (odd / "metrics.csv").write_text("step,tokens,loss\n1,512,much\n")
    gone = study("gone", [8.0, 7.0])
    (gone / "final" / "hyperparameters.yaml").unlink()
    silent = study("silent", [8.0, 7.0])
    (silent / "metrics.csv").write_text("step,tokens,loss\n1,512,8.5\n")
    found = find([study.folder])
    said = {unread.out_dir.name: unread for unread in found.unread}
    assert len(found.runs) == 7 and said.keys() == {"no-checkpoint", "header", "torn", "odd", "gone", "silent"}
    assert said["no-checkpoint"].status == "not finished" and "no checkpoint yet" in said["no-checkpoint"].told
    assert (said["no-checkpoint"].step_count, said["no-checkpoint"].val_loss) == (4, 7.0)
    assert said["header"].status == "empty"
    assert all(said[name].status == "damaged" for name in ("torn", "odd", "gone", "silent"))
    assert "has no validation losses" in said["silent"].told
    assert all("\n" not in unread.told for unread in found.unread)


def test_a_diverged_run_without_a_checkpoint_says_why(make_run):
    out_dir = make_run("a", [8.0, 7.0], checkpoint=None, steps=4)
    (out_dir / "outcome.json").write_text('{"status": "diverged", "reason": "the loss is nan at step 4"}')
    read = read_or_say(out_dir)
    assert isinstance(read, Unread) and (read.status, read.told) == ("diverged", "the loss is nan at step 4")


def test_paths_without_runs_are_refused_in_one_line(make_run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for path, told in (("missing", "does not exist"), ("file", "is a file"), ("empty", "no run in this folder")):
        with pytest.raises(UserError, match=told) as error:
            find([tmp_path / path])
        assert "\n" not in str(error.value)
    make_run("a", [8.0, 7.0])
    found = find([make_run.folder, tmp_path / "empty"])
    assert len(found.runs) == 1 and found.unread[0].told == "no run in this folder"


def test_tensorboard_logs_stand_in_for_a_missing_metrics_file(make_run):
    from lightning.fabric.loggers import TensorBoardLogger

    from litgpt_warmstart.run.metrics import read_metrics

    out_dir = make_run("a", [8.0, 6.0, 4.0])
    plain = Run.read(out_dir)
    rows = read_metrics(out_dir / "metrics.csv")
    logger = TensorBoardLogger(out_dir / LOGS.parent, name=LOGS.name)
    for row in rows:
        step = int(row.pop("step"))
        if step <= 30:
            logger.log_metrics({name: value + (step > 20) for name, value in row.items()}, step)
    logger.finalize("success")
    resumed = TensorBoardLogger(out_dir / LOGS.parent, name=LOGS.name)  # version_1, again from step 21
    for row in read_metrics(out_dir / "metrics.csv"):
        if (step := int(row.pop("step"))) > 20:
            resumed.log_metrics(row, step)
    resumed.finalize("success")
    (out_dir / "metrics.csv").unlink()
    run = Run.read(out_dir)
    assert run.val_losses == plain.val_losses and run.status == "finished"
    assert [t for t, _ in run.losses] == [t for t, _ in plain.losses]
    assert [loss for _, loss in run.losses] == pytest.approx([loss for _, loss in plain.losses])


def test_folders_are_called_by_what_tells_them_apart(tmp_path):
    a, b = tmp_path / "x" / "a", tmp_path / "y" / "b"
    assert display_names([a, b]) == {a: "x/a", b: "y/b"} and display_names([a]) == {a: "a"}
    assert display_names([]) == {}
