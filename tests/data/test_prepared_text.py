"""The DataModules: prepared at first use, read by range, and taken up by a warmstart where its base ended."""

import json
from dataclasses import replace

import huggingface_hub.constants
import pytest

import litgpt_warmstart.data as ours
from litgpt_warmstart.commands import warmstart, warmstart_prepare_data, warmstart_scratch
from litgpt_warmstart.data import PreparedText, SlimPajama6B
from litgpt_warmstart.data.preparing import request
from litgpt_warmstart.data.recorded import recorded_data
from litgpt_warmstart.data.use import DataUse, class_path, init_args
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.spec import TrainArgs
from tests.data.conftest import prepare


@pytest.fixture
def data(ask, small) -> PreparedText:
    """Prepared text in a few chunks."""
    prepare(ask)
    data = PreparedText(ask.data_path)
    data.prepare_data()
    return data


def test_it_is_prepared_at_first_use(ask):
    data = PreparedText(ask.data_path, text_dir=ask.text_dir, tokenizer=ask.tokenizer)
    assert not data.is_prepared and data.vocab_size == data.padded_vocab_size == 4096
    assert json.loads(data.tokenizer_json)["model"]["type"] == "BPE"
    data.prepare_data()
    assert data.is_prepared and data.vocab_size == 4096
    assert recorded_data(DataUse(class_path(data), init_args(data), 0)).fingerprint == data.fingerprint


def test_a_vocabulary_is_padded_as_in_table_1(ask, monkeypatch):
    prepare(ask)
    data = PreparedText(ask.data_path)
    data.index = replace(data.index, vocab_size=50_257)
    assert (data.vocab_size, data.padded_vocab_size) == (50_257, 50_304)


def test_slimpajama_is_the_papers_dataset():
    data = SlimPajama6B()
    assert (data.repo_id, data.revision) == ("DKYoon/SlimPajama-6B", request.SLIMPAJAMA_6B_COMMIT)
    assert str(data.data_path) == "data/slimpajama-6b"
    with pytest.raises(UserError, match="pass --data SlimPajama6B$"):  # nothing is fetched because a record says so
        recorded_data(DataUse(class_path(data), init_args(data), 0))
    assert request.default_data_path("a/B-c", None).as_posix() == "data/b-c"


def test_a_warmstart_says_when_its_bases_data_was_prepared_otherwise(tiny, tiny_settings, data, ask, tmp_path, capsys):
    own = tiny_settings | dict(data=data, train=TrainArgs(global_batch_size=8, max_steps=2))
    warmstart_scratch.setup(target=tiny[16], lr=0.02, out_dir=tmp_path / "a", **own)
    prepare(replace(ask, data_path=tmp_path / "otherwise", seed=7))
    own["data"] = PreparedText(tmp_path / "otherwise")
    warmstart.setup(base=tmp_path / "a/final", target=tiny[48], out_dir=tmp_path / "b", **own)
    assert "the base has also read PreparedText, which cannot be compared" in capsys.readouterr().out
    assert Record.load(tmp_path / "b/final/warmstart.yaml").data.start_token == 0


def test_without_data_or_a_base_the_data_is_slimpajama(monkeypatch, tmp_path, refused):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    told = refused(warmstart_scratch.setup, target="5M", compile=False)
    assert "without --data the data is SlimPajama-6B" in told and "--data StdlibText needs no network" in told
    assert "tokenizer 'openai-community/gpt2' is not in the Hub's cache, and HF_HUB_OFFLINE is set" in told
    assert not list(tmp_path.glob("out*")) and not list(tmp_path.glob("data*"))


def test_another_tokenizer_than_the_bases_is_refused_before_anything_is_prepared(base, tiny, ask, tmp_path, refused):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    content = json.loads((base / "tokenizer.json").read_text())
    content["model"]["merges"].pop()
    (tokenizer / "tokenizer.json").write_text(json.dumps(content))
    data = PreparedText(ask.data_path, text_dir=ask.text_dir, tokenizer=str(tokenizer))
    told = refused(warmstart.setup, base=base, target=tiny[48], data=data, out_dir=tmp_path / "out")
    assert "has another tokenizer than the one in" in told
    assert not ask.data_path.parent.exists()


def test_nothing_prepared_and_nothing_to_prepare_is_told(tmp_path):
    for use in (PreparedText.prepare_data, lambda data: data.vocab_size, lambda data: data.tokenizer_json):
        with pytest.raises(UserError, match="nothing is prepared in .*: check --data.data_path, or give"):
            use(PreparedText(tmp_path / "data"))
        with pytest.raises(UserError, match="--data PreparedText needs --data.data_path"):
            use(PreparedText())


def test_the_command_prepares_names_the_module_and_does_nothing_twice(ask, capsys, monkeypatch, tmp_path, refused):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        warmstart_prepare_data.setup(text_dir=ask.text_dir, tokenizer=ask.tokenizer, num_workers=1)
        said = capsys.readouterr().out
        assert "Train on it with --data PreparedText --data.data_path data/my text" in said
    assert "Preparing" not in said
    told = refused(warmstart_prepare_data.setup, text_dir=ask.text_dir, repo_id="a/b", num_workers=1)
    assert "repo_id and text_dir exclude each other" in told
    told = refused(warmstart_prepare_data.setup, text_dir=ask.text_dir, val_fraction=2.0)
    assert "val_fraction must lie between 0 and 1" in told


def test_a_new_source_is_called_by_its_module_until_it_is_exported_and_then_a_record_may_choose_it(data, monkeypatch):
    source = type("NpyTokens", (PreparedText,), {"__module__": "litgpt_warmstart.data.npy_tokens"})
    use = DataUse(class_path(source), {"data_path": str(data.data_path)}, 0)
    assert use.class_path == "litgpt_warmstart.data.npy_tokens.NpyTokens"
    with pytest.raises(UserError, match="may not choose"):
        recorded_data(use)
    monkeypatch.setattr(ours, "NpyTokens", source, raising=False)
    monkeypatch.setattr(ours, "__all__", [*ours.__all__, "NpyTokens"])
    assert class_path(source) == "litgpt_warmstart.data.NpyTokens"
    assert isinstance(recorded_data(replace(use, class_path=class_path(source))), source)
