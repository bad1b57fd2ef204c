"""A run that is stopped, or that something outside it ends: it saves what it has reached and says how to go on."""

import fcntl
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.guards.conftest import MAIN, training

STEPS = 600
"""More than any of these runs gets to."""


@pytest.fixture
def words(models, from_text):
    return lambda out_dir, *more, steps=STEPS, lr=0.001: training(
        models[16], out_dir, "--lr", lr, "--train.save_interval", 2, "--eval.interval", 2, *from_text, *more,
        steps=steps, batch=4,
    )  # fmt: skip


def steps_of(folder: Path) -> int:
    return yaml.safe_load((folder / "warmstart.yaml").read_text())["step_count"]


def newest(out_dir: Path) -> Path:
    return max(out_dir.glob("step-*"))


@pytest.fixture
def once_saved():
    """Do something in another thread when a folder is there."""
    threads, ended = [], threading.Event()

    def start(folder: Path, act: Callable[[], object]) -> None:
        def wait() -> None:
            while not folder.exists() and not ended.wait(0.005):
                pass
            if folder.exists():
                act()

        threads.append(threading.Thread(target=wait))
        threads[-1].start()

    yield start
    ended.set()
    for thread in threads:
        thread.join()


def broke_off(told, out_dir: Path, *named: str) -> None:
    """It says in one line what failed and the last good checkpoint, which is whole and at its last step."""
    assert told.status == 1 and len(told.error_lines) == 1, told
    last = newest(out_dir)
    for text in (*named, repr(str(last)), "Go on with: ", "--resume true"):
        assert text in told.err, (text, told.err)
    assert steps_of(last) == int(last.name[5:]) >= 2


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_a_signal_saves_tells_the_command_and_is_the_status(command, words, tmp_path, once_saved, name):
    number = getattr(signal, name)
    once_saved(tmp_path / "step-00000002", lambda: os.kill(os.getpid(), number))
    told = command("warmstart_scratch", *words(tmp_path))
    assert told.status == 128 + number and "Traceback" not in told.err
    steps = steps_of(newest(tmp_path))
    assert f"Saved {str(newest(tmp_path))!r} at step {steps:,} of {STEPS:,}. Go on with:" in told.out
    assert command("warmstart_scratch", *words(tmp_path, "--resume", "true", "--train.max_time", 0.01)).status == 0
    assert steps_of(tmp_path / "final") >= steps


def test_a_hangup_that_is_ignored_as_under_nohup_stays_so(command, words, tmp_path, once_saved):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        once_saved(tmp_path / "step-00000002", lambda: os.kill(os.getpid(), signal.SIGHUP))
        told = command("warmstart_scratch", *words(tmp_path, steps=8))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert told.status == 0 and steps_of(tmp_path / "final") == 8


def test_a_signal_stops_a_study_whose_command_goes_on(command, models, from_text, tmp_path, once_saved):
    words = lambda tokens: (  # noqa: E731
        "warmstart_grid_search", "--target", models[16], "--lrs", 0.001, "--batch_sizes", 4, "--out_dir", tmp_path,
        "--train.max_tokens", tokens, "--train.save_interval", 2, "--train.micro_batch_size", 4, "--compile", "false",
        "--precision", "32-true", "--logger_name", "csv", "--eval.max_iters", 4, *from_text)  # fmt: skip
    cell = tmp_path / "cells/lr-0.001-batch-4-seed-42"
    once_saved(cell / "step-00000002", lambda: os.kill(os.getpid(), signal.SIGUSR1))
    told = command(*words(256 * STEPS))
    assert told.status == 128 + signal.SIGUSR1 and steps_of(newest(cell)) >= 2
    assert not (cell / "outcome.json").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> None:
    with (disk / "ballast").open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass


@pytest.mark.parametrize("more", [(), ("--track", 1, "--train.save_interval", 599)])
def test_a_disk_that_fills_up_between_saves_is_told_with_the_last_good_checkpoint(
    command, words, small_disk, once_saved, more
):
    out_dir = small_disk / "run"
    seen = out_dir / "step-00000002" if not more else out_dir / "norms.csv"
    once_saved(seen, lambda: fill(small_disk))
    told = command("warmstart_scratch", *words(out_dir, *more))
    assert told.status == 1 and len(told.error_lines) == 1
    assert "No space left on device" in told.err or "cannot write" in told.err
    if more:
        assert "no checkpoint was saved" in told.err
    else:
        assert repr(str(newest(out_dir))) in told.err and steps_of(newest(out_dir)) >= 2


@pytest.mark.parametrize("act", ["removed", "renamed"])
def test_a_folder_that_goes_in_mid_run_is_noticed_and_made_anew(command, words, tmp_path, once_saved, act):
    out_dir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"

    def go() -> None:
        out_dir.rename(elsewhere)  # removing takes time, in which the run writes
        if act == "removed":
            shutil.rmtree(elsewhere)

    once_saved(out_dir / "step-00000002", go)
    told = command("warmstart_scratch", *words(out_dir))
    broke_off(told, out_dir, "has been removed or renamed", "made anew")


def test_a_logger_that_fails_in_mid_run(command, words, tmp_path, once_saved):
    once_saved(tmp_path / "step-00000002", lambda: shutil.rmtree(tmp_path / "logs"))
    broke_off(command("warmstart_scratch", *words(tmp_path)), tmp_path, "the logger csv")


def test_a_logger_that_fails_at_the_start(command, words, tmp_path):
    (tmp_path / "logs").write_text("mine")
    told = command("warmstart_scratch", *words(tmp_path), "--logger_name", "tensorboard")
    assert told.status == 1 and len(told.error_lines) == 1 and "--logger_name tensorboard failed" in told.err


def test_a_loader_worker_that_is_killed(command, words, tmp_path, once_saved):
    def kill() -> None:
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            except OSError:
                continue
            if int(fields["PPid"]) == os.getpid() and "resource_tracker" not in (status.parent / "cmdline").read_text():
                os.kill(int(fields["Pid"]), signal.SIGKILL)

    once_saved(tmp_path / "step-00000002", kill)
    told = command("warmstart_scratch", *words(tmp_path), "--data.num_workers", 1)
    broke_off(told, tmp_path, "the data failed in mid-run", "worker")


def test_nobody_reading_standard_output_any_more_stops_a_run_after_saving(words, tmp_path):
    process = subprocess.Popen(
        [*MAIN, "warmstart_scratch", *map(str, words(tmp_path))], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(60) == 1
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1 and "standard output cannot be written" in err, err
    if list(tmp_path.glob("step-*")):
        assert repr(str(newest(tmp_path))) in err


def test_a_divergence_names_a_way_on_that_resume_does_not_refuse(command, words, tmp_path):
    warming = ("--schedule", "cosine", "--train.lr_warmup_steps", 500, "--train.save_interval", 1)
    told = command("warmstart_scratch", *words(tmp_path / "run", *warming, lr=3000))
    assert told.status == 1 and len(told.error_lines) == 1 and "training diverged: " in told.err
    last = newest(tmp_path / "run")
    assert "lower --lr (now 3000)" in told.err and repr(str(last)) in told.err
    assert f"warmstart_scratch --initial_checkpoint_dir {last} --out_dir NEW" in told.err


def test_a_run_that_ends_above_its_start_and_chance_is_saved_and_told(command, words, tmp_path):
    told = command("warmstart_scratch", *words(tmp_path, lr=3, steps=6))
    assert told.status == 1 and len(told.error_lines) == 1, told
    assert "training diverged: the last validation loss is" in told.err and repr(str(tmp_path / "final")) in told.err
    assert steps_of(tmp_path / "final") == 6 and "finished" not in told.out
    again = command("warmstart_scratch", *words(tmp_path, "--resume", "auto", lr=3, steps=6))
    assert again.status == 1 and again.err == told.err


def test_a_run_without_final_that_has_all_its_steps_is_brought_to_its_end(command, words, tmp_path):
    assert command("warmstart_scratch", *words(tmp_path, steps=4)).status == 0
    shutil.rmtree(tmp_path / "final")
    told = command("warmstart_scratch", *words(tmp_path, "--resume", "true", steps=2))
    assert told.status == 0 and steps_of(tmp_path / "final") == 2


def test_time_left_is_that_of_the_steps_after_the_first(command, words, tmp_path):
    told = command("warmstart_scratch", *words(tmp_path, "--train.log_interval", 1, steps=20))
    lines = [line for line in told.out.splitlines() if " tokens/s" in line]
    assert len(lines) == 20 and " s left" not in lines[0] and all(" s left" in line for line in lines[1:])


@pytest.mark.parametrize("study", [False, True])
def test_a_second_process_on_one_run_or_one_study_is_told(command, words, models, from_text, tmp_path, study):
    with (tmp_path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if study:
            told = command(
                "warmstart_grid_search", "--target", models[16], "--lrs", 0.001, "--batch_sizes", 4, "--out_dir",
                tmp_path, "--train.max_tokens", 512, "--logger_name", "csv", *from_text,
            )  # fmt: skip
        else:
            told = command("warmstart_scratch", *words(tmp_path, steps=2))
    assert told.status == 1 and len(told.error_lines) == 1 and "another process is" in told.err
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
