"""A preparation that was stopped, killed or short of space goes on, and ends with the same bytes."""

import errno
import multiprocessing
import os
import select
import signal
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess

import pytest

from litgpt_warmstart.data.preparing import prepare as preparing
from litgpt_warmstart.data.preparing import read, write
from litgpt_warmstart.errors import UserError
from tests.data.conftest import contents, here, prepare, quiet, stop_after


def start(ask) -> tuple[BaseProcess, int]:
    """A preparation with two workers in a process of its own, and the end of a pipe that they all hold as stderr."""

    def run() -> None:
        os.dup2(held, 2)
        preparing.prepare(ask, say=str)

    end, held = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    os.close(held)
    return process, end


@pytest.mark.slow
def test_killed_in_its_middle_it_leaves_no_process_and_ends_with_the_same_bytes(ask, small):
    prepare(replace(ask, data_path=ask.data_path.with_name("undisturbed")))
    done = ask.data_path.with_name(f".{ask.data_path.name}.partial") / "portions"
    kills = 0
    for num_portions in (1, 4, 7):
        process, end = start(ask)
        while process.is_alive() and len(list(done.glob("*.json"))) < num_portions:
            time.sleep(0.001)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        assert select.select([end], [], [], 10)[0]
        assert os.read(end, 100) == b""  # no worker holds the pipe any more, or has said a word
        os.close(end)
    assert kills >= 2
    if not ask.data_path.exists():
        prepare(ask)
    assert contents(ask.data_path) == contents(ask.data_path.with_name("undisturbed"))


def test_what_was_done_is_not_done_again(ask, small, monkeypatch):
    folder = stop_after(3, ask)
    before = {path: path.stat().st_mtime_ns for path in (*folder.glob("portions/*"), *folder.glob("train/*"))}
    assert len(before) >= 6
    stop_after(4, ask)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    index = prepare(ask)
    assert index.fingerprint == prepare(replace(ask, data_path=ask.data_path.with_name("undisturbed"))).fingerprint
    assert contents(ask.data_path) == contents(ask.data_path.with_name("undisturbed"))


def test_where_no_task_is_left_nobody_is_asked_to_carry_out_any(ask, small, monkeypatch):
    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(write, "write_index", stopped)
        prepare(ask)
    carried_out = []
    preparing.prepare(ask, say=quiet, carry_out=lambda tasks, ended: carried_out.append(tasks))
    assert carried_out == []


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(ask, small, monkeypatch):
    written, write_chunk = [], write.write_chunk

    def until_full(path, tokens):
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)
        return write_chunk(path, tokens)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left on device; free space, "):
        patch.setattr(write, "write_chunk", until_full)
        preparing.prepare(ask, say=quiet)  # in processes: what they raise comes here
    assert prepare(ask).documents == {"train": 480, "val": 20}


def test_another_encoder_than_the_begun_one_begins_anew(ask, small):
    before = {path.name: path.stat().st_mtime_ns for path in stop_after(3, ask).glob("portions/*")}
    again = stop_after(3, replace(ask, encoder="tokenizers")).glob("portions/*")
    assert all(path.stat().st_mtime_ns > before[path.name] for path in again)
    assert prepare(ask).encoder == "tokenizers"


def test_nothing_is_left_of_what_came_to_nothing(ask, small):
    with pytest.raises(UserError, match="no column 'content'"):
        prepare(replace(ask, files="*.parquet", column="content"))
    assert not ask.data_path.parent.exists()


def test_ctrl_c_says_how_to_go_on(ask, small, capsys):
    stop_after(1, ask)
    with pytest.raises(KeyboardInterrupt):
        preparing.prepare(ask, carry_out=lambda tasks, ended: here(tasks, ended, at_most=1))
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith("The same command goes on; what is done is in ")
    assert said[0].endswith(": files: train 100, val 1; vocabulary 4,096, encoding with tiktoken")


def test_two_processes_do_not_prepare_the_same_folder_at_once(ask, small):
    folder = ask.data_path.with_name(f".{ask.data_path.name}.partial")

    def second(tasks, ended):
        with pytest.raises(UserError, match="another process is preparing .*: wait for it"):
            prepare(ask)
        assert folder.is_dir()
        here(tasks, ended)

    preparing.prepare(ask, say=quiet, carry_out=second)
    assert prepare(ask).documents["train"] == 480


def test_a_worker_that_is_killed_is_one_line(ask, small, monkeypatch):
    monkeypatch.setattr(write, "share_of", None)
    monkeypatch.setattr(read, "_blocks", lambda *args, **more: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match="one of 2 processes was killed, .*: give a smaller --num_workers"):
        preparing.prepare(ask, say=quiet)


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(ask, small, capsys, monkeypatch):
    prepare(replace(ask, data_path=ask.data_path.with_name("silent")))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(preparing, "SECONDS_BETWEEN_LINES", 0.0)
    prepare(ask)
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.strip()]
    assert len(lines) > 2 and lines[-1].startswith("my text: ")
    assert "B/s | " in lines[-1] and "500 documents, " in lines[-1]
