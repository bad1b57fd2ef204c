"""--moments carried: a run begins with its base's moments, or is refused in one line."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from litgpt_warmstart.commands import warmstart_plan
from litgpt_warmstart.run.checkpoint import read_header
from tests.conftest import TRAIN, assert_same_weights, neox, weights


def optimizer_state(folder: Path) -> dict:
    return torch.load(folder / "training_state.pth")["optimizer"]


@pytest.mark.parametrize("optimizer", ["AdamW", "Muon"])
def test_a_run_begins_with_its_bases_moments_and_goes_on_to_the_same_bits(optimizer, scratch, warm):
    base = scratch("base", optimizer=optimizer, seed=1) / "final"
    own = dict(base=base, optimizer=optimizer)
    whole = warm("carried", moments="carried", **own)
    saved = optimizer_state(whole / "final")["state"].values()
    assert {float(state["step"]) for state in saved if "step" in state} == {12.0}  # 6 of the base's
    record = read_header(whole / "final").record
    assert record.growth.moments == "carried" and record.identity["growth"]["moments"] == "carried"
    fresh = warm("fresh", **own)
    first, second = (weights(folder / "final")["lm_head.weight"] for folder in (whole, fresh))
    assert not torch.equal(first, second)
    part = dict(moments="carried", **own, train=replace(TRAIN, save_interval=3))
    parted = warm("parted", **part)
    shutil.rmtree(parted / "final")
    warm("parted", **part, resume=True)
    assert_same_weights(whole / "final", parted / "final")


def test_a_deeper_model_has_them_too(warm, tmp_path):
    from litgpt.utils import save_config

    save_config(neox(16, 2, n_layer=4, vocab_size=4096, padded_vocab_size=4096), tmp_path)
    how = dict(target=str(tmp_path / "model_config.yaml"), operator="stack", moments="carried")
    folder = warm("deep", **how) / "final"
    assert {float(state["step"]) for state in optimizer_state(folder)["state"].values()} == {16.0}


def test_a_base_without_a_training_state_or_of_another_optimizer_is_refused(refused, warm, base, tiny, tmp_path):
    bare, carried = Path(shutil.copytree(base, tmp_path / "bare")), partial(warm, "refused", moments="carried")
    (bare / "training_state.pth").unlink()
    assert "has no training state (training_state.pth): pass --moments fresh" in refused(carried, base=bare)
    (bare / "warmstart.yaml").unlink()
    assert "has no training state" in refused(carried, base=bare, lr=0.1, train=replace(TRAIN, global_batch_size=8))
    told = refused(carried, optimizer="Adam")
    assert "was trained with AdamW, betas" in told and "this run has Adam, betas" in told
    assert "this run has AdamW" in refused(carried, optimizer={"class_path": "AdamW", "init_args": {"amsgrad": True}})
    own = dict(base=base, target=tiny[48], moments="carried", optimizer="RAdam", measure=False)
    assert "was trained with AdamW" in refused(warmstart_plan.setup, **own)
    assert not (tmp_path / "refused").exists()
