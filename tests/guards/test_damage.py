"""Damaged files: what can be read is kept, what cannot is named in one line and blocks nothing else."""

import csv
import fcntl
import random
import shutil
from pathlib import Path

import pytest

from tests.guards.conftest import contents, training


@pytest.fixture
def words(models, from_text):
    """Options that go on with the run of :func:`folder`."""
    return lambda out_dir, *more, steps=7: training(
        models[16], out_dir, "--lr", 0.02, "--train.save_interval", 3, *from_text, *more, steps=steps
    )


@pytest.fixture
def folder(base_run, tmp_path) -> Path:
    """A run of 6 steps, a checkpoint at 3."""
    return shutil.copytree(base_run, tmp_path / "run")


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def line_of(path: Path, number: int, change) -> None:
    lines = path.read_bytes().split(b"\n")
    lines[number] = change(lines[number])
    path.write_bytes(b"\n".join(lines))


DAMAGE = {
    "a bad byte": lambda line: b"\xff" + line[1:],
    "NULs": lambda line: b"\0" * len(line),
    "cut in the middle": lambda line: line[: len(line) // 2],
    "a cell too many": lambda line: line.rstrip(b"\r") + b",1\r",
    "text for a number": lambda line: line.replace(b",", b",many,", 1)[: line.rindex(b",")],
    "a step that is NaN": lambda line: b"nan" + line[line.index(b",") :],
    "a step below 0": lambda line: b"-" + line,
    "a quote": lambda line: b'"' + line,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_metrics_file_keeps_the_rows_that_can_be_read_and_is_told(command, words, folder, damage):
    path = folder / "metrics.csv"
    before = rows(path)
    line_of(path, 3, DAMAGE[damage])
    told = command("warmstart_scratch", *words(folder, "--resume", "true"))
    assert told.status == 0, told.err
    assert [line for line in told.out.splitlines() if "metrics.csv" in line] == [
        f"Warning: {path}: 1 of {1 + len(before)} lines could not be read and are left out; the file as it was is"
        f" {str(path) + '.damaged-1'!r}"
    ]
    after = rows(path)
    assert after[: len(before) - 1] == before[:2] + before[3:] and after[-1]["step"] == "7"


def test_a_metrics_file_with_a_damaged_header_keeps_its_rows(command, words, folder):
    path = folder / "metrics.csv"
    before = rows(path)
    line_of(path, 0, lambda line: b"\xfe\xfe" + line[2:])
    assert command("warmstart_scratch", *words(folder, "--resume", "true")).status == 0
    assert rows(path)[: len(before)] == before


def test_damaged_metrics_do_not_stop_a_report(command, folder, tmp_path):
    line_of(folder / "metrics.csv", 2, DAMAGE["a bad byte"])
    told = command("warmstart_report", folder, "--out_dir", tmp_path / "report")
    assert told.status == 0 and "could not be read" in told.out


def test_damaged_norms_keep_the_rows_that_can_be_read(command, words, tmp_path):
    assert command("warmstart_scratch", *words(tmp_path, "--track", 1, steps=3)).status == 0
    path = tmp_path / "norms.csv"
    before = rows(path)
    line_of(path, 5, DAMAGE["NULs"])
    line_of(path, 7, lambda line: line.replace(b"activation", b"actuation"))
    told = command("warmstart_scratch", *words(tmp_path, "--track", 1, "--resume", "true", steps=4))
    assert told.status == 0 and f"{path}: 2 of {1 + len(before)} lines" in told.out
    assert rows(path)[: len(before) - 2] == before[:4] + before[5:6] + before[7:]


@pytest.mark.parametrize("text", ["", "{", "command: 1\n", "\x00"])
def test_a_damaged_record_is_passed_over_and_named(command, words, folder, text):
    (folder / "final/warmstart.yaml").write_text(text)
    told = command("warmstart_scratch", *words(folder, "--resume", "true"))
    assert told.status == 0, told.err
    warned = [line for line in told.out.splitlines() if "passing over" in line]
    assert len(warned) == 1 and repr(str(folder / "final")) in warned[0]
    assert f"Resuming {str(folder / 'step-00000003')!r} at step 3" in told.out
    assert rows(folder / "metrics.csv")[-1]["step"] == "7"


def test_a_damaged_record_does_not_block_another_checkpoint_or_overwrite(command, words, folder):
    (folder / "step-00000003/warmstart.yaml").write_text("{")
    told = command("warmstart_scratch", *words(folder, "--resume", folder / "final"))
    assert told.status == 0, told.err
    (folder / "step-00000003/warmstart.yaml").write_text("{")
    assert command("warmstart_scratch", *words(folder, "--overwrite", "true", steps=2)).status == 0
    assert not (folder / "step-00000003").exists()


def test_where_no_checkpoint_can_be_read_nothing_is_begun_anew(command, words, folder):
    for name in ("final", "step-00000003"):
        (folder / name / "warmstart.yaml").write_text("{")
    before = contents(folder)
    for resume in ("true", "auto"):
        told = command("warmstart_scratch", *words(folder, "--resume", resume))
        assert told.status == 1 and len(told.error_lines) == 1 and "can be read" in told.err
    assert contents(folder) == before


def test_a_users_step_folder_that_is_no_number_is_left_alone(command, words, folder):
    shutil.copytree(folder / "step-00000003", folder / "step-best")
    before = contents(folder / "step-best")
    changed = ("--schedule", "linear", "--train.max_steps", 9)
    told = command("warmstart_scratch", *words(folder, "--resume", "true", *changed))
    assert told.status == 1 and len(told.error_lines) == 1 and "--resume: schedule was" in told.err
    assert command("warmstart_scratch", *words(folder, "--resume", "true")).status == 0
    assert command("warmstart_scratch", *words(folder, "--overwrite", "true", steps=2)).status == 0
    assert contents(folder / "step-best") == before


@pytest.mark.parametrize(
    "name",
    ["lit_model.pth", "training_state.pth", "model_config.yaml", "warmstart.yaml", "tokenizer.json",
     "tokenizer_config.json", "config.json", "generation_config.json", "hyperparameters.yaml"],
)  # fmt: skip
def test_a_flipped_bit_in_any_file_of_a_checkpoint_is_refused_or_changes_nothing(command, base, models, tmp_path, name):
    """What is grown from it is the same but for the copied tokenizer's own words, or it is one line and nothing."""
    chance = random.Random(name)
    folder, grown = tmp_path / "base", tmp_path / "grown"
    words = ("warmstart_grow", "--base", folder, "--target", models[48], "--out_dir", grown)
    shutil.copytree(base, folder)
    assert command(*words).status == 0
    right = {path.name: path.read_bytes() for path in grown.iterdir()}
    shutil.rmtree(grown)
    content, refused = (folder / name).read_bytes(), 0
    for _ in range(12):
        flipped = bytearray(content)
        flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        (folder / name).write_bytes(flipped)
        told = command(*words)
        if told.status:
            refused += 1
            assert len(told.error_lines) == 1 and not grown.exists(), told
            continue
        for decisive in ("lit_model.pth", "training_state.pth", "model_config.yaml", "config.json", "warmstart.yaml"):
            if (grown / decisive).is_file() or decisive in right:
                assert (grown / decisive).read_bytes() == right[decisive], decisive
        shutil.rmtree(grown)
    if name in ("lit_model.pth", "training_state.pth", "model_config.yaml", "warmstart.yaml"):
        assert refused == 12
    if name in ("config.json", "hyperparameters.yaml"):  # nothing is read of them
        assert refused == 0


def test_final_that_was_about_to_be_replaced_is_gone_on_from_and_moved_under_the_lock_alone(command, words, folder):
    """As a kill between the two renames leaves it."""
    (folder / "final").rename(folder / ".final.older")
    before = contents(folder)
    told = command("warmstart_scratch", *words(folder, "--resume", "true", "--schedule", "linear"))
    assert told.status == 1 and "--resume: schedule was" in told.err and contents(folder) == before
    with (folder / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for steps in (6, 7):
            told = command("warmstart_scratch", *words(folder, "--resume", "true", steps=steps))
            assert told.status == 1 and told.error_lines[-1].count("another process") == 1, told
            assert contents(folder).keys() >= before.keys()
    told = command("warmstart_scratch", *words(folder, "--resume", "true", steps=7))
    assert told.status == 0 and "at step 6" in told.out and not (folder / ".final.older").exists()
    (folder / "final").rename(folder / ".final.older")
    told = command("warmstart_scratch", *words(folder, "--resume", "true", steps=6))
    assert told.status == 0 and f"{str(folder / 'final')!r} has all 6 steps: nothing to do" in told.out
    assert (folder / "final/lit_model.pth").is_file() and not (folder / ".final.older").exists()


@pytest.mark.parametrize("name", ["lit_model.pth", "training_state.pth", "model_config.yaml"])
def test_a_newest_checkpoint_that_lacks_a_file_is_passed_over_and_named(command, words, folder, name):
    (folder / "final" / name).unlink()
    told = command("warmstart_scratch", *words(folder, "--resume", "true"))
    assert told.status == 0, told.err
    assert "Resuming" in told.out and "step-00000003" in told.out
    assert f"passing over {str(folder / 'final')!r}: {name} is missing" in told.out


@pytest.mark.parametrize(
    "content",
    ["{}", "[]", "{", '{"status": 1}', '{"status": "finished"}', '{"status": "finished", "val_loss": "x"}',
     '{"status": "finished", "val_loss": NaN, "settings": {"lr": 1}}', '{"status": "finished", "settings": 5}',
     '{"status": "finished", "val_loss": 0.001, "first_val_loss": 6}'],
)  # fmt: skip
def test_an_outcome_that_is_none_wins_no_grid(command, models, from_text, tmp_path, content):
    words = ("warmstart_grid_search", "--target", models[16], "--lrs", 0.02, "--batch_sizes", 4, "--out_dir", tmp_path,
             "--train.max_tokens", 512, "--train.micro_batch_size", 4, "--compile", "false", "--precision", "32-true",
             "--logger_name", "csv", "--eval.max_iters", 4, *from_text)  # fmt: skip
    outcome = tmp_path / "cells/lr-0.02-batch-4-seed-42/outcome.json"
    outcome.parent.mkdir(parents=True)
    outcome.write_text(content)
    told = command(*words)
    assert told.status == 1 and len(told.error_lines) == 1 and "is damaged" in told.err and "delete it" in told.err
    assert not (tmp_path / "best").exists()
