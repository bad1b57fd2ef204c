"""The drill: a run that is killed, at any moment, goes on to the same bits; ``make drill`` does all of it.

Kills are SIGKILL, aimed at starting, a step, validating and saving, and at random. What must be the same at the end:
weights, optimizer, random state, the rows of metrics.csv and norms.csv but for times, and the token ranges.
"""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from tests.guards.conftest import MAIN, STEP, table, training

STEPS = 24
LONGEST = 120
"""Seconds that a process may take."""


@dataclass(frozen=True)
class Kind:
    """A run to kill."""

    grown: bool = False
    data: str = "PreparedText"
    more: tuple[object, ...] = ()


KINDS = {
    "scratch": Kind(),
    "grown, tracked": Kind(grown=True, more=("--track", 4)),
    "wsd, bf16-mixed": Kind(more=("--schedule", "wsd", "--precision", "bf16-mixed")),
    "grown, 2 workers": Kind(grown=True, more=("--data.num_workers", 2)),
    "TextFiles": Kind(data="TextFiles", more=("--data.num_workers", 0)),
    "TextFiles, 2 workers": Kind(data="TextFiles", more=("--data.num_workers", 2)),
}


def rows(out_dir: Path) -> int:
    path = out_dir / "metrics.csv"
    return len(path.read_bytes().splitlines()) if path.is_file() else 0


AIMS: dict[str, Callable[[Path, random.Random], bool]] = {
    "starting": lambda out_dir, chance: (out_dir / ".lock").exists(),
    "in a step": lambda out_dir, chance: rows(out_dir) > 1 + chance.randrange(STEPS),
    "validating": lambda out_dir, chance: rows(out_dir) > 1 and rows(out_dir) % 7 == 0,
    "saving": lambda out_dir, chance: any(out_dir.glob(".*.partial")),
    "after a save": lambda out_dir, chance: any(out_dir.glob("step-*")),
}


def kill(words: list[object], out_dir: Path, aim: str, chance: random.Random) -> bool:
    """Start a command and kill it, with its workers left to end by themselves.

    Returns:
        Whether it had ended before.
    """
    process = subprocess.Popen([*MAIN, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    begun, had = time.monotonic(), rows(out_dir)
    while process.poll() is None and time.monotonic() - begun < LONGEST:
        if rows(out_dir) >= had and AIMS[aim](out_dir, chance) and time.monotonic() - begun > 1:
            time.sleep(chance.random() * 0.05)
            break
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=LONGEST)
    return process.returncode != -signal.SIGKILL


def finish(words: list[object]) -> None:
    done = subprocess.run([*MAIN, *map(str, words)], capture_output=True, text=True, timeout=LONGEST)
    assert done.returncode == 0, done.stderr


def assert_same(one: object, two: object, where: str = "state") -> None:
    """Compare nested plain values and tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one.view(torch.uint8) if one.dim() else one, two.view(torch.uint8) if two.dim() else two), (
            where
        )
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_same(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for index, pair in enumerate(zip(one, two, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert one == two, where


def assert_same_run(one: Path, two: Path) -> None:
    for name in ("lit_model.pth", "training_state.pth"):
        a, b = (torch.load(run / "final" / name, weights_only=True) for run in (one, two))
        assert_same(a, b, name)
    for name in ("metrics.csv", "norms.csv"):
        assert (one / name).is_file() == (two / name).is_file()
        assert not (one / name).is_file() or table(one / name) == table(two / name), name
    a, b = (yaml.safe_load((run / "final/warmstart.yaml").read_text()) for run in (one, two))
    for key in ("data", "lineage", "growth", "tokens", "step_count", "hoffmann_flops"):
        assert a[key] == b[key], key


@pytest.fixture
def command_of(base, models, data, texts, tmp_path):
    """The words of a kind's command, for a folder."""
    copied = tmp_path / "texts"
    copied.mkdir()
    for path in texts.glob("*.txt"):
        (copied / path.name).write_bytes(path.read_bytes())

    def words(kind: Kind, out_dir: Path) -> list[object]:
        start = ("--base", base) if kind.grown else ("--lr", 0.02)
        given = ("--data", "PreparedText", "--data.data_path", data)
        if kind.data == "TextFiles":
            given = ("--data", "TextFiles", "--data.train_data_path", copied, "--tokenizer_dir", data)
        more = ("--train.save_interval", 5, "--eval.interval", 3, "--resume", "auto")
        sized = training(models[48] if kind.grown else models[16], out_dir, *start, *given, *more, *kind.more,
                         steps=STEPS)  # fmt: skip
        return ["warmstart" if kind.grown else "warmstart_scratch", *sized]

    return words


def drill(command_of, tmp_path: Path, name: str, aims: list[str], seed: int) -> int:
    """Kill a kind of run at each of the aims, go on to the end, and compare with an undisturbed one.

    Returns:
        How many kills hit a running process.
    """
    chance, kind = random.Random(seed), KINDS[name]
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    finish(command_of(kind, undisturbed))
    hits = 0
    for aim in aims:
        hits += not kill(command_of(kind, killed), killed, aim, chance)
    finish(command_of(kind, killed))
    assert_same_run(undisturbed, killed)
    return hits


def test_a_run_that_is_killed_four_times_goes_on_to_the_same_bits(command_of, tmp_path):
    """The short form of the drill."""
    aims = ["starting", "in a step", "saving", "in a step"]
    assert drill(command_of, tmp_path, "grown, tracked", aims, seed=0) >= 3


@pytest.mark.drill
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_run_goes_on_to_the_same_bits_wherever_it_is_killed(command_of, tmp_path, name, seed):
    """12 runs with 3 kills each, and as many undisturbed ones."""
    chance = random.Random(f"{name} {seed}")
    aims = [*chance.sample(sorted(AIMS), 3)]
    hits = drill(command_of, tmp_path, name, aims, seed)
    print(
        f"{name}, seed {seed}: {hits} of {len(aims)} kills ({', '.join(aims)}) hit a running process", file=sys.stderr
    )
    assert hits >= 2


def at_the_same_time(words: list[object]) -> list[tuple[int, str, str]]:
    """Start a command twice at once; status, standard output and error of both, by status."""
    processes = [
        subprocess.Popen([*MAIN, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate(timeout=2 * LONGEST) for process in processes]
    return sorted((process.returncode, *texts) for process, texts in zip(processes, told, strict=True))


def assert_one_goes_on(ended: list[tuple[int, str, str]], nothing_to_do: str) -> None:
    (first, out, _), (second, other_out, err) = ended
    assert first == 0, ended
    if second:
        lines = [line for line in err.splitlines() if line.strip()]
        assert second == 1 and len(lines) == 1 and "another process" in err, ended
    else:
        assert sum(nothing_to_do in text for text in (out, other_out)) == 1, ended


@pytest.mark.drill
@pytest.mark.parametrize("begun", [False, True])
def test_of_two_processes_on_one_run_one_does_it(command_of, tmp_path, begun):
    kind, undisturbed, twice = KINDS["grown, tracked"], tmp_path / "undisturbed", tmp_path / "twice"
    finish(command_of(kind, undisturbed))
    if begun:
        assert not kill(command_of(kind, twice), twice, "after a save", random.Random(0))
    assert_one_goes_on(at_the_same_time(command_of(kind, twice)), "nothing to do")
    assert_same_run(undisturbed, twice)


@pytest.mark.drill
def test_of_two_processes_on_one_grid_one_does_it(models, data, tmp_path):
    def words(out_dir: Path) -> list[object]:
        return ["warmstart_grid_search", "--target", models[16], "--lrs", "0.01,0.02", "--batch_sizes", 4,
                "--out_dir", out_dir, "--train.max_tokens", 256 * STEPS, "--train.micro_batch_size", 4, *STEP,
                "--data", "PreparedText", "--data.data_path", data]  # fmt: skip

    finish(words(tmp_path / "undisturbed"))
    assert_one_goes_on(at_the_same_time(words(tmp_path / "twice")), "2 of 2 runs have ended before")
    cells = sorted(path.name for path in (tmp_path / "undisturbed/cells").iterdir())
    assert len(cells) == 2 and cells == sorted(path.name for path in (tmp_path / "twice/cells").iterdir())
    for cell in cells:
        assert_same_run(*(tmp_path / out_dir / "cells" / cell for out_dir in ("undisturbed", "twice")))
    assert table(tmp_path / "undisturbed/grid_search.csv") == table(tmp_path / "twice/grid_search.csv")
