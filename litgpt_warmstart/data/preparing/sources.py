"""Text to prepare: which files, which split, and the documents in them.

A file is cut into parts that can be read apart, so that all cores have work whatever the number of files: row groups
of a parquet file, spans of bytes of a plain one. A compressed one is a single part.
"""

import fnmatch
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from litgpt_warmstart.data.preparing import hub
from litgpt_warmstart.errors import UserError, one_line

SPLITS = ("train", "val", "test")
PART_BYTES = 32 * 2**20
"""Text of a part, at least, where a file can be cut."""
PIECE_BYTES = 64 * 2**10
"""A longer .txt file is cut, at line ends, into documents of about this size."""
BATCH_BYTES = 4 * 2**20
"""Text that is read at once, about."""
COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
FORMATS = (".parquet", ".jsonl", ".ndjson", ".json", ".txt")
"""Where there are files of several formats, only those of the first are text, unless a pattern says otherwise: a
README.txt beside parquet files is not."""
SPLIT_WORDS = {"train": "train", "training": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val",
               "test": "test", "testing": "test", "heldout": "test"}  # fmt: skip
EXPANSION = {".parquet": 2.0, ".gz": 3.0, ".zst": 3.0}
"""Bytes of text in a byte of a file, for estimates."""


@dataclass(frozen=True)
class SourceFile:
    """A file of a source."""

    name: str
    """Path within the repository or folder."""
    split: str
    num_bytes: int
    sha256: str | None = None
    """None where it is known only after reading."""

    @property
    def estimated_text_bytes(self) -> int:
        """About how much text it holds."""
        return int(self.num_bytes * EXPANSION.get(Path(self.name).suffix, 1.0))


@dataclass(frozen=True)
class Part:
    """A piece of a file that is read by itself: row groups of a parquet file, bytes of a plain one."""

    start: int
    stop: int | None
    """One past the last; None to the end."""


def format_of(name: str) -> str | None:
    """The one of :data:`FORMATS` that a file's name says, compressed or not; None for others."""
    path = Path(name)
    if path.suffix in COMPRESSION:
        path = path.with_suffix("")
        return path.suffix if path.suffix in FORMATS and path.suffix != ".parquet" else None
    return path.suffix if path.suffix in FORMATS else None


def split_of(name: str) -> str:
    """The split that a path's words name, the last one counting; training where none does."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLIT_WORDS[word] for word in reversed(words) if word in SPLIT_WORDS), "train")


def hub_source(
    repo_id: str, revision: str, pattern: str | None, say: Callable[[str], object] = str
) -> tuple[str, tuple[SourceFile, ...]]:
    """The text files of a dataset on the Hub.

    Returns:
        The commit that ``revision`` stands for, and the files by name.

    Raises:
        UserError: It cannot be read, or has no text files.
    """
    commit, files = hub.dataset_files(repo_id, revision)
    return commit, _chosen(
        [SourceFile(n, split_of(n), b, s) for n, b, s in files], pattern, f"dataset {repo_id!r}", say
    )


def folder_source(folder: Path, pattern: str | None, say: Callable[[str], object] = str) -> tuple[SourceFile, ...]:
    """The text files below a folder, by name.

    Raises:
        UserError: The folder does not exist or has none.
    """
    if not folder.is_dir():
        raise UserError(f"--text_dir {str(folder)!r} is no folder: give one with {', '.join(FORMATS)} files")
    names = {path.relative_to(folder).as_posix(): path for path in _files_below(folder)}
    files = [SourceFile(name, split_of(name), path.stat().st_size) for name, path in names.items()]
    return _chosen(files, pattern, f"--text_dir {str(folder)!r}", say)


def _files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder, through links to folders too, each folder once."""
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if (Path(root) / name).resolve() not in seen]
        seen |= {(Path(root) / name).resolve() for name in folders}
        yield from (path for name in names if (path := Path(root) / name).is_file())


def _chosen(
    files: list[SourceFile], pattern: str | None, what: str, say: Callable[[str], object]
) -> tuple[SourceFile, ...]:
    visible = [f for f in files if not any(part.startswith(".") for part in Path(f.name).parts)]
    formats = {f.name: format_of(f.name) for f in visible}
    if pattern:
        matching = [f for f in visible if formats[f.name] and fnmatch.fnmatch(f.name, pattern)]
    else:
        first = next((form for form in FORMATS if form in formats.values()), None)
        matching = [f for f in visible if first and formats[f.name] == first]
        if others := sorted(name for name, form in formats.items() if form not in (None, first)):
            say(f"Reading the {first} files and leaving out {len(others):,} others such as {others[0]!r}: see --files")
    if not matching:
        limited = f" that match --files {pattern!r}" if pattern else ""
        raise UserError(f"{what} has no .parquet, .jsonl or .txt files{limited} (.gz and .zst of the latter two too)")
    if all(file.split != "train" for file in matching):
        raise UserError(f"{what} has no training files, only {matching[0].split} ones such as {matching[0].name!r}")
    return tuple(sorted(matching, key=lambda file: file.name))


def parts_of(path: Path, name: str, column: str) -> list[tuple[Part, int]]:
    """How a file is cut, and about how many bytes of text are in each part.

    Raises:
        UserError: The file is damaged, or has no such column.
    """
    size = path.stat().st_size
    suffix = Path(name).suffix
    if suffix == ".parquet":
        return _row_group_parts(path, name, column)
    if suffix in COMPRESSION:
        return [(Part(0, None), int(size * EXPANSION[suffix]))] if size else []
    return [(Part(at, min(at + PART_BYTES, size)), min(PART_BYTES, size - at)) for at in range(0, size, PART_BYTES)]


def _row_group_parts(path: Path, name: str, column: str) -> list[tuple[Part, int]]:
    try:
        metadata = pq.read_metadata(path)
        fields = metadata.schema.to_arrow_schema()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{name!r} is no parquet file or damaged ({one_line(error, 100)}): fetch it again") from error
    if column not in fields.names:
        raise UserError(f"{name!r} has no column {column!r}, only {', '.join(fields.names)}: pass --column, or --files")
    kind = fields.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(f"column {column!r} of {name!r} holds {kind}, not text: pass --column, or --files")
    index = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == column)
    parts, start, num_bytes = [], 0, 0
    for group in range(metadata.num_row_groups):
        num_bytes += metadata.row_group(group).column(index).total_uncompressed_size
        if num_bytes >= PART_BYTES or group + 1 == metadata.num_row_groups:
            parts.append((Part(start, group + 1), num_bytes))
            start, num_bytes = group + 1, 0
    return parts


def documents(
    path: Path, name: str, part: Part, column: str, piece_bytes: int | None = None
) -> Iterator[list[str | None]]:
    """A part's documents in order, some at a time; None for a row without text.

    Args:
        path: Where the file is.
        name: What it is called in its source, for the format and for messages.
        part: One of :func:`parts_of`.
        column: The column or key that holds the text.
        piece_bytes: Size above which a .txt file is cut into documents. Default: ``PIECE_BYTES``.

    Raises:
        UserError: The file is damaged, or a row has no such key.
    """
    inner = Path(name)
    if inner.suffix == ".parquet":
        return _parquet_documents(path, name, part, column)
    if inner.suffix in COMPRESSION:
        inner = inner.with_suffix("")
    if inner.suffix == ".txt":
        return _text_pieces(path, name, part, piece_bytes or PIECE_BYTES)
    return _json_documents(path, name, part, column)


def _parquet_documents(path: Path, name: str, part: Part, column: str) -> Iterator[list[str | None]]:
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
            groups = range(part.start, part.stop)
            counts = [file.metadata.row_group(group) for group in groups]
            num_rows, num_bytes = sum(c.num_rows for c in counts), sum(c.total_byte_size for c in counts)
            rows = max(1, min(64, num_rows * BATCH_BYTES // max(1, num_bytes)))
            for batch in file.iter_batches(rows, row_groups=list(groups), columns=[column], use_threads=False):
                yield batch.column(0).to_pylist()
    except UnicodeDecodeError as error:
        raise UserError(f"{name!r} has a row that is not UTF-8 ({one_line(error, 80)}): mend or leave it out") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{name!r} is damaged ({one_line(error, 100)}): fetch it again") from error


def _open(path: Path) -> io.BufferedIOBase:
    """A file's bytes, decompressed."""
    if compression := COMPRESSION.get(path.suffix):
        return io.BufferedReader(pa.input_stream(str(path), compression=compression), 2**20)
    return path.open("rb", buffering=2**20)


def _lines(path: Path, name: str, part: Part, limit: int = -1) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of each line that begins within a part, cut after ``limit`` bytes if that is above 0."""
    try:
        with _open(path) as file:
            offset = 0
            if part.start > 0:  # the line around the boundary belongs to the part before
                offset = part.start - 1
                file.seek(offset)
                while piece := file.readline(2**20):
                    offset += len(piece)
                    if piece.endswith(b"\n") or offset >= part.stop:
                        break
            at_line_start = True
            while (part.stop is None or offset < part.stop or not at_line_start) and (line := file.readline(limit)):
                yield offset, line
                offset += len(line)
                at_line_start = line.endswith(b"\n")
    except (pa.ArrowException, OSError, EOFError) as error:
        raise UserError(f"{name!r} is damaged ({one_line(error, 100)}): fetch it again") from error


def _json_documents(path: Path, name: str, part: Part, column: str) -> Iterator[list[str | None]]:
    found: list[str | None] = []
    num_bytes = 0
    for offset, line in _lines(path, name, part):
        if line.isspace():
            continue
        try:
            text = json.loads(line.decode("utf-8"))[column]
        except (ValueError, TypeError):
            raise UserError(
                f"{name!r} holds no JSON object in the line at byte {offset:,}: mend it, or leave it out with --files"
            ) from None
        except KeyError:
            keys = ", ".join(json.loads(line))
            raise UserError(
                f"{name!r} has no key {column!r} at byte {offset:,}, only {keys}: pass --column, or --files"
            ) from None
        if not isinstance(text, str | None):
            raise UserError(f"{name!r}: {column!r} at byte {offset:,} is no text: pass --column, or --files")
        if text and b"\\ud" in line.lower():  # half a surrogate pair is valid JSON, but no text
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        found.append(text)
        num_bytes += len(line)
        if num_bytes >= BATCH_BYTES:
            yield found
            found, num_bytes = [], 0
    yield found


def _text_pieces(path: Path, name: str, part: Part, piece_bytes: int) -> Iterator[list[str | None]]:
    """Pieces of about ``piece_bytes``; small ones together, as many as make a whole ``PIECE_BYTES``."""
    pending: list[bytes] = []
    found: list[str | None] = []
    size = start = told = 0
    for offset, line in _lines(path, name, part, limit=piece_bytes):
        if pending and size + len(line) > piece_bytes:
            text, rest = _decoded(b"".join(pending), name, start, last=False)
            found.append(text)
            told += size
            if told + piece_bytes > PIECE_BYTES:
                yield found
                found, told = [], 0
            pending, size, start = [rest], len(rest), offset - len(rest)
        pending.append(line)
        size += len(line)
    if size:
        found.append(_decoded(b"".join(pending), name, start, last=True)[0])
    if found:
        yield found


def _decoded(piece: bytes, name: str, offset: int, last: bool) -> tuple[str, bytes]:
    """The text of a piece, and the bytes of a character that its end cuts."""
    try:
        return piece.decode("utf-8"), b""
    except UnicodeDecodeError as error:
        if not last and error.start >= len(piece) - 3 and error.reason == "unexpected end of data":
            return piece[: error.start].decode("utf-8"), piece[error.start :]
        raise UserError(
            f"{name!r} is not UTF-8 at byte {offset + error.start:,}: convert it, e.g. with iconv"
        ) from None
