"""The documents' figures are those of benchmarks/results."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def test_the_tables_in_the_documents_are_made_from_the_results():
    done = subprocess.run([sys.executable, BENCHMARKS / "table.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_table_replaces_what_stands_between_its_markers_and_nothing_else(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import table

    monkeypatch.setitem(table.TABLES, "train", lambda: "new")
    for before in ("", "old\n"):
        text = f"a\n<!-- train -->\n{before}<!-- /train -->\nb\n"
        assert table.filled(text, ("train",)) == "a\n<!-- train -->\nnew\n<!-- /train -->\nb\n"
    with pytest.raises(SystemExit, match="must stand there once"):
        table.filled("a\nb\n", ("train",))


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("*.json")), ids=lambda path: path.stem)
def test_every_result_says_device_versions_date_and_command(path):
    result = json.loads(path.read_text())
    assert result["device"] and result["date"] and result["command"].startswith("python benchmarks/")
    assert {"python", "torch", "litgpt"} <= result["versions"].keys()


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """benchmarks/gpu.py, and a session of it that ends in a minute."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    monkeypatch.setattr(gpu, "SHORTEST", 0.5)
    return gpu, gpu.Session(
        tmp_path, None, replace(gpu.REHEARSAL, patience=1), True, time.monotonic() + 60, {"device": "CPU"}
    )


def test_a_step_that_hangs_is_cut_with_all_that_it_started_and_later_ones_are_carried_out(gpu, tmp_path):
    gpu, session = gpu
    hang = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(99)'])"

    def hangs(task) -> None:
        task.figures["found"] = 7
        task.run("hang", "-c", f"print('began', flush=True); {hang}")

    def fails(task) -> None:
        task.run("fail", "-c", "raise SystemExit('no such thing')")

    steps = [gpu.Step("hangs", hangs, 1), gpu.Step("fails", fails, 9), gpu.Step("later", lambda task: None, 9)]
    start = time.monotonic()
    assert [gpu.carry_out(session, step) for step in steps] == ["cut", "failed", "done"]
    assert time.monotonic() - start < 30
    told = [json.loads((tmp_path / f"{step.name}.json").read_text()) for step in steps]
    assert told[0]["reason"] == "hang was cut at the time limit" and told[0]["found"] == 7
    assert told[1]["reason"].endswith("no such thing") and told[2]["reason"] is None
    assert all(result["rehearsal"] and result["device"] == "CPU" for result in told)
    assert not session.running
    session.ends = time.monotonic()
    assert gpu.carry_out(session, steps[2]) == "left out"
    assert json.loads((tmp_path / "later.json").read_text())["reason"] == "0 s are left for it"


def test_a_step_that_a_signal_ends_is_told_of(gpu, tmp_path):
    gpu, session = gpu

    def is_interrupted(task) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpu.carry_out(session, gpu.Step("interrupted", is_interrupted, 9))
    assert json.loads((tmp_path / "interrupted.json").read_text())["outcome"] == "broken off"


def test_a_scale_whose_trainer_ends_is_told_of_and_the_next_is_compared(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import train
    import trainers

    words = ["--scales", "5M", "22M", "--precisions", "32-true", "--stock_micro_batch_sizes", "1", "2"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    monkeypatch.setattr(trainers, "command_of", lambda *_: [sys.executable, "-c", "raise SystemExit('out of memory')"])
    with pytest.raises(SystemExit) as stopped:
        train.main()
    assert stopped.value.code == 1
    first, _, second, _ = capsys.readouterr().out.splitlines()[:4]
    assert first.startswith("5M, 32-true: stock-1.log ended") and second.startswith("22M, 32-true: stock-1.log ended")


def test_tests_are_known_by_name_with_and_without_processes_of_their_own(gpu):
    said = """tests/a.py::test_x[1 2] PASSED   [ 50%]
[gw1] [ 66%] FAILED tests/b.py::test_y[bf16-True]
tests/a.py::test_z SKIPPED (needs more) [100%]
PASSED tests/a.py::test_x[1 2]"""
    expected = {"tests/a.py::test_x[1 2]": "passed", "tests/b.py::test_y[bf16-True]": "failed"}
    assert dict(gpu[0].outcomes_of(said)) == expected | {"tests/a.py::test_z": "skipped"}


@pytest.mark.parametrize(
    ("words", "told"),
    [(["train.py", "--out", BENCHMARKS], f"argument --out: {str(BENCHMARKS)!r} is a folder: name a file in it"),
     (["train.py", "--global_batch_size", "0"], "argument --global_batch_size: invalid positive value: '0'"),
     (["loss.py", "--n_embd", "0"], "argument --n_embd: invalid positive value: '0'"),
     (["loss.py", "--precisions", "64-true"], "argument --precisions: invalid choice: '64-true'")],
)  # fmt: skip
def test_what_a_benchmark_cannot_do_is_said_before_anything_is_measured(words, told):
    done = subprocess.run([sys.executable, BENCHMARKS / words[0], *words[1:]], capture_output=True, text=True)
    assert done.returncode == 2 and told in done.stderr.splitlines()[-1], done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [([], "torch finds no CUDA device"), (["--text", "/no/folder"], "no text in '/no/folder'"),
     (["--minutes", "nan"], "--minutes must be above 0 and finite, got nan"),
     (["--steps", "trian"], "there is no step 'trian': choose from versions, train, text"),
     (["--rehearse", "--out", __file__], f"cannot write --out {__file__!r}: Not a directory: choose another")],
)  # fmt: skip
def test_make_gpu_refuses_in_one_line_and_writes_nothing(words, told, tmp_path):
    command = [sys.executable, BENCHMARKS / "gpu.py", "--out", tmp_path / "out", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and not (tmp_path / "out").exists()
    assert done.stderr.startswith(f"make gpu: {told}") and done.stderr.count("\n") == 1, done.stderr
