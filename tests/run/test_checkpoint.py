"""Checkpoint folders: whole or not at all, exact weights, records that survive a round trip."""

import os
import resource
from dataclasses import asdict
from pathlib import Path
from signal import SIGKILL

import pytest
import torch
import yaml

from litgpt_warmstart import files
from litgpt_warmstart.data.use import DataUse
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.growth import Grown
from litgpt_warmstart.run import checkpoint
from litgpt_warmstart.run.folder import newest_checkpoint
from litgpt_warmstart.run.record import Ancestor, Record
from tests.conftest import build, neox, randomized

DATA = DataUse("litgpt_warmstart.data.StdlibText", {"data_path": "data"}, 640, "abc", 0, 650)
GROWTH = Grown(
    0.4, "blocks", source_dir="out/5M/final", asked_alignment="heads", alignment_reason="head_size 24 -> 16", seed=42
)

TRAINING = dict(schedule={"name": "constant", "total_steps": 10}, optimizer="AdamW", max_norm=1.0, block_size=64,
                micro_batch_size=4, max_tokens=640, precision="32-true", seed=1)  # fmt: skip


def record(width_mult: float = 1.0) -> Record:
    lineage = (
        Ancestor("a", "out/a", "f" * 64, 10, 640, 9, DATA),
        Ancestor("b", "out/b", "0" * 64, 20, 0, 0, None, GROWTH),
    )
    return Record(
        command="warmstart", name="x", parameters=3, parametrization="mup", mup_base_config=asdict(neox(16, 2)),
        width_mult=width_mult, base_lr=0.01, global_batch_size=8, data=DATA, growth=GROWTH, lineage=lineage,
        training=TRAINING,
    )  # fmt: skip


def save(folder, config, width_mult=1.0):
    model = randomized(build(config, neox(16, 2)))
    checkpoint.save_checkpoint(folder, model.state_dict().items(), model.config, record(width_mult), {}, None)
    return model


def test_a_record_survives_the_round_trip(tmp_path):
    record().save(tmp_path / "warmstart.yaml")
    assert Record.load(tmp_path / "warmstart.yaml") == record()
    assert record().data_uses == (DATA, DATA)


def test_a_record_of_an_older_version_has_no_hoffmann_flops(tmp_path):
    path = tmp_path / "warmstart.yaml"
    record().save(path)
    content = yaml.safe_load(path.read_text())
    for written in (content, *content["lineage"]):
        del written["hoffmann_flops"]
    path.write_text(yaml.safe_dump(content))
    assert Record.load(path) == record() and record().hoffmann_flops == record().lineage[0].hoffmann_flops == 0


@pytest.mark.parametrize("n_embd", [32, 48, 112])
def test_weights_are_read_back_unfolded_bit_for_bit(tmp_path, n_embd):
    model = save(tmp_path / "c", neox(n_embd, 2), n_embd / 16)
    for name, weight in checkpoint.read_checkpoint(tmp_path / "c").weights.items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_without_the_training_state_the_readout_is_unfolded_by_the_record(tmp_path):
    model = save(tmp_path / "c", neox(48, 2), 3.0)
    (tmp_path / "c/training_state.pth").unlink()
    read = checkpoint.read_checkpoint(tmp_path / "c").weights["lm_head.weight"]
    torch.testing.assert_close(read, model.lm_head.weight.detach(), rtol=1e-6, atol=0)


def test_weights_that_were_replaced_are_refused_and_in_an_older_folder_not_mixed_with_its_training_state(tmp_path):
    save(tmp_path / "c", neox(48, 2), 3.0)
    weights = torch.load(tmp_path / "c/lit_model.pth")
    weights["lm_head.weight"] += 1.0  # as finetuning in place would
    torch.save(weights, tmp_path / "c/lit_model.pth")
    with pytest.raises(UserError, match="not as it was saved"):
        checkpoint.read_checkpoint(tmp_path / "c")
    content = yaml.safe_load((tmp_path / "c/warmstart.yaml").read_text()) | {"sha256": {}}
    (tmp_path / "c/warmstart.yaml").write_text(yaml.safe_dump(content))
    read = checkpoint.read_checkpoint(tmp_path / "c").weights["lm_head.weight"]
    assert torch.equal(read, weights["lm_head.weight"] * 3.0)


@pytest.mark.parametrize(
    "wrap", [lambda w: w, lambda w: {"model": w}, lambda w: {"model": {f"_orig_mod.{n}": t for n, t in w.items()}}]
)
def test_every_layout_that_litgpt_writes_is_read(tmp_path, wrap):
    model = save(tmp_path / "c", neox(16, 2))
    torch.save(wrap(dict(model.state_dict())), tmp_path / "c/lit_model.pth")
    (tmp_path / "c/warmstart.yaml").unlink()
    read = checkpoint.read_checkpoint(tmp_path / "c")
    assert read.record is None and read.mup_base_config == read.config
    assert read.weights.keys() == dict(model.named_parameters()).keys()


def test_weights_of_older_litgpt_are_read(tmp_path):
    model = save(tmp_path / "c", neox(16, 2))
    (tmp_path / "c/warmstart.yaml").unlink()
    weights = dict(model.state_dict())
    for name in [n for n in weights if ".attn.qkv." in n]:  # rows were q, k, v of head 0, then of head 1
        kind = name.rpartition(".")[2]
        heads = weights.pop(name).view(3, 2, 8, -1).transpose(0, 1).reshape(48, -1).squeeze(-1)
        weights[name.replace(f"qkv.{kind}", f"attn.{kind}")] = heads
    torch.save(weights, tmp_path / "c/lit_model.pth", _use_new_zipfile_serialization=False)
    read = checkpoint.read_checkpoint(tmp_path / "c").weights
    for name, weight in model.state_dict().items():
        assert torch.equal(read[name], weight), name


def test_a_failed_rename_puts_the_older_folder_back(tmp_path, monkeypatch):
    (tmp_path / "c").mkdir()
    (tmp_path / "c/old").write_text("1")
    rename = checkpoint.Path.rename

    def fail(self, to):
        if self.name.endswith(".partial"):
            raise OSError(28, "No space left on device")
        return rename(self, to)

    monkeypatch.setattr(checkpoint.Path, "rename", fail)
    with pytest.raises(UserError), files.atomic_folder(tmp_path / "c"):
        pass
    assert (tmp_path / "c/old").is_file() and len(list(tmp_path.iterdir())) == 1


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(ZeroDivisionError), files.atomic_folder(tmp_path / "c") as partial:
        (partial / "half").write_text("1")
        assert not (tmp_path / "c").exists()
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []
    for content in ("old", "new"):
        with files.atomic_folder(tmp_path / "c", lambda folder: files.others(folder, ["file"])) as partial:
            (partial / "file").write_text(content)
    assert (tmp_path / "c/file").read_text() == "new" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("before", [files.partial_folder, lambda path: path], ids=["filling it", "it is there"])
def test_a_folder_that_is_renamed_while_it_is_written_is_said_to_be(tmp_path, monkeypatch, before):
    path = tmp_path / "run/step-00000002"
    flush = files.flush_to_disk

    def flushed(entry):
        if before(path).exists() and path.parent.exists():
            path.parent.rename(tmp_path / "elsewhere")
        flush(entry)

    monkeypatch.setattr(files, "flush_to_disk", flushed)
    told = "step-00000002' has been removed or renamed while it was written"
    with pytest.raises(UserError, match=told), files.atomic_folder(path) as partial:
        (partial / "file").touch()


def test_what_is_foreign_in_a_folder_that_is_replaced_is_kept_aside(tmp_path, capsys):
    for content in ("old", "new"):
        with files.atomic_folder(tmp_path / "c") as partial:
            (partial / "file").write_text(content)
    assert (tmp_path / "c/file").read_text() == "new" and (tmp_path / "c-before-1/file").read_text() == "old"
    assert f"kept as {str(tmp_path / 'c-before-1')!r}" in capsys.readouterr().err


def test_a_kill_between_the_two_renames_loses_no_checkpoint(tmp_path):
    final = tmp_path / "final"
    save(final, neox(48, 2), 3.0)
    child = os.fork()
    if child == 0:
        rename = Path.rename
        Path.rename = lambda path, to: (rename(path, to), str(to).endswith(".older") and os.kill(os.getpid(), SIGKILL))
        with files.atomic_folder(final) as partial:
            (partial / "file").write_text("new")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -SIGKILL and not final.exists()
    assert newest_checkpoint(tmp_path)[0] == tmp_path / ".final.older" and not final.exists()
    files.put_back(final)
    assert newest_checkpoint(tmp_path)[0] == final and (final / "lit_model.pth").is_file()


@pytest.mark.parametrize("fits", [1_000, 400_000, 2_300_000])
def test_a_disk_that_is_full_while_weights_are_written_is_one_line(tmp_path, fits):
    """A file that may not grow beyond a size fails as on a full disk: Python ignores the signal that says so, too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (fits, before[1]))
    try:
        with pytest.raises(UserError, match="cannot write ") as error:
            save(tmp_path / "step-1", neox(64, 4, vocab_size=4096, padded_vocab_size=4096))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_of_a_view_only_what_is_seen_is_written(tmp_path):
    model = build(neox())
    weights = [(name, torch.cat((w, w))[: len(w)]) for name, w in model.state_dict().items()]
    checkpoint.save_checkpoint(tmp_path / "a", weights, model.config, record(), {}, None)
    checkpoint.save_checkpoint(tmp_path / "b", model.state_dict().items(), model.config, record(), {}, None)
    sizes = [(tmp_path / folder / "lit_model.pth").stat().st_size for folder in "ab"]
    assert sizes[0] == sizes[1]
