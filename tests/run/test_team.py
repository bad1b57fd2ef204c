"""Processes of one mind: what each agrees on, signals to any, and the death of any."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from litgpt_warmstart.errors import BrokeOff, UserError
from litgpt_warmstart.run import launch, team
from litgpt_warmstart.run.launch import carry_out
from litgpt_warmstart.run.team import Team
from tests.run.processes import agree


def test_one_process_agrees_with_itself():
    alone = Team()
    assert alone.is_first and alone.largest(3.0) == 3.0 and alone.first(lambda: 5) == alone.in_turn(lambda: 5) == 5
    with pytest.raises(BrokeOff), alone.agreed():
        raise BrokeOff("it")
    assert alone.why() is None and not alone.united


def test_two_processes_agree_and_an_error_of_one_is_an_error_of_both(tmp_path):
    carry_out(lambda team: None, 1, 1)
    with pytest.raises(UserError, match=r"^told by the first$"):
        carry_out(partial(agree, tmp_path), 2, 1)
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == [
        "largest 1.0, first 0, in turn 0, another process of the run has failed, the first has failed",
        "largest 1.0, first 0, in turn 1, process 1 has failed, the first has failed",
    ]
    assert not {"MASTER_ADDR", "MASTER_PORT"} & os.environ.keys()


@pytest.fixture
def started(base, tiny, stdlib_path, tmp_path) -> Callable[..., tuple[subprocess.Popen, int]]:
    """A long warmstart on two devices that has made some steps, and the number of its second process."""

    def start(*options: str) -> tuple[subprocess.Popen, int]:
        command = f"""--base {base} --target {tiny[48]} --out_dir {tmp_path / "run"} --data StdlibText --devices 2
            --data.data_path {stdlib_path} --precision 32-true --compile false --logger_name csv --eval.max_iters 4
            --train.global_batch_size 8 --train.micro_batch_size 2 --train.max_steps 5000 --train.save_interval 5"""
        log = (tmp_path / "log").open("w")
        words = [sys.executable, "-m", "litgpt_warmstart", "warmstart", *command.split(), *options]
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, cwd=Path(__file__).parents[2])
        deadline = time.monotonic() + 120
        while not list((tmp_path / "run").glob("step-*")):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
        (other,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return process, int(other)

    return start


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "to_first", "strategy"),
    [
        (signal.SIGTERM, False, "fsdp"),
        pytest.param(signal.SIGTERM, True, "ddp", marks=pytest.mark.drill),
        pytest.param(signal.SIGUSR1, False, "ddp", marks=pytest.mark.drill),
    ],
)
def test_a_signal_to_any_process_stops_all_at_one_step_with_one_save_and_the_command_to_go_on(
    started, tmp_path, number, to_first, strategy
):
    process, other = started("--strategy", strategy)
    os.kill(process.pid if to_first else other, number)
    assert process.wait(60) == 128 + number
    told = (tmp_path / "log").read_text()
    assert told.count("Saved") == 1 and told.count("--resume true") == 1
    last = sorted((tmp_path / "run").glob("step-*"))[-1]
    assert str(last) in told and not Path(f"/proc/{other}").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dies", "strategy"),
    [(1, "ddp"), *(pytest.param(*case, marks=pytest.mark.drill) for case in [(0, "ddp"), (1, "fsdp")])],
)
def test_a_process_that_dies_ends_the_others_with_a_line_that_names_it(started, tmp_path, dies, strategy):
    process, other = started("--strategy", strategy)
    os.kill((process.pid, other)[dies], signal.SIGKILL)
    status = process.wait(60)
    deadline = time.monotonic() + 60
    while f"process {dies} of 2" not in (tmp_path / "log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    told = [line for line in (tmp_path / "log").read_text().splitlines() if "error" in line]
    assert len(told) == 1 and "has died" in told[0]
    if dies:
        assert status == 1 and f"(pid {other} on " in told[0] and "last good checkpoint is" in told[0]
        assert "--resume true" in told[0]


def test_nodes_that_do_not_answer_are_told_of(monkeypatch):
    monkeypatch.setattr(team, "MEETING_SECONDS", 1.0)
    with pytest.raises(UserError, match="--num_nodes 2: nothing says where the nodes meet"):
        carry_out(print, 1, 2)
    free = str(team.open_store("127.0.0.1", 0, is_master=True).port)
    for node, port, told in (
        ("0", free, "1 of 2 processes, number 1 the first, did not come to 127.0.0.1:"),
        ("1", "1", "process 0 does not answer at 127.0.0.1:1 within 1 s"),
    ):
        for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port), ("NODE_RANK", node)):
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=told):
            carry_out(print, 1, 2)


def test_torchrun_must_have_started_as_many_processes_as_are_asked_for(monkeypatch):
    for name, value in (("TORCHELASTIC_RUN_ID", "1"), ("WORLD_SIZE", "4"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="torchrun has started 4 processes, --devices and --num_nodes ask for 2"):
        launch.carry_out(print, 2, 1)
