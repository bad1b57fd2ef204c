"""Checkpoints for other tools: the same logits where the attention scale has nowhere to go."""

import shutil
from dataclasses import replace

import pytest
from litgpt.config import Config
from litgpt.utils import save_config
from safetensors import SafetensorError

from litgpt_warmstart.commands import warmstart_export, warmstart_grow


def test_a_grown_checkpoint_is_exported_in_both_formats_with_its_tokenizer(base, tiny, tmp_path, capsys):
    warmstart_grow.setup(base=base, target=tiny[48], out_dir=tmp_path / "grown")
    shared = dict(checkpoint_dir=tmp_path / "grown", overwrite=True)
    for format in ("litgpt", "transformers"):
        warmstart_export.setup(out_dir=tmp_path / format, format=format, **shared)
        assert "Wrote" in capsys.readouterr().out
        assert (tmp_path / format / "tokenizer.json").is_file()
        assert not (tmp_path / format / "warmstart.yaml").exists()  # it tells of the scale
    warmstart_export.setup(out_dir=tmp_path / "litgpt", **shared)  # replaced
    assert (tmp_path / "litgpt/config.json").is_file() and not (tmp_path / "litgpt/lit_model.pth").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(base, tmp_path, capsys, monkeypatch):
    def full(*args: object, **more: object) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("litgpt_warmstart.run.export.save_file", full)
    with pytest.raises(SystemExit):
        warmstart_export.setup(base, tmp_path / "out")
    err = capsys.readouterr().err
    assert "No space left on device; free space" in err and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_is_not_supported_is_refused(base, tmp_path, capsys):
    shutil.copytree(base, tmp_path / "gemma")
    config = Config.from_file(base / "model_config.yaml")
    save_config(replace(config, scale_embeddings=True), tmp_path / "gemma")
    (tmp_path / "gemma/warmstart.yaml").unlink()
    with pytest.raises(SystemExit):
        warmstart_export.setup(tmp_path / "gemma", tmp_path / "out", format="litgpt")
    assert "has embeddings scaled by sqrt(n_embd)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(checkpoint_dir=None), "--checkpoint_dir is missing"),
        (dict(out_dir=None), "--out_dir is missing"),
        (dict(out_dir="source"), "was not written by this command alone"),
        (dict(out_dir="mine"), "was not written by this command alone"),
        (dict(out_dir="before"), "exists: pass --overwrite true"),
    ],
)
def test_what_cannot_be_exported_is_one_line(base, tmp_path, capsys, changes, told):
    for name in ("mine/notes", "before/.warmstart_export"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    if changes.get("out_dir"):
        changes = dict(out_dir=base.parent if changes["out_dir"] == "source" else tmp_path / changes["out_dir"])
    with pytest.raises(SystemExit):
        warmstart_export.setup(**dict(checkpoint_dir=base, out_dir=tmp_path / "new") | changes)
    err = capsys.readouterr().err
    assert told in err and len(err.splitlines()) == 1 and not (tmp_path / "new").exists()
