"""StdlibText: the text of the Python standard library on this machine, for trying things without a download."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from litgpt_warmstart.data.blocks import BlockDataModule
from litgpt_warmstart.data.preparing.bpe import EOS, train_bpe
from litgpt_warmstart.data.preparing.chunks import TokenFile
from litgpt_warmstart.errors import UserError

FORMAT_VERSION = 1
VAL_FRACTION = 0.04
PIECE_CHARACTERS = 2048
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "_bundled"}


@dataclass
class StdlibText(BlockDataModule):
    """The Python standard library's own source text, about 12 MB without its tests; nothing is downloaded.

    A byte-level BPE of 4,096 tokens is trained on it once and cached with the tokens (about 3.5 million). Files are
    split into training and validation by the hash of their names, cut into pieces, and the pieces shuffled.
    """

    data_path: Path = Path("data/stdlib_text")
    """Where tokenizer and tokens are cached; prepared at first use."""

    vocab_size: ClassVar[int] = 4096
    padded_vocab_size: ClassVar[int] = 4096

    def __post_init__(self) -> None:
        super().__init__()
        self.data_path = Path(self.data_path)

    @property
    def is_prepared(self) -> bool:
        return (self.data_path / "index.json").is_file()

    @property
    def fingerprint(self) -> str:
        return self._index["fingerprint"]

    @property
    def tokenizer_dir(self) -> Path:
        return self.data_path

    @property
    def tokenizer_json(self) -> bytes | None:
        path = self.data_path / "tokenizer.json"
        return path.read_bytes() if path.is_file() else None

    def tokens(self, split: str) -> TokenFile:
        return TokenFile(self.data_path / f"{split}.bin", np.dtype(np.uint16), self._index["tokens"][split])

    @cached_property
    def _index(self) -> dict:
        try:
            index = json.loads((self.data_path / "index.json").read_text(encoding="utf-8"))
            if index["format_version"] != FORMAT_VERSION:
                raise UserError(f"{str(self.data_path)!r} has another format version: delete it to prepare it anew")
            for split in ("train", "val"):
                if (self.data_path / f"{split}.bin").stat().st_size != 2 * index["tokens"][split]:
                    raise ValueError(f"{split}.bin has another size")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{str(self.data_path)!r} is damaged ({error}): delete it to prepare it anew") from error
        return index

    def prepare_data(self) -> None:
        """Train the tokenizer and encode the text, unless the cache has both.

        Raises:
            UserError: ``data_path`` holds something else, or cannot be written.
        """
        if self.data_path.exists() and any(self.data_path.iterdir()):
            self._index  # noqa: B018  # raises for a damaged cache
            return
        print(f"Preparing StdlibText in {str(self.data_path)!r} (once, about 15 s) ...", file=sys.stderr)
        try:
            self.data_path.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=f".{self.data_path.name}-", dir=self.data_path.parent))
        except OSError as error:
            raise UserError(f"cannot write {str(self.data_path.parent)!r}: {error.strerror}") from error
        try:
            partial.chmod(0o755)
            _prepare(partial, self.vocab_size)
            partial.rename(self.data_path)  # fails if another process was first, whose result is the same
        except OSError as error:
            if not (self.data_path / "index.json").is_file():
                raise UserError(f"cannot write {str(self.data_path)!r}: {error.strerror}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def stdlib_documents() -> dict[str, str]:
    """Name -> text of the standard library's modules, without tests and installed packages."""
    root = Path(os.__file__).parent
    names = [p.relative_to(root) for p in root.rglob("*.py") if not LEFT_OUT & set(p.relative_to(root).parts)]
    return {n.as_posix(): (root / n).read_text(encoding="utf-8", errors="replace") for n in sorted(names)}


def pieces(text: str) -> list[str]:
    """A text cut at line ends into pieces of about :data:`PIECE_CHARACTERS`.

    Uncut, one of the library's tables or long modules would fill whole batches by itself.
    """
    found, lines, length = [], [], 0
    for line in text.splitlines(keepends=True):
        if lines and length + len(line) > PIECE_CHARACTERS:
            found.append("".join(lines))
            lines, length = [], 0
        lines.append(line)
        length += len(line)
    return [*found, "".join(lines)] if lines else found


def shuffled(names: Iterable[str]) -> list[str]:
    """Names in an order that depends on nothing but themselves."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def in_validation(name: str) -> bool:
    """Whether a document belongs to the validation split, by a hash independent of the shuffle's."""
    return int.from_bytes(hashlib.sha256(f"val:{name}".encode()).digest()[:4], "big") < VAL_FRACTION * 2**32


def _prepare(folder: Path, vocab_size: int) -> None:
    from tokenizers import Tokenizer

    documents = stdlib_documents()
    parts = {f"{name}:{i}": piece for name, text in documents.items() for i, piece in enumerate(pieces(text))}
    splits: dict[str, list[str]] = {"train": [], "val": []}
    for part in shuffled(parts):
        splits["val" if in_validation(part.rpartition(":")[0]) else "train"].append(parts[part])

    train_bpe(splits["train"], vocab_size, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    eos, counts, digest = tokenizer.token_to_id(EOS), {}, hashlib.sha256()
    for split, texts in splits.items():
        ids = [np.array([*encoding.ids, eos], np.uint16) for encoding in tokenizer.encode_batch(texts)]
        tokens = np.concatenate(ids)
        tokens.tofile(folder / f"{split}.bin")
        counts[split] = len(tokens)
        digest.update(tokens.tobytes())
    index = {
        "format_version": FORMAT_VERSION,
        "fingerprint": digest.hexdigest(),
        "tokens": counts,
        "documents": len(documents),
        "pieces": {split: len(texts) for split, texts in splits.items()},
        "characters": {split: sum(map(len, texts)) for split, texts in splits.items()},
        "python": sys.version.split()[0],
    }
    (folder / "index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
