"""A run that is stopped, or that something outside it ends: it saves what it has reached and says how to go on."""

import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.guards.conftest import MAIN, contents, shell, table, training

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
    # Renamed, as removing takes time, in which the run writes.
    once_saved(tmp_path / "step-00000002", lambda: (tmp_path / "logs").rename(tmp_path / "elsewhere"))
    broke_off(command("warmstart_scratch", *words(tmp_path)), tmp_path, "the logger csv")


def test_a_logger_that_fails_at_the_start(command, words, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/tensorboard").write_text("mine")
    told = command("warmstart_scratch", *words(tmp_path), "--logger_name", "tensorboard")
    assert told.status == 1 and len(told.error_lines) == 1 and "--logger_name tensorboard failed" in told.err


@pytest.mark.parametrize("name", ["logs", ".final.partial", ".final.older"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_stands_in_the_way_of_logs_and_saves_is_told_before_anything_is_trained(
    command, words, tmp_path, name, kind
):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    if kind == "file":
        (tmp_path / "run" / name).write_text("mine")
    else:
        (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path)
    told = command("warmstart_scratch", *words(tmp_path / "run"))
    assert told.status == 1 and len(told.error_lines) == 1 and name in told.err and "move it" in told.err
    assert contents(tmp_path) == before


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
    told = command("warmstart_scratch", *words(tmp_path / "my run", *warming, lr=3000))
    assert told.status == 1 and len(told.error_lines) == 1 and "training diverged: " in told.err
    last = newest(tmp_path / "my run")
    assert "lower --lr (now 3000)" in told.err and repr(str(last)) in told.err
    told_words = shlex.split(told.err.partition(" and pass ")[2].partition(";")[0])
    assert told_words == ["litgpt", "warmstart_scratch", "--initial_checkpoint_dir", str(last), "--out_dir", "NEW"]


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


MISHAP = """
import os, signal
from pathlib import Path
import torch
from litgpt.data import DataModule
from torch.utils.data import DataLoader, Dataset, IterableDataset

def act_if_due():
    path, step, act = (os.environ.get(name, "") for name in ("ACT_ON", "ACT_AT", "ACT"))
    lines = Path(path).read_text().splitlines() if os.path.isfile(path) else [""]
    if act and lines[-1].startswith(f"{step},"):
        if act == "fail":
            raise RuntimeError("the tape is torn")
        os.kill(os.getpid(), signal.SIGUSR1)

class Blocks(Dataset):
    def __init__(self, number, seed, val):
        self.stored = torch.randint(0, 500, (number, 65), generator=torch.Generator().manual_seed(seed))
        self.val = val
    def __len__(self):
        return len(self.stored)
    def __getitem__(self, i):
        if self.val:
            act_if_due()
        return self.stored[i]

class Stream(IterableDataset):
    def __init__(self, blocks):
        self.blocks = blocks
    def __iter__(self):
        yield from self.blocks.stored

class Mishap(DataModule):
    def __init__(self, short: bool = False):
        super().__init__()
        self.short = short
    def connect(self, tokenizer=None, batch_size=1, max_seq_length=None):
        self.batch_size = batch_size
    def train_dataloader(self):
        blocks = Blocks(16 if self.short else 60, 1, False)
        return DataLoader(Stream(blocks) if self.short else blocks, self.batch_size)
    def val_dataloader(self):
        return DataLoader(Blocks(8, 2, True), self.batch_size)

class Tearing(torch.optim.AdamW):
    "Fails in its third step, or in the backward pass after it."
    steps = 0
    def step(self, closure=None):
        self.steps += 1
        if self.steps == 3 and os.environ["ACT"] == "step":
            raise RuntimeError("the optimizer is torn")
        super().step(closure)
        if self.steps == 3:
            self.param_groups[0]["params"][0].register_hook(self.fail)
    def fail(self, gradient):
        raise RuntimeError("the optimizer is torn")
"""


@pytest.fixture
def mishap(tmp_path, monkeypatch):
    """Options that train on a user's DataModule; ``act`` happens in the validation of a step of a run.

    It is known by the row before: the file's last one begins with the step.
    """
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "my_mishap.py").write_text(MISHAP)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))

    def options(out_dir: Path, act: str = "", step: int = 0) -> tuple[str, ...]:
        for name, value in (("ACT_ON", out_dir / "metrics.csv"), ("ACT_AT", step), ("ACT", act)):
            monkeypatch.setenv(name, str(value))
        return ("--data", "my_mishap.Mishap")

    return options


@pytest.mark.parametrize(("study", "lr"), [(False, 0.001), (True, 0.001), (True, 3.0)])
def test_a_signal_in_the_last_steps_validation_saves_and_begins_no_other_run(
    command, models, mishap, tmp_path, study, lr
):
    """Nor where that run's end is a divergence."""
    cells = [tmp_path / f"out/cells/lr-{each}-batch-4-seed-42" for each in (lr, 0.002)]
    first = cells[0] if study else tmp_path / "out"

    def words(*acting: object) -> tuple[object, ...]:
        if not study:
            sized = training(models[16], first, "--lr", lr, *mishap(first, *acting), steps=4, batch=4)
            return ("warmstart_scratch", *sized, "--resume", "auto")
        return ("warmstart_grid_search", "--target", models[16], "--lrs", f"{lr},0.002", "--batch_sizes", 4,
                "--out_dir", tmp_path / "out", "--train.max_tokens", 1024, "--train.micro_batch_size", 4, "--compile",
                "false", "--precision", "32-true", "--logger_name", "csv", *mishap(first, *acting))  # fmt: skip

    told = command(*words("signal", 4))
    assert told.status == 128 + signal.SIGUSR1 and "Traceback" not in told.err, told
    said = f"Saved {str(first / 'final')!r} after 1,024 tokens" in told.out, "training diverged: " in told.err
    assert said == (lr < 3, lr == 3) and steps_of(first / "final") == 4
    assert not cells[1].exists()
    before = table(first / "metrics.csv")
    told = command(*words())
    assert told.status == 0 and table(first / "metrics.csv") == before, told
    assert (steps_of(cells[1] / "final") == 4) if study else "nothing to do" in told.out


@pytest.mark.parametrize("step", [3, 4, 6])
def test_what_was_due_when_a_run_broke_off_is_measured_when_it_goes_on(command, words, mishap, tmp_path, step):
    more = ("--eval.interval", 1, "--track", 1, "--resume", "auto")
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert command("warmstart_scratch", *words(whole, *mishap(whole), *more, steps=6)).status == 0
    told = command("warmstart_scratch", *words(torn, *mishap(torn, "fail", step), *more, steps=6))
    assert told.status == 1 and len(told.error_lines) == 1 and "the tape is torn" in told.err, told
    assert steps_of(newest(torn)) == step and len(table(torn / "metrics.csv")) < len(table(whole / "metrics.csv"))
    assert command("warmstart_scratch", *words(torn, *mishap(torn), *more, steps=6)).status == 0
    for name in ("metrics.csv", "norms.csv"):
        assert table(torn / name) == table(whole / name)


def test_a_run_whose_last_save_failed_does_not_validate_twice(command, words, tmp_path, once_saved):
    more = ("--track", 2, "--resume", "auto")
    once_saved(tmp_path / "torn/step-00000002", (tmp_path / "torn/.final.partial").touch)
    broke_off(command("warmstart_scratch", *words(tmp_path / "torn", *more[:2], steps=6)), tmp_path / "torn")
    (tmp_path / "torn/.final.partial").unlink()
    for out_dir in (tmp_path / "torn", tmp_path / "whole"):
        assert command("warmstart_scratch", *words(out_dir, *more, steps=6)).status == 0
    for name in ("metrics.csv", "norms.csv"):
        assert table(tmp_path / "torn" / name) == table(tmp_path / "whole" / name)


def test_data_that_ends_where_nothing_can_be_saved_is_told_with_the_last_good_checkpoint(
    command, words, mishap, tmp_path
):
    out_dir = tmp_path / "run"
    out_dir.mkdir()
    (out_dir / ".step-00000004.partial").write_text("in the way")
    short = ("--data.short", "true", "--train.save_interval", 3)
    told = command("warmstart_scratch", *words(out_dir, *mishap(out_dir), *short))
    broke_off(told, out_dir, "step-00000004", "step-00000003")
    (out_dir / ".step-00000004.partial").unlink()
    told = command("warmstart_scratch", *words(out_dir, *mishap(out_dir), *short, "--resume", "true"))
    assert told.status == 1 and len(told.error_lines) == 1 and "the data ended after 1,024 of" in told.err
    assert steps_of(out_dir / "step-00000004") == 4


@pytest.mark.parametrize(("act", "saved"), [("step", 2), ("backward", 3)])
def test_an_error_of_an_unknown_kind_keeps_its_traceback_and_what_is_whole_is_saved(
    words, mishap, tmp_path, act, saved
):
    out_dir, torn = tmp_path / "run", ("--optimizer", "my_mishap.Tearing")
    told = shell("warmstart_scratch", *words(out_dir, *mishap(out_dir, act), *torn, steps=9))
    assert told.status == 1 and told.error_lines[-1] == "RuntimeError: the optimizer is torn", told
    assert "Traceback" in told.err
    (line,) = (line for line in told.error_lines if "not foreseen" in line)
    assert f"At step {saved} " in line and f"the last good checkpoint is {str(newest(out_dir))!r}" in line
    assert "--resume true" in line and steps_of(newest(out_dir)) == saved


def test_a_coordinate_check_that_is_killed_while_it_writes_can_be_given_again(command, base, tmp_path):
    words = ("warmstart_coord_check", "--base", base, "--widths", "16,32", "--parametrizations", "mup", "--steps", 2,
             "--num_seeds", 1, "--batch_size", 2, "--block_size", 16, "--out_dir", tmp_path / "check")  # fmt: skip
    process = subprocess.Popen([sys.executable, *MAIN[1:], *map(str, words)], stdout=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "check/coord_check.csv").exists():
        time.sleep(0.0005)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL and not (tmp_path / "check/hyperparameters.yaml").exists()
    told = command(*words)
    assert told.status == 1 and "holds a coordinate check: pass --overwrite true" in told.err
    assert command(*words, "--overwrite", "true").status == 0
    assert (tmp_path / "check/hyperparameters.yaml").is_file() and (tmp_path / "check/coord_check.png").is_file()


def test_a_run_that_is_first_validated_when_it_has_diverged_is_no_success(command, words, tmp_path):
    late = ("--eval.initial_validation", "false", "--eval.interval", 100)
    told = command("warmstart_scratch", *words(tmp_path, *late, lr=3, steps=6))
    assert told.status == 1 and len(told.error_lines) == 1, told
    assert "training diverged: the last validation loss is" in told.err and "a uniform guess has 6.238" in told.err
