"""prepared.json: what a folder of prepared tokens was made from, and what is in it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.files import write_whole

FORMAT_VERSION = 1
PREPARED = "prepared.json"


@dataclass(frozen=True)
class PreparedFile:
    """A file of the source, read."""

    name: str
    split: str
    num_bytes: int
    sha256: str
    rows: int


@dataclass(frozen=True)
class Source:
    """Where the text came from."""

    repo_id: str | None
    """Dataset on the Hub; None for a folder."""
    revision: str | None
    """The revision asked for."""
    commit: str | None
    """The commit that was."""
    text_dir: str | None
    """Folder; None for a dataset on the Hub."""
    files: str | None
    """Pattern that the files' names match."""
    column: str
    val_fraction: float | None
    """Share of the training documents that was held out; None where the source has a validation split."""
    piece_bytes: int | None = None
    """Size above which .txt files were cut into documents; None for the default, and where there is no such file."""


@dataclass(frozen=True)
class PreparedIndex:
    """What a folder of prepared tokens says of itself."""

    fingerprint: str
    """sha256 over the training chunks' sha256: identity of the training tokens."""
    source: Source
    tokenizer: str
    """Name or folder of the tokenizer."""
    tokenizer_sha256: str
    """Of its tokenizer.json and its end-of-text token."""
    encoder: str
    """The library that encoded; the ids are the tokenizer's either way."""
    vocab_size: int
    eos_id: int
    dtype: str
    seed: int
    """Of the documents' order."""
    tokens: dict[str, int]
    """Stored tokens by split."""
    documents: dict[str, int]
    chunks_sha256: dict[str, list[str]]
    files: tuple[PreparedFile, ...]
    format_version: int = FORMAT_VERSION

    def save(self, folder: Path) -> None:
        """Write it into a folder, whole or not at all."""
        write_whole(folder / PREPARED, json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, folder: Path) -> "PreparedIndex":
        """Read it from a folder.

        Raises:
            UserError: It is damaged or of a newer format.
        """
        path = folder / PREPARED
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if content["format_version"] > FORMAT_VERSION:
                raise UserError(
                    f"{str(path)!r} has format version {content['format_version']}, this litgpt-warmstart reads up to"
                    f" {FORMAT_VERSION}: upgrade it"
                )
            content["source"] = Source(**content["source"])
            content["files"] = tuple(PreparedFile(**file) for file in content["files"])
            return cls(**content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{str(path)!r} is damaged ({one_line(error, 80)}): prepare the data again") from error
