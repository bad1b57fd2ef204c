"""The first pass over text: each part encoded, its documents sorted by a random key.

The order of all documents is that of their keys, which depend on the seed and on where a document stands in its source,
not on who encodes it when. A part becomes segments: files of limited size that appear whole or not at all, so that an
interrupted preparation goes on after the last one.

A segment file: its bytes of text and its documents of each split (int64), a table of the documents (:data:`DOCUMENT`),
their tokens one after another; both sorted by split and key.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from litgpt_warmstart.data.preparing.encoding import DocumentEncoder
from litgpt_warmstart.data.preparing.sources import SPLITS, Part, documents
from litgpt_warmstart.errors import UserError

SEGMENT_BYTES = 32 * 2**20
"""Text of a segment, about."""
CHECKED_CHARACTERS = 4 * 2**10
"""Text of a part on which tiktoken is compared with ``tokenizers``."""
DOCUMENT = np.dtype([("key", "<u8"), ("start", "<u4"), ("length", "<u4")])
"""A document: its place in the shuffled order; its first token and how many, with the end-of-text token."""


@dataclass(frozen=True)
class Reading:
    """What every part of a source is encoded with."""

    encoder: DocumentEncoder
    eos_id: int
    dtype: np.dtype
    column: str
    seed: int
    val_fraction: float | None
    """Share of the training documents to hold out; None where the source has a validation split."""
    piece_bytes: int | None = None
    """Size above which a .txt file is cut into documents."""


def encode_part(
    path: Path, name: str, file_index: int, split: str, part: Part, reading: Reading, stem: Path,
    advance: Callable[[int, int, int], None],
) -> tuple[int, int, int]:  # fmt: skip
    """Encode a part into ``stem-0000.segment``, ``stem-0001.segment`` … and leave those that exist as they are.

    Args:
        path: Where the file is.
        name: What it is called in its source.
        file_index: Its place in the source.
        split: Its split; held-out documents of a training file go to validation.
        part: What to read of it.
        reading: What all parts are encoded with.
        stem: Path of the segments without their number.
        advance: Told documents, tokens and bytes of text as they are done; may raise to stop.

    Returns:
        How many segments the part has, how many rows, and how many of them are documents.

    Raises:
        UserError: The file is damaged, or segments that exist are of another text.
        EncoderDiffers: tiktoken disagrees with ``tokenizers`` on it.
        OSError: The segment cannot be written.
    """
    number = rows = num_documents = checked = 0
    segment = _Segment(reading, split)
    exists = segment_path(stem, 0).exists()
    for texts in documents(path, name, part, reading.column, reading.piece_bytes):
        rows += len(texts)
        texts = [text for text in texts if text and not text.isspace()]
        num_documents += len(texts)
        if not exists and checked < CHECKED_CHARACTERS and reading.encoder.name == "tiktoken":
            sample = [text[:CHECKED_CHARACTERS] for text in texts[:8]]
            if not reading.encoder.agrees(sample):
                raise EncoderDiffers(name)
            checked += sum(map(len, sample))
        num_tokens, num_bytes = segment.add(texts, encode=not exists)
        advance(len(texts), num_tokens, num_bytes)
        if segment.num_bytes >= SEGMENT_BYTES:
            segment.write(segment_path(stem, number), _keys(reading.seed, file_index, part, number))
            number += 1
            segment, exists = _Segment(reading, split), segment_path(stem, number).exists()
    if segment.num_bytes:
        segment.write(segment_path(stem, number), _keys(reading.seed, file_index, part, number))
        number += 1
    return number, rows, num_documents


class EncoderDiffers(Exception):
    """tiktoken gives other ids than ``tokenizers``, on the file named."""


def segment_path(stem: Path, number: int) -> Path:
    """Where a part's n-th segment is."""
    return stem.with_name(f"{stem.name}-{number:04d}.segment")


def _keys(seed: int, file_index: int, part: Part, number: int) -> np.random.Philox:
    """The generator of a segment's keys; raw output, which NumPy keeps the same between versions."""
    return np.random.Philox(np.random.SeedSequence([seed, file_index, part.start, number]))


class _Segment:
    """Documents of a part on their way to a file."""

    def __init__(self, reading: Reading, split: str) -> None:
        self.reading, self.split = reading, SPLITS.index(split)
        self.tokens: list[np.ndarray] = []
        self.splits: list[int] = []
        self.num_bytes = self.num_documents = 0
        self.exists = False

    def add(self, texts: list[str], encode: bool) -> tuple[int, int]:
        """Take documents; those of a segment that exists already are only counted.

        Returns:
            How many tokens they have (0 where they are only counted), and how many bytes of text.
        """
        utf8 = [text.encode("utf-8") for text in texts]
        num_bytes = sum(map(len, utf8))
        self.num_bytes += num_bytes
        self.num_documents += len(texts)
        if not encode:
            self.exists = True
            return 0, num_bytes
        dtype, eos = self.reading.dtype, self.reading.eos_id
        num_tokens = 0
        for ids in self.reading.encoder(texts):
            document = np.empty(len(ids) + 1, dtype)
            document[:-1], document[-1] = ids, eos
            self.tokens.append(document)
            num_tokens += len(document)
        fraction = self.reading.val_fraction
        if fraction is None or self.split != 0:
            self.splits += [self.split] * len(texts)
        else:
            self.splits += [int(held_out(text, fraction)) for text in utf8]
        return num_tokens, num_bytes

    def write(self, path: Path, keys: np.random.Philox) -> None:
        """Write the file at once, sorted by split and key; where it is there, see that it is of the same text."""
        if self.exists:
            there = Segment(path, self.reading.dtype)
            if (there.num_bytes, there.bounds[-1]) != (self.num_bytes, self.num_documents):
                raise UserError(f"{str(path)!r} is of another text: remove its folder to begin anew")
            return
        splits, random = np.array(self.splits), keys.random_raw(len(self.tokens))
        order = np.lexsort((random, splits))
        table = np.zeros(len(self.tokens), DOCUMENT)
        table["key"] = random[order]
        table["length"] = [len(self.tokens[index]) for index in order]
        table["start"] = np.cumsum(table["length"]) - table["length"]
        partial = path.with_name(path.name + ".partial")
        try:
            with partial.open("wb") as file:
                counts = np.bincount(splits, minlength=len(SPLITS))
                file.write(np.array([self.num_bytes, *counts], np.int64).tobytes())
                file.write(table.tobytes())
                for index in order:
                    file.write(self.tokens[index])
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def held_out(utf8: bytes, fraction: float) -> bool:
    """Whether a document is held out for validation: by its text alone, so that copies of one never part."""
    digest = hashlib.blake2b(utf8, digest_size=8, person=b"validation").digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


class Segment:
    """A segment file; opened only while something is read, as there may be thousands.

    Args:
        path: The file.
        dtype: Of its tokens.
    """

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        header = np.fromfile(path, np.int64, 1 + len(SPLITS))
        self.path, self.dtype, self.num_bytes = path, dtype, int(header[0])
        self.bounds = [0, *np.cumsum(header[1:]).tolist()]
        self._table_offset = header.nbytes

    def num_documents(self, split: str) -> int:
        """Documents of a split."""
        begin, end = self.bounds[SPLITS.index(split) :][:2]
        return end - begin

    def table(self, first: int, stop: int) -> np.ndarray:
        """The documents first <= i < stop of the file, of :data:`DOCUMENT`."""
        offset = self._table_offset + first * DOCUMENT.itemsize
        return np.fromfile(self.path, DOCUMENT, stop - first, offset=offset)

    def num_tokens(self, split: str) -> int:
        """Tokens of a split."""
        return int(self.table(*self.bounds[SPLITS.index(split) :][:2])["length"].sum(dtype=np.int64))

    def cuts(self, split: str, keys: list[int]) -> list[int]:
        """For each of ascending keys, which document of the file is the first of the split not below it."""
        begin, end = self.bounds[SPLITS.index(split) :][:2]
        inner = np.array([key for key in keys if key < 2**64], np.uint64)
        found = begin + np.searchsorted(self.table(begin, end)["key"], inner)
        return found.tolist() + [end] * (len(keys) - len(inner))

    def read(self, first: int, stop: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Keys and tokens of the documents first <= i < stop of the file."""
        table = self.table(first, stop)
        if not len(table):
            return table["key"], []
        offset = self._table_offset + self.bounds[-1] * DOCUMENT.itemsize
        starts = table["start"].astype(np.int64) - int(table["start"][0])
        count = int(starts[-1]) + int(table["length"][-1])
        tokens = np.fromfile(self.path, self.dtype, count, offset=offset + int(table["start"][0]) * self.dtype.itemsize)
        if len(tokens) != count:
            raise UserError(f"{str(self.path)!r} is cut off: remove the folder {str(self.path.parent)!r} to begin anew")
        return table["key"], np.split(tokens, starts[1:])


def merge(segments: Iterable[tuple[Segment, int, int]]) -> np.ndarray:
    """The tokens of documents of several segments, in the order of their keys.

    Equal keys, of which there may be one pair in a thousand million documents, stay in the order of the segments.

    Args:
        segments: Each with the first of its documents and one past the last.
    """
    found = [segment.read(first, stop) for segment, first, stop in segments]
    documents = [document for _, part in found for document in part]
    order = np.argsort(np.concatenate([keys for keys, _ in found]), kind="stable")
    return np.concatenate([documents[index] for index in order])
