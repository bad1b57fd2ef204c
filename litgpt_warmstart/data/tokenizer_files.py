"""A tokenizer's files: whether they can be read, which ids begin and end a text, whether its ids are the model's."""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import litgpt.tokenizer
from tokenizers import Tokenizer

from litgpt_warmstart.data.prepared_text import PreparedText
from litgpt_warmstart.data.preparing.encode import HARD_CASES, read_tokenizer, vocab_size
from litgpt_warmstart.data.use import Reading
from litgpt_warmstart.errors import UserError, one_line

JSON, MODEL, CONFIG = "tokenizer.json", "tokenizer.model", "tokenizer_config.json"
NAMES = (JSON, MODEL, CONFIG)
"""As LitGPT has them."""
PROBE = (
    "def f(x, *, y=None):\n\tif x >= 0x1F:\n        return {'a': [x ** 2, ...]}  # 3.14e-10, 1,000,000, 2024-12-31\n",
    "The quick brown fox, who didn't jump: \"over\" the lazy dog's 12345 tails?! (See p. 7; §4.)\r\n\r\n    Then\n\n\n",
    "<s></s><unk><pad><|eot|><|endoftext|><|im_start|>user\n[INST] [/INST]<0x0A>",
)
"""Code, prose and special tokens: texts that tell one tokenizer from another."""


@dataclass(frozen=True)
class TokenizerFiles:
    """The files of a tokenizer that can be read, in memory: a run copies these into each of its checkpoints."""

    files: dict[str, bytes]
    bos_id: int | None
    """Begins a text; None where it is not known."""
    eos_id: int | None
    """Ends a text; None where it is not known."""

    @cached_property
    def sha256(self) -> str:
        """Of what the tokenizer gives: all its tokens with their ids, a few texts' ids, and where a text ends.

        Not of the files: transformers writes the same tokenizer otherwise.
        """
        if JSON not in self.files:
            return hashlib.sha256(self.files[MODEL]).hexdigest()
        tokenizer = Tokenizer.from_buffer(self.files[JSON])
        given = [tokenizer.encode(text, add_special_tokens=False).ids for text in PROBE]
        content = sorted(tokenizer.get_vocab(with_added_tokens=True).items()), given, self.bos_id, self.eos_id
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write the files into a folder that is being filled."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


def read_tokenizer_files(folder: Path, sha256: str | None = None) -> TokenizerFiles | None:
    """The tokenizer's files in a folder; None where it has none.

    Args:
        folder: Any folder.
        sha256: What :attr:`TokenizerFiles.sha256` was when they were written there; None where that is not known.
    """
    if not any((folder / name).is_file() for name in (JSON, MODEL)):
        return None
    try:
        files = {name: (folder / name).read_bytes() for name in NAMES if (folder / name).is_file()}
        tokenizer = litgpt.tokenizer.Tokenizer(folder)
        found = TokenizerFiles(files, _known(tokenizer.bos_id), _known(tokenizer.eos_id))
        same = sha256 in (None, found.sha256)
    except OSError as error:
        raise UserError(
            f"the tokenizer in {str(folder)!r} cannot be read ({error.strerror or one_line(error, 120)}): check its"
            " files' permissions"
        ) from error
    except Exception as error:  # tokenizers and sentencepiece raise their own kinds
        raise UserError(
            f"the tokenizer in {str(folder)!r} is damaged ({one_line(error, 120)}): restore {JSON} and {CONFIG}"
        ) from error
    if not same:
        raise UserError(
            f"the tokenizer in {str(folder)!r} gives other ids than when the checkpoint was saved: restore {JSON} and"
            f" {CONFIG}"
        )
    return found


def for_transformers(tokenizer: TokenizerFiles, block_size: int) -> TokenizerFiles:
    """The same with what transformers goes by in its config: its class, the end of a text, and the longest input.

    The class is the one that reads tokenizer.json as it stands. With others transformers 5 may take its vocabulary
    alone and cut text by the class's own rules: to other ids than those that the model was trained on.
    """
    told: dict[str, Any] = json.loads(tokenizer.files.get(CONFIG, b"{}"))
    if JSON in tokenizer.files:
        told["tokenizer_class"] = "PreTrainedTokenizerFast"
        if tokenizer.eos_id is not None and not told.get("eos_token"):
            told["eos_token"] = Tokenizer.from_buffer(tokenizer.files[JSON]).id_to_token(tokenizer.eos_id)
    told["model_max_length"] = block_size
    content = json.dumps(told, indent=2, ensure_ascii=False) + "\n"
    return replace(tokenizer, files=tokenizer.files | {CONFIG: content.encode()})


def _known(number: object) -> int | None:
    """An id as one number: sentencepiece says -1 for none, and a generation_config.json may list several."""
    first = number[0] if isinstance(number, list) and number else number
    return first if isinstance(first, int) and first >= 0 else None


def given_tokenizer(reading: Reading) -> litgpt.tokenizer.Tokenizer | None:
    """What --tokenizer_dir or the base has; a UserError where it has more tokens than the model has classes."""
    folder = reading.tokenizer_dir
    if folder is None:
        return None
    try:
        tokenizer = litgpt.tokenizer.Tokenizer(folder)
    except Exception as error:
        reason = "it holds none" if isinstance(error, NotImplementedError) else one_line(error)
        raise UserError(f"--tokenizer_dir {str(folder)!r}: {reason}: give a folder with {JSON} or {MODEL}") from error
    # LitGPT's own count leaves added tokens out.
    tokens = vocab_size(tokenizer.processor) if tokenizer.backend == "huggingface" else tokenizer.vocab_size
    if tokens > reading.num_classes:
        raise UserError(
            f"the tokenizer in {str(folder)!r} has {tokens:,} tokens, the model {reading.num_classes:,} classes: take a"
            " base and data with the same tokenizer"
        )
    return tokenizer


def check_vocabulary(reading: Reading, data: PreparedText) -> None:
    """Raise a UserError where the data's tokenizer is not the model's, as far as both are known."""
    ours, given = data.tokenizer_json, reading.tokenizer_dir and reading.tokenizer_dir / JSON
    if data.vocab_size > reading.num_classes:
        raise UserError(
            f"{reading.option} has {data.vocab_size:,} tokens, the model {reading.num_classes:,} classes: take a"
            " model, a base and data with the same tokenizer"
        )
    if ours is None or given is None or not given.is_file() or given.read_bytes() == ours:
        return
    # One may have been saved again.
    if _ids(read_tokenizer(given.read_bytes(), str(given))) != _ids(read_tokenizer(ours, f"{type(data).__name__}'s")):
        raise UserError(
            f"{reading.option} has another tokenizer than the one in {str(given.parent)!r}: take a base and data with"
            " the same tokenizer"
        )


def _ids(tokenizer: Tokenizer) -> object:
    """Whatever decides the ids that a tokenizer gives, and some."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    added = sorted(f"a {token.content} b{token.content}c" for token in tokenizer.get_added_tokens_decoder().values())
    encodings = tokenizer.encode_batch([*HARD_CASES, *PROBE, *added], add_special_tokens=False)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return vocabulary, json.loads(tokenizer.to_str())["model"], [encoding.ids for encoding in encodings]
