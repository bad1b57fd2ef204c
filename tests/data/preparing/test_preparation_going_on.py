"""A preparation that was stopped, killed or short of space goes on, and ends with the same bytes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from litgpt_warmstart.data.preparing import first_pass, preparation, sources
from litgpt_warmstart.data.preparing.preparation import prepare
from litgpt_warmstart.errors import UserError
from tests.data.conftest import contents, quiet, stop_before_chunks, stored_documents

ROOT = Path(preparation.__file__).parents[2]


KILLS = """
import json, os, random, shutil, signal, sys, time
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {root!r})
from litgpt_warmstart.data.preparing import preparation, segments, sources
from litgpt_warmstart.data.preparing.plan import Preparation
import litdata.streaming.writer  # so that no child has to
sources.PART_BYTES, sources.BATCH_BYTES, segments.SEGMENT_BYTES = 30_000, 10_000, 20_000
preparation.CHUNK_TOKENS = 50_000
data, text_dir = Path({data!r}), Path({text_dir!r})
ask = Preparation(data / "mine", text_dir=text_dir, files="*", tokenizer={tokenizer!r}, num_workers=2)

def start(ask):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            preparation.prepare(ask, say=str)
            status = 0
        finally:
            os._exit(status)
    return child

started = time.perf_counter()
assert os.waitpid(start(replace(ask, data_path=data / "undisturbed")), 0)[1] == 0
seconds = time.perf_counter() - started
rng, killed, done, early = random.Random(0), 0, [], 0
while killed < 10:
    child = start(ask)
    time.sleep(rng.uniform(0.02, 0.5) * seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        killed += 1
        early += ask.data_path.exists()
        done.append(len(list(data.glob(".mine.partial/*/*.done"))) + len(list(data.glob(".mine.partial/train/*.bin"))))
    else:  # it came to its end: begin anew
        assert status == 0
        shutil.rmtree(ask.data_path)
if not ask.data_path.exists():
    assert os.waitpid(start(ask), 0)[1] == 0
print(json.dumps(dict(early=early, done=done)))
"""


@pytest.mark.slow
def test_killed_at_ten_moments_it_goes_on_and_ends_with_the_same_bytes(ask, stdlib_path):
    data = ask.data_path.parent
    script = KILLS.format(root=str(ROOT), data=str(data), text_dir=str(ask.text_dir), tokenizer=str(stdlib_path))
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout.splitlines()[-1])
    assert said["early"] == 0, "a half-prepared folder looked finished"
    assert len(said["done"]) == 10 and len(set(said["done"])) > 3, "killed at the same moment each time"
    assert contents(ask.data_path) == contents(data / "undisturbed")


def test_what_was_done_is_not_done_again(ask, small, monkeypatch):
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(preparation, "write_chunk", fail)
        with pytest.raises(UserError, match="No space left on device; free space and give the same command to go on"):
            prepare(ask, say=quiet)
    monkeypatch.setattr(first_pass, "encode_part", fail)
    prepare(ask, say=quiet)


def test_an_interrupted_part_keeps_its_finished_segments(ask, small, monkeypatch):
    """The two large compressed files are one part each, of many segments."""
    folder = ask.data_path.with_name(f".{ask.data_path.name}.partial")
    calls = 0
    advance = first_pass.Progress.advance

    def interrupt(self, *counts: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 60:
            raise KeyboardInterrupt
        advance(self, *counts)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(first_pass.Progress, "advance", interrupt)
        prepare(replace(ask, num_workers=1), say=quiet)
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("segments/*.segment")}
    assert len(before) > 5
    prepare(replace(ask, data_path=ask.data_path.with_name("undisturbed")), say=quiet)
    with monkeypatch.context() as patch:  # stop before the segments are removed
        patch.setattr(preparation, "write_split", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(ask, say=quiet)
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("segments/*.segment")}
    assert before.items() <= after.items()
    prepare(ask, say=quiet)
    assert contents(ask.data_path) == contents(ask.data_path.with_name("undisturbed"))


@pytest.mark.parametrize("constant", ["BATCH_BYTES", "PART_BYTES", "PIECE_BYTES"])
def test_a_resume_after_a_constant_changed_is_refused_or_loses_and_repeats_nothing(ask, small, monkeypatch, constant):
    """As after an upgrade: segments of other text are not taken for this one's."""
    folder = stop_before_chunks(ask)
    for marker in folder.glob("segments/*.done"):
        marker.unlink()
    monkeypatch.setattr(sources, constant, 7_000)
    if constant == "BATCH_BYTES":
        with pytest.raises(UserError, match="is of another text: remove its folder to begin anew"):
            prepare(ask, say=quiet)
        return
    prepare(ask, say=quiet)
    prepare(replace(ask, data_path=ask.data_path.with_name("undisturbed")), say=quiet)
    assert sorted(stored_documents(ask.data_path, "train")) == sorted(
        stored_documents(ask.data_path.with_name("undisturbed"), "train")
    )


def test_chunks_of_another_size_are_not_taken_for_this_ones(ask, small, monkeypatch):
    write, written = preparation.write_chunk, []

    def write_two(path: Path, tokens: np.ndarray) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(write(path, tokens))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(preparation, "write_chunk", write_two)
        prepare(replace(ask, num_workers=1), say=quiet)
    monkeypatch.setattr(preparation, "CHUNK_TOKENS", 20_000)
    with pytest.raises(UserError, match="train' has .* tokens, not .*: remove it and go on"):
        prepare(ask, say=quiet)


def test_another_encoder_than_the_begun_one_begins_anew(ask, small):
    times = {path.name: path.stat().st_mtime_ns for path in stop_before_chunks(ask).glob("segments/*.segment")}
    again = stop_before_chunks(replace(ask, encoder="tokenizers")).glob("segments/*.segment")
    assert all(path.stat().st_mtime_ns > times[path.name] for path in again)
    assert prepare(ask, say=quiet).encoder == "tokenizers"


def test_ctrl_c_says_how_to_go_on(ask, monkeypatch, capsys):
    monkeypatch.setattr(preparation, "write_split", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare(ask)
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith("The same command goes on; what is done is in ")
    assert ".jsonl, .parquet, .txt files: train 100, val 1; vocabulary 4,096, encoding with tiktoken" in said[0]


def test_two_processes_do_not_prepare_the_same_folder_at_once(ask, monkeypatch):
    folder = ask.data_path.with_name(f".{ask.data_path.name}.partial")

    def second(*args: object) -> None:
        with pytest.raises(UserError, match="another process is preparing"):
            prepare(ask, say=quiet)
        assert folder.is_dir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(preparation, "_fill", second)
        prepare(ask, say=quiet)


FULL_DISK = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from litgpt_warmstart.data.preparing import plan, preparation, segments, sources
from litgpt_warmstart.data.preparing.plan import Preparation
from litgpt_warmstart.errors import UserError
plan.BYTES_PER_TOKEN = 1e9  # an estimate far too low, to run into it
sources.PART_BYTES, sources.BATCH_BYTES, segments.SEGMENT_BYTES = 30_000, 10_000, 20_000
preparation.CHUNK_TOKENS = 50_000
disk, text_dir = Path({disk!r}), Path({text_dir!r})
ask = Preparation(disk / "mine", text_dir=text_dir, files="*", tokenizer={tokenizer!r}, num_workers=2)
ballast = disk / "ballast"
ballast.write_bytes(bytes({ballast}))
try:
    preparation.prepare(ask, say=str)
except UserError as error:
    print("told:", error)
print("prepared:", ask.data_path.exists())
print("segments:", len(list(disk.glob(".mine.partial/segments/*.done"))))
ballast.unlink()
print("fingerprint:", preparation.prepare(ask, say=str).fingerprint)
"""


@pytest.mark.slow
def test_on_a_full_disk_it_stops_with_one_line_and_goes_on_once_there_is_space(ask, small, tmp_path, stdlib_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    script = FULL_DISK.format(root=str(ROOT), disk=str(disk), text_dir=str(ask.text_dir), tokenizer=str(stdlib_path),
                              ballast=int(3.6 * 2**20))  # fmt: skip
    mount = f"mount -t tmpfs -o size=5m tmpfs '{disk}' && exec '{sys.executable}' -c \"$0\""
    # A mount of its own needs a namespace of its own; without one of these, there is no small disk to try it on.
    unshare = next(
        (u for u in (["unshare", "-m"], ["unshare", "-rm"]) if _works([*u, "sh", "-c", mount, "pass"])), None
    )
    if unshare is None:
        pytest.skip("cannot mount a small disk here")
    ran = subprocess.run([*unshare, "sh", "-c", mount, script], capture_output=True, text=True, timeout=120)
    said = dict(line.split(": ", 1) for line in ran.stdout.splitlines())
    assert "No space left on device; free space and give the same command to go on" in said["told"], ran
    assert said["prepared"] == "False" and int(said["segments"]) > 0
    assert said["fingerprint"] == prepare(ask, say=quiet).fingerprint


def _works(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False
