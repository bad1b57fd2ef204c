"""A small tokenizer of one's own: byte-level BPE, trained on the text that will be trained on.

Small models are little else than their vocabulary: 512 classes are 49,152 of the parameters at width 48, 50,304 are 4.8
million.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from litgpt_warmstart.data.preparing.encode import read_tokenizer
from litgpt_warmstart.data.preparing.read import documents, folder_files, text_bytes
from litgpt_warmstart.data.preparing.write import portions_of
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import atomic_folder

EOS = "<|endoftext|>"
SMALLEST = 257
"""The bytes and the end of text."""
TEXT_BYTES = 24_000_000
"""More text hardly changes the merges of a vocabulary as small as one would train."""


def train_bpe(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Train a byte-level BPE, bytes and end of text among its tokens, and write its two files into a folder."""
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


def train_tokenizer(text_dir: Path, vocab_size: int, folder: Path, files: str | None, column: str) -> None:
    """Train a tokenizer on a folder of text, whole or not at all; one that is there already is taken, which is said."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        with atomic_folder(folder) as partial:
            train_bpe(training_texts(text_dir, files, column), vocab_size, partial)
        return
    found = read_tokenizer(path.read_bytes(), str(path)).get_vocab_size()
    if found != vocab_size:
        raise UserError(
            f"the tokenizer in {str(folder)!r} has {found:,} tokens, not {vocab_size:,}: choose another"
            " --data_path, or remove it and what was prepared with it"
        )
    print(f"Taking the tokenizer in {str(folder)!r}, trained before; remove that folder to train one anew")


def training_texts(text_dir: Path, files: str | None, column: str) -> Iterator[str]:
    """Training documents of a folder; of more than 24 MB an equal share from the beginning of each part."""
    found = folder_files(text_dir, files)
    sizes = {file.name: text_bytes(file) for file in found}
    parts = [part for portion in portions_of(found) if portion.split == "train" for part in portion.parts]
    share = TEXT_BYTES / max(1, sum(sizes[part.name] / part.count for part in parts))
    for part in parts:
        left = share * sizes[part.name] / part.count
        for text in chain.from_iterable(documents(text_dir / part.name, part, column)):
            if share < 1 and left <= 0:
                break
            if text:
                yield text
                left -= len(text.encode())
