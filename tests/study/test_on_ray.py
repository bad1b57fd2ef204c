"""The same runs on a local Ray cluster: the same results, a killed worker included."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.run.spec import Growth
from litgpt_warmstart.study.on_ray import connect
from litgpt_warmstart.study.runner import Run, carry_out
from tests.conftest import assert_same_weights, losses


def workers() -> list[int]:
    """Processes that carry out a run: Ray names them after their task."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"ray::carry_out_remotely" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def kill_one_after(checkpoint: Path, killed: list[int]) -> None:
    """SIGKILL the worker once its run has saved a checkpoint."""
    while not checkpoint.exists():
        time.sleep(0.01)
    killed.extend(workers()[:1])
    os.kill(killed[0], signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="no /proc to find the worker in")
def test_a_local_ray_gives_the_results_of_this_process_also_when_a_worker_is_killed(make_spec):
    pytest.importorskip("ray")
    from dataclasses import replace

    def runs(where: str) -> list[Run]:
        first = Run("first", make_spec(f"{where}-first", max_steps=80, save_interval=5))
        grown = make_spec(f"{where}-second")
        source = first.spec.out_dir / "final"
        second = Run("second", replace(grown, growth=Growth(source)), after=("first",), data_after=source)
        return [first, second, Run("bad", make_spec(f"{where}-bad", lr=1e6))]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what a run on Ray has by default
    try:
        here = carry_out(runs("here"))
    finally:
        torch.set_num_threads(threads)
    killed: list[int] = []
    waiting = threading.Thread(
        target=kill_one_after, args=(runs("ray")[0].spec.out_dir / "step-00000005", killed), daemon=True
    )
    waiting.start()
    lines: list[str] = []
    there = carry_out(runs("ray"), "ray", say=lines.append)
    assert killed and list(there) == list(here)
    assert [o.status for o in there.values()] == ["finished", "finished", "diverged"]
    for name in ("first", "second"):
        a, b = (next(r for r in runs(where) if r.name == name).spec.out_dir for where in ("here", "ray"))
        assert losses(a) == losses(b) and losses(a, "val_loss") == losses(b, "val_loss")
        assert_same_weights(a / "final", b / "final")
    lines.clear()
    assert carry_out(runs("ray"), "ray", say=lines.append) == there and lines == ["3 of 3 runs have ended before"]


def test_a_ray_address_that_does_not_answer_is_told():
    pytest.importorskip("ray")
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "nowhere"):
        with pytest.raises(UserError, match=f"--ray_address {address} does not answer"):
            connect(address)


def test_without_ray_the_line_to_install_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'ray>=2.40'"):
        connect(None)
