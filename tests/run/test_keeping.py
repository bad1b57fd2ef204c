"""--keep_last: which checkpoints go, and whose stay."""

import shutil
from dataclasses import replace

import pytest
import yaml

from litgpt_warmstart.run.spec import TrainArgs
from tests.conftest import TRAIN, assert_same_weights, losses

EVERY = replace(TRAIN, save_interval=1)


def steps(out_dir) -> list[int]:
    """Of the step-*/ folders."""
    return sorted(int(folder.name[5:]) for folder in out_dir.glob("step-*"))


def test_the_newest_stay_and_the_run_has_the_same_end(scratch):
    out_dir = scratch(train=EVERY, keep_last=2)
    assert steps(out_dir) == [4, 5] and (out_dir / "final/lit_model.pth").is_file()
    everything = scratch("all", train=EVERY)
    assert steps(everything) == [1, 2, 3, 4, 5] and losses(out_dir) == losses(everything)
    assert_same_weights(out_dir / "final", everything / "final")


def test_a_users_file_another_runs_folder_and_later_steps_stay(scratch, tmp_path):
    out_dir = scratch("run", train=replace(EVERY, max_steps=3))
    other = scratch("other", train=replace(EVERY, max_steps=2), seed=7)
    (out_dir / "step-00000001/notes.txt").write_text("mine")
    (out_dir / "step-best").mkdir()
    shutil.copytree(other / "step-00000001", out_dir / "step-00000000")
    scratch("run", train=replace(EVERY, max_steps=6), keep_last=1, resume=True)
    assert sorted(f.name for f in out_dir.glob("step-*")) == [
        "step-00000000", "step-00000001", "step-00000005", "step-best",
    ]  # fmt: skip
    assert (out_dir / "step-00000001/notes.txt").read_text() == "mine"


def test_the_one_gone_on_from_stays_until_a_newer_one_is_whole(scratch, tmp_path):
    out_dir = scratch(train=replace(TRAIN, save_interval=2, max_steps=5))
    shutil.rmtree(out_dir / "final")
    assert steps(out_dir) == [2, 4]
    with pytest.raises(SystemExit):  # it ends before anything is saved
        scratch(train=replace(TRAIN, save_interval=2), keep_last=1, resume=True, sample="x " * 100)
    assert steps(out_dir) == [2, 4]
    scratch(train=replace(TRAIN, save_interval=2), keep_last=1, resume=True)
    assert steps(out_dir) == [4]


def test_the_steps_of_a_schedule_stay(scratch):
    train = TrainArgs(global_batch_size=8, micro_batch_size=4, max_steps=6, save_interval=1, cooldown_steps=3)
    out_dir = scratch(train=train, schedule="wsd", keep_last=1)
    assert steps(out_dir) == [3, 5]  # the cooldown begins at 3


def test_keep_last_is_checked_before_training(scratch, refused):
    for changes, said in (
        (dict(keep_last=0), "--keep_last must be above 0"),
        (dict(keep_last=1, train=replace(TRAIN, save_interval=None)), "--keep_last has nothing to remove"),
    ):
        assert said in refused(scratch, **changes)


def test_what_is_kept_is_no_part_of_what_a_run_is(scratch):
    written = yaml.safe_load((scratch(train=EVERY, keep_last=3) / "final/warmstart.yaml").read_text())
    assert "keep_last" not in written["identity"] and "sample" not in written["identity"]
