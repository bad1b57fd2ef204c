"""Text to token ids: tiktoken where its ids are those of the tokenizer, ``tokenizers`` otherwise.

A byte-level BPE such as GPT-2's is the same algorithm in both libraries, and tiktoken runs it several times faster. It
is built from the vocabulary and merges in tokenizer.json, compared with ``tokenizers`` on hard cases and on the data at
hand, and used only where every id agrees.
"""

import json
import os
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tiktoken
from tokenizers import Tokenizer

from litgpt_warmstart.errors import UserError, one_line

EncoderName = Literal["tiktoken", "tokenizers"]
GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
"""What ``ByteLevel(use_regex=True)`` splits at, with possessive quantifiers, which match the same and faster."""

HARD_CASES = (
    "", " ", "  ", "\n", "\r\n\r\n", "\t \t", "a", " a", "a ", "  a  b   c    ", "\n\n a\n  b\n",
    "don't they'll I'VE 'S", "x=1;y[2]+=3.14e-5 # 1234567890", "http://a.b/c?d=e&f=%20",
    "<|endoftext|>", "a<|endoftext|> b", "<|endoftext|", "Stra\xdfe fa\xe7ade na\xefve",
    "\u2014\u2013\u2026\u201c\u2019", "\xa0\u2003\u3000 \u200b\ufeff", " \xa0 \n \u2003x",
    "\x00\x01\x7f\x85\u2028\u2029", "e\u0301 \u0130 \u01c5 \ufb01",
    "\u6f22\u5b57\u304b\u306a \ud55c\uad6d\uc5b4 \u0627\u0644\u0639\u0631 \u0939\u093f\u0928\u094d \u0e44\u0e17\u0e22",
    "\u0663\u0664 \xbd \u2167 \xb2 \u0967\u0968", "\U0001f468\u200d\U0001f469 \U0001f1e9\U0001f1ea \U00020000",
)  # fmt: skip
"""Blanks, contractions, numbers, special tokens, scripts, marks and symbols, where two libraries might part."""


class DocumentEncoder:
    """Encodes documents as LitGPT's ``Tokenizer.encode(bos=False, eos=False)`` would.

    By the library that is named, else by tiktoken where it can be built and agrees on :data:`HARD_CASES`.
    """

    def __init__(self, tokenizer_dir: Path, name: EncoderName | None = None) -> None:
        path = tokenizer_dir / "tokenizer.json"
        self.tokenizer = read_tokenizer(path.read_bytes(), str(path))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        # Processes of ours share the cores; threads of tokenizers' own would only be in their way.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.vocab_size = vocab_size(self.tokenizer)
        self.why_not_tiktoken: str | None = None
        """Why ``tokenizers`` is used although tiktoken was not ruled out."""
        self._fast: _FastEncoding | None = None
        if name != "tokenizers":
            try:
                self._fast = _FastEncoding(self.tokenizer)
                if not self.agrees([*HARD_CASES, *self._fast.encoding.special_tokens_set]):
                    raise ValueError("its ids differ on a test case")
            except ValueError as error:
                self._fast, self.why_not_tiktoken = None, str(error)
        if name == "tiktoken" and self._fast is None:
            raise UserError(f"--encoder tiktoken cannot encode as {str(path)!r} does ({self.why_not_tiktoken})")

    @property
    def name(self) -> EncoderName:
        """The library in use."""
        return "tiktoken" if self._fast else "tokenizers"

    def agrees(self, texts: Sequence[str]) -> bool:
        """Whether the encoder in use gives the ids of ``tokenizers``."""
        return all(np.array_equal(self.encode(text), self._encode_slowly(text)) for text in texts)

    def encode(self, text: str) -> np.ndarray:
        """Token ids of a text, shape (number of tokens,), without special tokens around them."""
        ids = self._fast.encode(text) if self._fast else None
        return self._encode_slowly(text) if ids is None else ids

    def _encode_slowly(self, text: str) -> np.ndarray:
        (encoding,) = self.tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return np.array(encoding.ids, np.uint32)


@lru_cache(maxsize=2)
def encoder_of(folder: Path, tokenizer_sha256: str, name: EncoderName | None) -> DocumentEncoder:
    """The encoder of the tokenizer in a folder, made once in a process, which those that it forks have, too."""
    if name:
        chosen = encoder_of(folder, tokenizer_sha256, None)
        if chosen.name == name:
            return chosen
    return DocumentEncoder(folder, name)


def read_tokenizer(content: bytes, path: str) -> Tokenizer:
    """A tokenizer.json, read; a UserError that names its path where it is damaged."""
    try:
        return Tokenizer.from_buffer(content)
    except Exception as error:  # tokenizers raises bare Exceptions
        raise UserError(f"the tokenizer {path!r} is damaged ({one_line(error, 120)}): restore it") from error


def vocab_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


class _FastEncoding:
    """tiktoken's form of a byte-level BPE: it wants a token's rank to be its priority in merging."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """A ValueError says why a tokenizer of another kind is none."""
        content, vocabulary = json.loads(tokenizer.to_str()), tokenizer.get_vocab(with_added_tokens=True)
        model, normalizer, added = content["model"], content["normalizer"], content["added_tokens"]
        if model["type"] != "BPE":
            raise ValueError(f"its model is {model['type']}, not BPE")
        for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
            if model[key]:
                raise ValueError(f"its BPE has {key}")
        if normalizer and normalizer["type"] != "NFC":
            raise ValueError("it normalizes text")
        pattern = _split_pattern(content["pre_tokenizer"])

        characters = _byte_characters()
        byte_of = {character: byte for byte, character in enumerate(characters)}
        ranks = {bytes([byte]): byte for byte in range(256)}
        try:
            for left, right in model["merges"]:
                merged = bytes(map(byte_of.__getitem__, left + right))
                ranks.setdefault(merged, len(ranks))
            ids = [vocabulary["".join(map(characters.__getitem__, token))] for token in ranks]
        except KeyError as error:
            raise ValueError(f"its vocabulary and merges are not over bytes ({one_line(error)} is missing)") from None
        if model["ignore_merges"] and len(ids) < len(model["vocab"].keys() - {token["content"] for token in added}):
            raise ValueError("its vocabulary has tokens that no merge makes")
        special: dict[str, int] = {}
        for token in added:
            if any(token[flag] for flag in ("single_word", "lstrip", "rstrip")):
                raise ValueError(f"its added token {token['content']!r} strips what is around it")
            if any(token["content"].startswith(other) or other.startswith(token["content"]) for other in special):
                raise ValueError(f"its added token {token['content']!r} begins as another does")
            special[token["content"]] = len(ids)
            ids.append(vocabulary[token["content"]])
        self.encoding = tiktoken.Encoding("warmstart", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
        self.ids = np.array(ids, np.uint32)  # by rank
        self.only_nfc = normalizer is not None

    def encode(self, text: str) -> np.ndarray | None:
        """Token ids of a text, shape (number of tokens,); None where only ``tokenizers`` knows them."""
        if self.only_nfc and not unicodedata.is_normalized("NFC", text):
            return None
        special = self.encoding.special_tokens_set
        try:
            ranks = self.encoding.encode_to_numpy(text, allowed_special=special, disallowed_special=())
        except ValueError:  # its regex has a limited stack: about a million blanks in a row exceed it
            return None
        return self.ids[ranks]


def _split_pattern(pre_tokenizer: dict[str, Any] | None) -> str:
    """The regular expression that a pre-tokenizer splits at, which must end in bytes."""
    match (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer]):
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            return GPT2_SPLIT
        case [
            {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {"Regex": pattern}},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            return pattern
    raise ValueError("its pre-tokenizer is not byte-level, or does more")


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's ``bytes_to_unicode``)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
