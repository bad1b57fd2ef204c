"""tiktoken's ids are those of the tokenizer, or it is not used."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from litgpt.tokenizer import Tokenizer as LitGPTTokenizer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from litgpt_warmstart.data.preparing import encode as encoding
from litgpt_warmstart.data.preparing.encode import DocumentEncoder
from litgpt_warmstart.errors import UserError

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BLANKS = st.text(st.sampled_from(" \n\t\r\xa0\u2003\u3000ab1.'"), max_size=60)
PIECES = st.lists(
    st.sampled_from(["<|endoftext|>", "<|pad|>", "<|", " ", "'ll", "12", "caf\xe9", "\n\n", "x"]), max_size=12
)


@pytest.fixture(scope="session")
def encoders(stdlib_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, DocumentEncoder]:
    """GPT-2's kind, one with ids in another order and more special tokens, LLaMA 3's splitting, and a normalizer."""
    content = json.loads((stdlib_path / "tokenizer.json").read_text(encoding="utf-8"))
    shuffled, order = json.loads(json.dumps(content)), np.random.default_rng(0).permutation(4096).tolist()
    shuffled["model"]["vocab"] = {token: order[i] for token, i in content["model"]["vocab"].items()}
    shuffled["added_tokens"][0]["id"] = order[0]
    shuffled["added_tokens"].append({**shuffled["added_tokens"][0], "id": 5000, "content": "<|pad|>"})
    llama3, nfc = Tokenizer.from_str(json.dumps(content)), Tokenizer.from_str(json.dumps(content))
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated")
    llama3.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    nfc.normalizer = normalizers.NFC()

    made = {"gpt2": DocumentEncoder(stdlib_path)}
    kinds = {"shuffled": json.dumps(shuffled), "llama3": llama3.to_str(), "nfc": nfc.to_str()}
    for name, content in kinds.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "tokenizer.json").write_text(content, encoding="utf-8")
        made[name] = DocumentEncoder(folder)
    return made


@pytest.mark.parametrize("kind", ["gpt2", "shuffled", "llama3", "nfc"])
@settings(max_examples=400)
@given(st.one_of(st.text(max_size=80), BLANKS, PIECES.map("".join)))
@example(" " * 3000)
@example("a" * 3000 + "\u0301" * 50)
@example("e\u0301 \u0130 caf\xe9 \u212b ")
def test_ids_are_those_of_the_tokenizer_on_any_text(encoders, kind, text):
    encoder = encoders[kind]
    assert encoder.name == "tiktoken", encoder.why_not_tiktoken
    assert encoder.encode(text).tolist() == encoder.tokenizer.encode(text, add_special_tokens=False).ids


def test_ids_are_those_of_litgpts_tokenizer(encoders, stdlib_path, texts):
    litgpt = LitGPTTokenizer(stdlib_path)
    for text in texts[:50]:
        assert encoders["gpt2"].encode(text).tolist() == litgpt.encode(text, bos=False, eos=False).tolist()


@pytest.mark.slow
def test_every_character_splits_alike(encoders):
    """The two libraries carry Unicode tables of their own; each character stands between letters, digits and blanks."""
    assigned = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cs", "Co", "Cn")]
    for start in range(0, len(assigned), 200):
        text = "".join(f"a{c}1{c} {c}\n" for c in assigned[start : start + 200])
        assert encoders["gpt2"].agrees([text]), text


def test_a_text_that_exceeds_the_stack_of_tiktokens_regex_is_encoded_all_the_same(encoders):
    text = "\n" * 1_000_000 + "x"
    with pytest.raises(ValueError, match="stack"):
        encoders["gpt2"]._fast.encoding.encode_to_numpy(text)
    assert encoders["gpt2"].agrees([text])


def test_tiktoken_is_given_up_where_an_id_differs(stdlib_path, monkeypatch):
    monkeypatch.setattr(encoding, "GPT2_SPLIT", encoding.GPT2_SPLIT.replace("?[^", "[^"))
    encoder = DocumentEncoder(stdlib_path)
    assert encoder.name == "tokenizers" and encoder.why_not_tiktoken == "its ids differ on a test case"
    with pytest.raises(UserError, match="--encoder tiktoken cannot encode as .* ids differ"):
        DocumentEncoder(stdlib_path, "tiktoken")


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(["some words here"], trainers.WordPieceTrainer(special_tokens=["[UNK]"]))
    return tokenizer


def byte_level(*added: AddedToken, **changes: object) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(["some words here"], trainers.BpeTrainer(initial_alphabet=alphabet))
    tokenizer.add_tokens(list(added))
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def with_unreachable_token() -> Tokenizer:
    """As LLaMA 3 may: a token of the vocabulary that no merge makes, taken whole."""
    content = json.loads(byte_level().to_str())
    content["model"]["vocab"]["zqzq"] = len(content["model"]["vocab"])
    content["model"]["ignore_merges"] = True
    return Tokenizer.from_str(json.dumps(content))


DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(False, use_regex=False)])


@pytest.mark.parametrize(
    ("tokenizer", "why"),
    [
        (wordpiece(), "its model is WordPiece, not BPE"),
        (byte_level(normalizer=normalizers.NFKC()), "it normalizes text"),
        (byte_level(pre_tokenizer=pre_tokenizers.Whitespace()), "its pre-tokenizer is not byte-level, or does more"),
        (byte_level(pre_tokenizer=pre_tokenizers.ByteLevel()), "its pre-tokenizer is not byte-level, or does more"),
        (byte_level(pre_tokenizer=DIGITS), "its pre-tokenizer is not byte-level, or does more"),
        # As GPT-NeoX's, whose added tokens are runs of blanks: which of them is taken, only tokenizers knows.
        (byte_level(AddedToken("  "), AddedToken("    ")), "its added token '    ' begins as another does"),
        (byte_level(AddedToken("<mask>", lstrip=True)), "its added token '<mask>' strips what is around it"),
        (with_unreachable_token(), "its vocabulary has tokens that no merge makes"),
    ],
)
def test_other_tokenizers_are_used_as_they_are_and_the_reason_is_told(tokenizer, why, tmp_path):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder = DocumentEncoder(tmp_path)
    assert encoder.name == "tokenizers" and encoder.why_not_tiktoken == why
    assert encoder.encode("some words").tolist() == tokenizer.encode("some words", add_special_tokens=False).ids


def test_merges_are_ignored_alike_where_all_tokens_can_be_merged(stdlib_path, tmp_path, texts):
    content = json.loads((stdlib_path / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["ignore_merges"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    encoder = DocumentEncoder(tmp_path)
    assert encoder.name == "tiktoken" and encoder.agrees(texts[:100])


def test_a_damaged_tokenizer_is_one_line(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": {"type"')
    with pytest.raises(UserError, match="is damaged"):
        DocumentEncoder(tmp_path)
