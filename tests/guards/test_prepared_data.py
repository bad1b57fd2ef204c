"""Prepared data that is damaged: a run on it gives what it would have given, or ends in one line and saves nothing."""

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.guards.conftest import MAIN, training
from tests.guards.fuzz import flipped, revalued

FILES = ("prepared.json", "train/index.json", "val/index.json", "tokenizer.json", "train/chunk", "val/chunk")


@pytest.fixture
def own(data, tmp_path) -> Path:
    """A copy of the prepared text, to be spoilt."""
    return Path(shutil.copytree(data, tmp_path / "own"))


@pytest.fixture(scope="session")
def right(models, data, tmp_path_factory):
    """The weights that the whole data gives after two steps."""
    out_dir = tmp_path_factory.mktemp("right") / "out"
    subprocess.run([*MAIN, *map(str, words(models, data, out_dir))], check=True, capture_output=True)
    return weights(out_dir)


def words(models, data: Path, out_dir: Path, *more: object, steps: int = 2) -> tuple[object, ...]:
    options = ("--lr", 0.02, "--data", "PreparedText", "--data.data_path", data, *more)
    return ("warmstart_scratch", *training(models[16], out_dir, *options, steps=steps))


def weights(out_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(out_dir / "final/lit_model.pth", weights_only=True)


def path_of(folder: Path, name: str) -> Path:
    """A file of prepared data; of the chunks of a split the first one."""
    return min((folder / name).parent.glob("chunk-*.bin")) if name.endswith("chunk") else folder / name


def one_bit(content: bytes, chance: random.Random) -> bytes:
    made = bytearray(content)
    made[chance.randrange(len(made))] ^= 1 << chance.randrange(8)
    return bytes(made)


def try_it(command, models, own: Path, out_dir: Path, right) -> bool:
    """Train on the data; whether it was refused."""
    told = command(*words(models, own, out_dir))
    if told.status == 0:
        assert all(torch.equal(right[name], weight) for name, weight in weights(out_dir).items()), told.out
    else:
        lines = [line for line in told.error_lines if "Warning" not in line]
        assert told.status == 1 and len(lines) == 1 and "error: " in lines[0], told.err
        assert not list(out_dir.glob("*/lit_model.pth")), told.err
    shutil.rmtree(out_dir, ignore_errors=True)
    return told.status != 0


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_told_or_changes_nothing(command, models, own, right, tmp_path, name):
    chance, path = random.Random(name), path_of(own, name)
    content, refused = path.read_bytes(), 0
    for _ in range(6):
        path.write_bytes(one_bit(content, chance))
        refused += try_it(command, models, own, tmp_path / "out", right)
    if name.endswith("chunk"):
        assert refused == 6


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["cut off", "empty", "removed"])
def test_a_file_that_is_cut_or_gone_is_told_or_changes_nothing(command, models, own, right, tmp_path, name, harm):
    path = path_of(own, name)
    if harm == "removed":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2 if harm == "cut off" else 0)
    assert try_it(command, models, own, tmp_path / "out", right) or name.endswith("index.json")


def test_two_damaged_files_at_once_are_one_line(command, models, own, right, tmp_path):
    chance = random.Random(2)
    for first, second in (
        ("train/chunk", "val/chunk"),
        ("prepared.json", "train/chunk"),
        ("train/index.json", FILES[0]),
    ):
        kept = {path_of(own, name): path_of(own, name).read_bytes() for name in (first, second)}
        for path, content in kept.items():
            path.write_bytes(one_bit(content, chance))
        try_it(command, models, own, tmp_path / "out", right)
        for path, content in kept.items():
            path.write_bytes(content)


def test_anything_in_prepared_json_or_index_json_is_told_or_changes_nothing(command, models, own, right, tmp_path):
    """By plans, which are quick; what a plan takes is trained on."""
    chance = random.Random(3)
    for name in ("prepared.json", "train/index.json"):
        path = path_of(own, name)
        content = path.read_bytes()
        for _ in range(12):
            change: Callable[[bytes, random.Random], bytes] = chance.choice((flipped, revalued))
            path.write_bytes(change(content, chance))
            try_it(command, models, own, tmp_path / "out", right)
        path.write_bytes(content)


def test_a_chunk_that_is_put_right_again_is_gone_on_with(command, models, own, right, tmp_path):
    path, out_dir = path_of(own, "train/chunk"), tmp_path / "out"
    content = path.read_bytes()
    path.write_bytes(one_bit(content, random.Random(4)))
    told = command(*words(models, own, out_dir))
    assert told.status == 1 and path.name in told.err and "prepare the data again" in told.err
    path.write_bytes(content)
    told = command(*words(models, own, out_dir, "--resume", "auto"))
    assert told.status == 0, told.err
    assert all(torch.equal(right[name], weight) for name, weight in weights(out_dir).items())


def test_two_runs_at_once_on_the_same_data_are_each_as_one_alone(models, own, right, tmp_path):
    runs = [
        subprocess.Popen([*MAIN, *map(str, words(models, own, tmp_path / name))], stderr=subprocess.PIPE, text=True)
        for name in ("a", "b")
    ]
    for run, name in zip(runs, ("a", "b"), strict=True):
        assert run.wait(120) == 0, run.stderr.read()
        assert all(torch.equal(right[key], weight) for key, weight in weights(tmp_path / name).items())


def test_no_block_is_read_twice_and_the_order_belongs_to_the_lineage(command, models, base, base_run, data, tmp_path):
    """A base, its warmstart, and the run from scratch that is compared with it, whatever their seeds."""
    import yaml

    def uses(out_dir: Path) -> dict:
        return yaml.safe_load((out_dir / "final/warmstart.yaml").read_text())["data"]

    grown = ("warmstart", *training(models[48], tmp_path / "grown", "--base", base, "--seed", 5, steps=2))
    scratch = words({16: models[48]}, data, tmp_path / "scratch", "--mup_base", base, "--seed", 6)
    for told in (command(*grown), command(*scratch)):
        assert told.status == 0, told.err
    first, second, third = uses(base_run), uses(tmp_path / "grown"), uses(tmp_path / "scratch")
    assert first["stop_token"] == second["start_token"] == third["start_token"] > first["start_token"]
    assert first["order_seed"] == second["order_seed"] == third["order_seed"] is not None
    assert first["block_size"] == second["block_size"] == 64
    for option, value, remedy in (
        ("--data.order_seed", 7, "leave --data.order_seed out"),
        ("--train.max_seq_length", 32, "pass --train.max_seq_length 64"),
    ):
        told = command(*words({16: models[48]}, data, tmp_path / "other", "--mup_base", base, option, value))
        assert told.status == 1 and len(told.error_lines) == 1 and remedy in told.err, told.err
        assert not (tmp_path / "other").exists()


def test_a_run_on_another_order_is_another_and_is_not_gone_on_with(command, models, data, right, tmp_path):
    more = ("--data.order_seed", 7)
    told = command(*words(models, data, tmp_path / "out", *more))
    assert told.status == 0, told.err
    assert not all(torch.equal(right[name], weight) for name, weight in weights(tmp_path / "out").items())
    told = command(*words(models, data, tmp_path / "out", "--resume", "true", steps=3))
    assert told.status == 1 and len(told.error_lines) == 1 and "order_seed" in told.err, told.err
    assert command(*words(models, data, tmp_path / "out", *more, "--resume", "true", steps=3)).status == 0
