"""prepared.json: what a folder of prepared tokens was made from, and what is in it.

data/mine/
  prepared.json          a PreparedIndex: source, tokenizer, and each chunk's name, tokens and sha256
  tokenizer.json, tokenizer_config.json
  train/ val/ (test/)    litdata's index.json and its chunks, one item each: 12 bytes of header, then the tokens

The chunks of a split, in the order in which they stand in ``chunks``, are one stream of tokens. Within a chunk
documents are shuffled, and the validation split is one chunk; those of the training split follow the order of the
source's files, so who trains reads blocks in a permuted order.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.files import write_whole
from litgpt_warmstart.parsing import Unreadable, parse

FORMAT_VERSION = 2
PREPARED = "prepared.json"
Split = Literal["train", "val", "test"]
EncoderName = Literal["tiktoken", "tokenizers"]
DtypeName = Literal["uint16", "int32"]
P = TypeVar("P", bound="Plan")


@dataclass(frozen=True)
class Source:
    """Where the text came from; what was asked for stands in ``request.TextSource``."""

    repo_id: str | None
    revision: str | None
    commit: str | None
    """The one that ``revision`` stood for."""
    text_dir: str | None
    files: str | None
    column: str
    val_fraction: float | None
    """None where the source has a validation split."""
    piece_bytes: int | None = None

    @property
    def name(self) -> str:
        """The repository or folder, for messages."""
        return self.repo_id or self.text_dir or ""


@dataclass(frozen=True)
class SourceFile:
    """A file of a source."""

    name: str
    """Path within the repository or folder."""
    split: Split
    num_bytes: int
    sha256: str | None = None
    """None until it is read, unless the Hub tells it."""
    rows: int | None = None
    """Documents and rows without text; None until it is read."""


@dataclass(frozen=True)
class Chunk:
    """A file of tokens."""

    name: str
    """File name within the folder of its split."""
    tokens: int
    sha256: str
    """Of the whole file."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was decided before the first file was read; plan.json while a preparation goes on."""

    format_version: int = FORMAT_VERSION
    source: Source
    files: tuple[SourceFile, ...]
    tokenizer: str
    """Name or folder of the tokenizer."""
    tokenizer_sha256: str
    """Of its tokenizer.json and its end-of-text token."""
    encoder: EncoderName
    """The library that encodes; the ids are the tokenizer's either way."""
    vocab_size: int
    eos_id: int
    dtype: DtypeName
    seed: int
    """Of the order of documents within a chunk."""

    def save(self, path: Path) -> None:
        """Write it into a file, whole or not at all."""
        content = asdict(self)
        write_whole(path, json.dumps(content | {"sha256": _digest(content)}, indent=1))

    @classmethod
    def read(cls: type[P], path: Path) -> P:
        """Read it from a file; a UserError where it is damaged or of another format version."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version, digest = content["format_version"], content.pop("sha256", None)
            if version == 1:
                raise UserError(
                    f"{str(path.parent)!r} was prepared by litgpt-warmstart 0.1, in another format; runs on it can be"
                    " grown from, exported and reported, not resumed: prepare it again with another --data_path"
                )
            if version > FORMAT_VERSION:
                raise UserError(
                    f"{str(path)!r} has format version {version}, this litgpt-warmstart reads up to {FORMAT_VERSION}:"
                    " upgrade it"
                )
            if digest != _digest(content):
                raise ValueError("it is not as it was written")
            return parse(cls, content)
        except (Unreadable, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{str(path)!r} is damaged ({one_line(error, 80)}): remove its folder, and prepare the data again"
            ) from error


@dataclass(frozen=True, kw_only=True)
class PreparedIndex(Plan):
    """What a folder of prepared tokens says of itself."""

    fingerprint: str
    """sha256 over the training chunks' sha256: identity of the training tokens."""
    documents: dict[str, int]
    chunks: dict[str, tuple[Chunk, ...]]
    """The chunks of each split, in order."""

    @property
    def tokens(self) -> dict[str, int]:
        """Stored tokens by split."""
        return {split: sum(chunk.tokens for chunk in chunks) for split, chunks in self.chunks.items()}

    def chunk_files(self, folder: Path) -> dict[Path, Chunk]:
        """Path -> chunk, of all splits."""
        return {folder / split / chunk.name: chunk for split, chunks in self.chunks.items() for chunk in chunks}


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
