"""The model card: what the record says, for everybody; nothing of the machine."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from litgpt_warmstart.commands import warmstart_export, warmstart_grow
from litgpt_warmstart.run.card import hub_name, is_as_written, model_card
from litgpt_warmstart.run.checkpoint import read_header
from litgpt_warmstart.run.record import Ancestor
from tests.conftest import losses


def card(folder: Path, repo_id: str | None = None, **changes: Any) -> ModelCard:
    """Of a checkpoint folder, with changes to its record; read by the Hub's client."""
    header = read_header(folder)
    record = header.record and replace(header.record, **changes)
    return ModelCard(model_card(replace(header, record=record), 1_234_567, "GPTNeoXForCausalLM", "mit", repo_id))


def ancestor(path: str, **more: Any) -> Ancestor:
    return Ancestor(name="pythia-14m", path=path, sha256="0" * 64, parameters=14_067_712, **more)


def test_a_warmstarts_card_tells_lineage_growth_data_budget_figures_and_licence(warm, base):
    run = warm("run")
    told, record = card(run / "final"), read_header(run / "final").record
    assert told.data.to_dict() == {
        "library_name": "transformers", "license": "mit", "pipeline_tag": "text-generation",
        "tags": ["litgpt", "litgpt-warmstart"],
    }  # fmt: skip
    of_base = read_header(base).record
    for row in (
        f"| neox-16 | {of_base.parameters:,} | from scratch | 5,120 | StdlibText | {of_base.hoffmann_flops:.4g} |",
        f"| neox-48 | {record.parameters:,} | grown from neox-16: {record.growth.told} | 3,072 | StdlibText |",
        f"| budget | 3,072 tokens ({3072 / record.parameters:.2f} per parameter) in 6 steps |",
        f"| validation loss | {losses(run, 'val_loss')[-1]:.4f} nats per token |",
        f"| Hoffmann FLOPs | {record.hoffmann_flops:.4g}, with its lineage's",
        "| learning rate | 0.02 |",
        f"| prepared tokens | {record.data.fingerprint}, {record.data.start_token} to {record.data.stop_token} |",
        "https://arxiv.org/abs/2411.07340",
        f"torch {record.versions['torch']}",
    ):
        assert row in told.text, row


def test_a_card_tells_of_growing_and_training_where_there_was_some(base, tiny, tmp_path):
    trained = card(base).text
    assert "2411.07340" not in trained and "pretrained to continue text" in trained
    assert "| parametrization | mup, tuned at n_embd 16 |" in trained
    assert "| parametrization | sp |" in card(base, parametrization="sp").text  # tuned where it is
    warmstart_grow.setup(base=base, target=tiny[48], out_dir=tmp_path / "grown")
    grown = card(tmp_path / "grown").text
    assert "2411.07340" in grown and "pretrained to" not in grown


def test_nothing_of_the_machine_is_told(warm, tmp_path):
    run = warm("run")
    warmstart_export.setup(run / "final", tmp_path / "hf")
    places = [str(tmp_path), f"{Path.home()}/", str(Path.cwd()), tmp_path.name, "command_line"]
    host = re.compile(rf"\b{re.escape(os.uname().nodename)}\b")
    for path in (tmp_path / "hf").iterdir():
        if path.suffix in (".md", ".json", "") and not path.name.startswith("tokenizer"):
            content = path.read_text()
            assert not [place for place in places if place in content] and not host.search(content), path


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("checkpoints/EleutherAI/pythia-14m", "EleutherAI/pythia-14m"),
        ("/home/me/checkpoints/EleutherAI/pythia-14m", "EleutherAI/pythia-14m"),
        ("out/EleutherAI/pythia-14m", None),
        ("pythia-14m", None),
        ("checkpoints/a b/c", None),
    ],
)
def test_a_base_has_its_name_on_the_hub_where_litgpt_downloads_to(base, path, told):
    assert hub_name(ancestor(path)) == told
    assert card(base, lineage=(ancestor(path),)).data.base_model == told
    assert (
        "| pythia-14m | 14,067,712 | not known | not known | not known | not known |"
        in card(base, lineage=(ancestor(path),)).text
    )
    assert hub_name(ancestor(path, data=read_header(base).record.data)) is None  # a run's own


def test_data_of_the_hub_is_named_by_its_repository_and_revision(base):
    data = read_header(base).record.data
    of_hub = replace(data, init_args={"repo_id": "DKYoon/SlimPajama-6B", "revision": "b5f90f4"})
    told = card(base, data=of_hub, lineage=(ancestor("out/small/final", data=of_hub),))
    assert told.data.datasets == ["DKYoon/SlimPajama-6B"]
    assert "| data | DKYoon/SlimPajama-6B at b5f90f4 |" in told.text
    assert card(base, data=replace(data, init_args={"repo_id": "/home/me/texts"})).data.datasets is None


def test_a_checkpoint_without_a_record_has_a_card_that_says_so(base, tmp_path):
    for name in ("lit_model.pth", "model_config.yaml"):
        (tmp_path / name).symlink_to(base / name)
    told = card(tmp_path, "me/tiny")
    assert "1,234,567 parameters (GPTNeoXForCausalLM: 2 layers of width 16" in told.text
    assert "It has no record of its training." in told.text and "Lineage" not in told.text
    assert 'AutoTokenizer.from_pretrained("me/tiny")' in told.text


def test_text_in_a_record_cannot_change_the_cards_head_or_its_tables(base):
    told = card(base, lineage=(ancestor("x", growth=None), replace(ancestor("y"), name="a\n---\nlicense: other | b")))
    assert told.data.license == "mit" and "| a --- license: other / b |" in told.text
    assert yaml.safe_load(told.data.to_yaml()) == told.data.to_dict()


def test_a_changed_card_is_somebodys(base, tmp_path):
    warmstart_export.setup(base, tmp_path / "hf")
    path = tmp_path / "hf/README.md"
    assert is_as_written(path)
    for changed in (path.read_text() + "\n", path.read_text().replace("neox", "mine"), "", "# Mine\n"):
        path.write_text(changed)
        assert not is_as_written(path), changed
