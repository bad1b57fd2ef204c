"""Text to read: which files of a source, and the documents in them.

A large file is read in parts, so that all cores have work whatever the number of files: row groups of a parquet file,
lines of a plain one. A compressed one is read whole.
"""

import fnmatch
import gzip
import io
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet

from litgpt_warmstart.errors import UserError, one_line

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
PIECE_BYTES = 64 * 2**10
"""A longer .txt file is cut, at line ends, into documents of about this size."""
BLOCK_BYTES = 4 * 2**20
"""Text that is read at once, and the rest of its last line."""
COMPRESSED = (".gz", ".zst")
FORMATS = (".parquet", ".jsonl", ".ndjson", ".json", ".txt")
"""Where there are files of several formats, only those of the first are text, unless a pattern says otherwise: a
README.txt beside parquet files is not."""
SPLIT_WORDS: dict[str, Split] = {
    "train": "train", "training": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val",
    "test": "test", "testing": "test", "heldout": "test",
}  # fmt: skip
EXPANSION = {".parquet": 2.0, ".gz": 3.0, ".zst": 3.0}
"""Bytes of text in a byte of a file, for estimates."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


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
class Part:
    """One of ``count`` parts of a file, which is called ``name`` in its source."""

    name: str
    number: int = 0
    count: int = 1


def format_of(name: str) -> str | None:
    """The one of :data:`FORMATS` that a file's name says, compressed or not; None for others."""
    plain = name.removesuffix(".gz").removesuffix(".zst")
    suffix = Path(plain).suffix
    return suffix if suffix in FORMATS and (suffix != ".parquet" or plain == name) else None


def split_of(name: str) -> Split:
    """The split that a path's words name, the last one counting; training where none does."""
    words = re.split(r"[^a-z]+", name.lower())
    named: list[Split] = ["train", *(SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS)]
    return named[-1]


def text_bytes(file: SourceFile) -> int:
    """About how much text a file holds."""
    return int(file.num_bytes * EXPANSION.get(Path(file.name).suffix, 1.0))


def folder_files(
    folder: Path, pattern: str | None, say: Callable[[str], object] = lambda line: None
) -> tuple[SourceFile, ...]:
    """The text files below a folder, through links to folders too, by name."""
    if not folder.is_dir():
        raise UserError(f"--text_dir {str(folder)!r} is no folder: give one with {', '.join(FORMATS)} files")
    found, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if (Path(root) / name).resolve() not in seen]
        seen |= {(Path(root) / name).resolve() for name in folders}
        for path in filter(Path.is_file, (Path(root) / name for name in names)):
            name = path.relative_to(folder).as_posix()
            found.append(SourceFile(name, split_of(name), path.stat().st_size))
    return chosen_files(found, pattern, f"--text_dir {str(folder)!r}", say)


def chosen_files(
    files: Sequence[SourceFile], pattern: str | None, what: str, say: Callable[[str], object]
) -> tuple[SourceFile, ...]:
    """Those of a source's files that are its text, by name; a UserError where there are none to train on."""
    visible = [file for file in files if not re.search(r"(^|/)\.", file.name)]
    found = {file: form for file in visible if (form := format_of(file.name))}
    first = next((form for form in FORMATS if form in found.values()), None)
    matching = [file for file in found if (fnmatch.fnmatch(file.name, pattern) if pattern else found[file] == first)]
    if not pattern and (others := sorted(file.name for file in found if found[file] != first)):
        say(f"Reading the {first} files and leaving out {len(others):,} others such as {others[0]!r}: see --files")
    if not matching:
        limited = f" that match --files {pattern!r}" if pattern else ""
        raise UserError(f"{what} has no .parquet, .jsonl or .txt files{limited} (.gz and .zst of the latter two too)")
    if all(file.split != "train" for file in matching):
        raise UserError(f"{what} has no training files, only {matching[0].split} ones such as {matching[0].name!r}")
    return tuple(sorted(matching, key=lambda file: file.name))


def documents(path: Path, part: Part, column: str, piece_bytes: int | None = None) -> Iterator[list[str | None]]:
    """The documents of a part of the file at a path, in order, some at a time; None for a row without text."""
    form = format_of(part.name)
    try:
        if form == ".parquet":
            yield from _parquet_documents(path, part, column)
        elif form == ".txt":
            yield from _text_documents(path, part, piece_bytes or PIECE_BYTES)
        else:
            for offset, block in _blocks(path, part, BLOCK_BYTES):
                yield _json_texts(block, offset, part.name, column)
    except UnicodeDecodeError as error:  # of parquet, which iconv would wreck
        raise UserError(
            f"{part.name!r} has a row that is not UTF-8 ({one_line(error, 80)}): mend it, or leave the file out with"
            " --files"
        ) from None
    except (pa.ArrowException, OSError, EOFError, zlib.error, zstd.ZstdError) as error:
        if isinstance(error, OSError) and error.errno:  # the system's, not a format's
            told = f"{str(path)!r} cannot be read ({os.strerror(error.errno)})"
            raise UserError(f"{told}: mend that, and give the command again") from error
        raise UserError(f"{part.name!r} is damaged ({one_line(error, 100)}): fetch it again") from error


def _parquet_documents(path: Path, part: Part, column: str) -> Iterator[list[str | None]]:
    with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
        fields = file.schema_arrow
        if column not in fields.names:
            names = ", ".join(fields.names)
            raise UserError(f"{part.name!r} has no column {column!r}, only {names}: pass --column, or --files")
        kind = fields.field(column).type
        text = kind.value_type if pa.types.is_dictionary(kind) else kind
        if text not in (pa.string(), pa.large_string(), pa.string_view()):
            raise UserError(f"column {column!r} of {part.name!r} holds {kind}, not text: pass --column, or --files")
        count = file.num_row_groups
        groups = [group for group in range(count) if group * part.count // count == part.number]
        for batch in file.iter_batches(64, row_groups=groups, columns=[column], use_threads=False):
            yield batch.column(0).to_pylist()


def _json_texts(block: bytes, offset: int, name: str, column: str) -> list[str | None]:
    """The texts of a block of lines: by pyarrow, which builds no other column, or line by line where it refuses."""
    num_lines = block.count(b"\n") + (not block.endswith(b"\n"))
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(block),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=pa.schema([(column, pa.string())]), unexpected_field_behavior="ignore"
            ),
        )
        # It gives a null for a missing key too, leaves blank lines out, and takes several objects of one line.
        if table[column].null_count == 0 and len(table) == num_lines:
            return table[column].to_pylist()
    except (pa.ArrowInvalid, UnicodeDecodeError):
        pass
    if num_lines == 1:
        return _json_text(block, offset, name, column)
    texts = []
    for line in io.BytesIO(block):
        texts += _json_texts(line, offset, name, column)
        offset += len(line)
    return texts


def _json_text(line: bytes, offset: int, name: str, column: str) -> list[str | None]:
    """The text of a line, by json; none of a blank one."""
    if not line.strip():
        return []
    try:
        row = json.loads(line.decode("utf-8"))
        if not isinstance(row, dict):
            raise TypeError
    except (ValueError, TypeError, RecursionError):
        raise UserError(
            f"{name!r} holds no JSON object in the line at byte {offset:,}: mend it, or leave it out with --files"
        ) from None
    if column not in row:
        raise UserError(
            f"{name!r} has no key {column!r} at byte {offset:,}, only {', '.join(row)}: pass --column, or --files"
        )
    text = row[column]
    if not isinstance(text, str | None):
        raise UserError(f"{name!r}: {column!r} at byte {offset:,} is no text: pass --column, or --files")
    if text and b"\\ud" in line.lower():  # half a surrogate pair is valid JSON, but no text
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return [text]


def _text_documents(path: Path, part: Part, piece_bytes: int) -> Iterator[list[str | None]]:
    """Pieces of at most ``piece_bytes``, cut at line ends or, of a longer line, between characters."""
    start, pending = 0, b""
    for offset, block in _blocks(path, part, max(BLOCK_BYTES, piece_bytes), longest_line=piece_bytes):
        start, block = offset - len(pending), pending + block
        pieces, begin = [], 0
        while len(block) - begin > piece_bytes:
            stop = block.rfind(b"\n", begin, begin + piece_bytes) + 1
            if not stop:
                stop = begin + piece_bytes
                while stop > begin + 1 and block[stop] & 0xC0 == 0x80:
                    stop -= 1
            pieces.append(_decoded(block[begin:stop], start + begin, part.name))
            begin = stop
        yield pieces
        start, pending = start + begin, block[begin:]
    if pending:
        yield [_decoded(pending, start, part.name)]


def _decoded(piece: bytes, offset: int, name: str) -> str:
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name!r} is not UTF-8 at byte {offset + error.start:,}: convert it, e.g. with iconv"
        ) from None


def _blocks(path: Path, part: Part, num_bytes: int, longest_line: int = -1) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of blocks of the lines that begin within a part.

    A block ends where a line does, or within a line that is longer than ``longest_line``, between two characters.
    """
    offset, stop = 0, sys.maxsize
    if part.count > 1:
        size = path.stat().st_size
        offset, stop = (size * number // part.count for number in (part.number, part.number + 1))
    with _opened(path) as file:
        if offset:  # the line around the boundary belongs to the part before
            offset -= 1
            file.seek(offset)
            line = b""
            while offset < stop and not line.endswith(b"\n") and (line := file.readline(2**20)):
                offset += len(line)
        at_line_start = True
        while offset < stop or not at_line_start:
            block = file.read(max(0, min(num_bytes, stop - offset)))
            if not block.endswith(b"\n"):
                block += file.readline(longest_line)
                while (after := file.peek(1)[:1]) and after[0] & 0xC0 == 0x80 and not block.endswith(b"\n"):
                    block += file.read(1)
            if not block:
                return
            skipped = len(BYTE_ORDER_MARK) if offset == 0 and block.startswith(BYTE_ORDER_MARK) else 0
            yield offset + skipped, block[skipped:]
            offset += len(block)
            at_line_start = block.endswith(b"\n")


def _opened(path: Path) -> io.BufferedReader:
    """A file's bytes, decompressed."""
    if path.suffix == ".gz":  # Python's reader skips the zeros that may follow a member, as gzip does
        return io.BufferedReader(gzip.open(path), 2**20)
    if path.suffix == ".zst":
        any_window: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 31}
        return io.BufferedReader(zstd.open(path, options=any_window), 2**20)
    return io.BufferedReader(path.open("rb", buffering=0), 2**20)
