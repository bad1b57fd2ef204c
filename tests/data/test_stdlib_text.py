"""StdlibText: real text without a download, the same on every preparation, with train and validation apart."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from litgpt.tokenizer import Tokenizer

from litgpt_warmstart.data import StdlibText
from litgpt_warmstart.data.preparing.bpe import EOS
from litgpt_warmstart.data.stdlib_text import in_validation, pieces, stdlib_documents
from litgpt_warmstart.errors import UserError


@pytest.fixture
def data(stdlib_path) -> StdlibText:
    data = StdlibText(stdlib_path)
    data.connect(batch_size=4, max_seq_length=256)
    data.prepare_data()
    return data


def test_it_has_millions_of_tokens_and_a_held_out_part(data):
    train, val = data.tokens("train"), data.tokens("val")
    assert len(train) > 2_500_000 and 0.01 < len(val) / len(train) < 0.1
    assert train[:].max() < data.padded_vocab_size == 4096


def test_litgpts_tokenizer_reads_the_text_back(data, stdlib_path):
    tokenizer = Tokenizer(stdlib_path)
    text = tokenizer.processor.decode(data.tokens("train")[:5000].tolist(), skip_special_tokens=False)
    parts = [part for part in text.split(EOS) if part][:-1]
    documents = "\0".join(stdlib_documents().values())
    assert len(parts) > 3 and all(part in documents for part in parts)
    assert tokenizer.eos_id == tokenizer.token_to_id(EOS) == 0


def test_no_document_is_in_both_splits_and_pieces_lose_nothing():
    documents = stdlib_documents()
    held_out = {name for name in documents if in_validation(name)}
    assert 0 < len(held_out) < len(documents) / 10
    for text in [*documents.values(), "", "\n", "no line end"]:
        assert "".join(pieces(text)) == text
    assert not any("/test/" in f"/{name}" or "site-packages" in name for name in documents)


def test_preparing_again_gives_the_same_tokens(data, tmp_path):
    again = StdlibText(tmp_path / "again")
    again.prepare_data()
    assert again.fingerprint == data.fingerprint
    assert np.array_equal(again.tokens("val")[:], data.tokens("val")[:])
    assert (tmp_path / "again/tokenizer.json").read_bytes() == (data.data_path / "tokenizer.json").read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["again"]  # nothing half-written is left


def test_damage_and_the_first_landings_format_are_refused_with_the_remedy(data, tmp_path):
    folder = Path(shutil.copytree(data.data_path, tmp_path / "damaged"))
    (folder / "train/chunk-0-0.bin").write_bytes(b"12")
    with pytest.raises(UserError, match="chunk-0-0.bin' is missing or cut off"):
        StdlibText(folder).prepare_data()
    (folder / "prepared.json").rename(folder / "train.bin")
    with pytest.raises(UserError, match="prepared by litgpt-warmstart 0.1, .*: remove it with rm -r"):
        StdlibText(folder).prepare_data()
