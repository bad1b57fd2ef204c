"""A small tokenizer of one's own: byte-level BPE, trained on the text that will be trained on.

Small models are little else than their vocabulary: 512 classes are 49,152 of the parameters at width 48, 50,304 are 4.8
million.
"""

import json
import math
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from litgpt_warmstart.errors import UserError

EOS = "<|endoftext|>"
SMALLEST = 257
"""The bytes and the end of text."""
TEXT_BYTES = 24_000_000
"""More text hardly changes the merges of a vocabulary as small as one would train."""


def train_bpe(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Train a byte-level BPE and write tokenizer.json and tokenizer_config.json.

    Args:
        texts: Documents.
        vocab_size: Tokens, the 256 bytes and the end of text among them.
        folder: An existing one.

    Raises:
        UserError: The vocabulary is too small for the bytes, or the text too short for the vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < SMALLEST:
        raise UserError(f"a byte-level BPE has at least {SMALLEST} tokens, got {vocab_size}: choose more")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (found := tokenizer.get_vocab_size()) < vocab_size:
        raise UserError(f"the text is too short for {vocab_size:,} tokens: it gives {found:,}")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": EOS, "eos_token": EOS, "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))


def tokenizer_of(text_dir: Path, vocab_size: int, folder: Path, files: str | None, column: str) -> Path:
    """A tokenizer trained on a folder of text; one that is there already is taken.

    Args:
        text_dir: As for a preparation, as are ``files`` and ``column``.
        vocab_size: Tokens.
        folder: Where it is, or will be, whole or not at all.

    Returns:
        ``folder``.

    Raises:
        UserError: There is one of another size, the folder cannot be written, or as for :func:`train_bpe` and
            :func:`folder_texts`.
    """
    from tokenizers import Tokenizer

    if (folder / "tokenizer.json").is_file():
        found = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
        if found != vocab_size:
            raise UserError(
                f"the tokenizer in {str(folder)!r} has {found:,} tokens, not {vocab_size:,}: choose another"
                " --data_path, or remove it and what was prepared with it"
            )
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            train_bpe(folder_texts(text_dir, files, column), vocab_size, Path(temporary))
            Path(temporary).rename(folder)
    except OSError as error:
        raise UserError(f"cannot write the tokenizer to {str(folder)!r}: {error.strerror}") from error
    return folder


def folder_texts(text_dir: Path, files: str | None, column: str) -> Iterator[str]:
    """Documents of every n-th training file of a folder, n such that they come to about 24 MB.

    Raises:
        UserError: The folder does not exist, has no text files, or a file is damaged.
    """
    from litgpt_warmstart.data.sources import documents, folder_source, parts_of

    training = [file for file in folder_source(text_dir, files) if file.split == "train"]
    step = max(1, math.ceil(sum(file.estimated_text_bytes for file in training) / TEXT_BYTES))
    for file in training[::step]:
        path = text_dir / file.name
        for part, _ in parts_of(path, file.name, column):
            for texts in documents(path, file.name, part, column):
                yield from filter(None, texts)
