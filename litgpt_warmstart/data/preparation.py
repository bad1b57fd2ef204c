"""From text to a folder of tokens, in two passes that go on where they were stopped.

1. Each part of each file is read and encoded into segments (segments.py).
2. The segments' documents, merged in the order of their keys, become chunks (chunks.py).

All of it happens in a hidden folder beside ``data_path``, which is renamed at the end:

.NAME.partial/
  plan.json          source, files, settings: a preparation that goes on must have the same
  tokenizer files
  segments/          what the first pass has done
  train/ val/ test/  what the second has
  prepared.json      written last

The bytes are the same for any number of workers. These are threads: reading, encoding and hashing let go of Python's
lock, one tokenizer serves all, and nothing outlives a kill.
"""

import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from litgpt_warmstart.checkpoint import file_sha256, flush_to_disk
from litgpt_warmstart.data import hub
from litgpt_warmstart.data.chunks import CHUNK_TOKENS, chunk_name, write_chunk, write_index
from litgpt_warmstart.data.encoding import DocumentEncoder
from litgpt_warmstart.data.plan import PLAN, Plan, Preparation, begun_plan, check_prepared, new_plan, path_of
from litgpt_warmstart.data.prepared_index import PREPARED, PreparedFile, PreparedIndex
from litgpt_warmstart.data.progress import Progress
from litgpt_warmstart.data.segments import Reading, Segment, encode_part, gather, segment_path
from litgpt_warmstart.data.sources import SPLITS, Part, parts_of
from litgpt_warmstart.errors import UserError, one_line

DOWNLOADS = 4
"""Files that are fetched and hashed at once."""
WRITERS = 4
"""Chunks that are written at once; each takes about 200 MB of memory."""


def prepare(asked: Preparation, thorough: bool = False, say: Callable[[str], None] = print) -> PreparedIndex:
    """Prepare a folder of tokens, go on preparing it, or check that what is there is what is asked for.

    Args:
        asked: What, and where.
        thorough: Whether to compare prepared data with its source by content and with the Hub, too.
        say: Prints a line.

    Raises:
        UserError: It cannot be done; says what is wrong and, where something was begun, that the same command goes on.
    """
    asked.check()
    data_path = asked.data_path
    if (data_path / PREPARED).is_file():
        index = PreparedIndex.load(data_path)
        check_prepared(index, asked, thorough)
        return index
    if data_path.exists() and (not data_path.is_dir() or any(data_path.iterdir())):
        raise UserError(f"{str(data_path)!r} exists and holds no prepared data: choose another --data_path")
    folder = data_path.absolute().with_name(f".{data_path.name}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, data_path):
            filled_before = (folder / PREPARED).is_file()  # and killed just then
            if not filled_before:
                try:
                    _fill(folder, asked, say)
                except BaseException:
                    if not (folder / PLAN).exists():  # nothing was begun
                        shutil.rmtree(folder, ignore_errors=True)
                    raise
            index = PreparedIndex.load(folder)
            shutil.rmtree(folder / "segments", ignore_errors=True)
            for name in (PLAN, "lock"):
                (folder / name).unlink(missing_ok=True)
            if data_path.exists():
                data_path.rmdir()
            folder.rename(data_path)
            flush_to_disk(data_path.absolute().parent)
        if filled_before:
            check_prepared(index, asked, thorough)
    except OSError as error:
        raise UserError(
            f"cannot write {str(error.filename or folder)!r}: {error.strerror or one_line(error)}; free space and give"
            " the same command to go on, or choose another --data_path"
        ) from error
    return index


@contextmanager
def _locked(folder: Path, data_path: Path) -> Iterator[None]:
    """Keep a second preparation of the same folder away; the system releases the lock with the process."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is preparing {str(data_path)!r}: wait for it") from None
        yield


def _fill(folder: Path, asked: Preparation, say: Callable[[str], None]) -> None:
    """Do both passes in the partial folder, and write its index."""
    plan = begun_plan(folder, asked)
    going_on = plan is not None
    if going_on:
        plan = replace(plan, encoder=asked.encoder or plan.encoder)
        encoder = DocumentEncoder(folder, plan.encoder)
    else:
        plan, encoder = new_plan(folder, asked, say)
    say(
        f"{'Going on preparing' if going_on else 'Preparing'} {plan.source.repo_id or plan.source.text_dir!r} in"
        f" {str(asked.data_path)!r}: {len(plan.files):,} files, vocabulary {plan.vocab_size:,}, encoding with"
        f" {plan.encoder}"
    )
    workers = asked.num_workers or (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    reading = Reading(
        encoder=encoder,
        eos_id=plan.eos_id,
        dtype=np.dtype(plan.dtype),
        column=plan.source.column,
        seed=plan.seed,
        val_fraction=plan.source.val_fraction,
    )
    with hub.without_progress_bars():
        first_pass = EncodingPass(folder / "segments", plan, reading)
        files, segments = first_pass.run(workers)
    tokens, documents, digests = {}, {}, {}
    for split in SPLITS:
        documents[split] = sum(segment.num_documents(split) for segment in segments)
        if documents[split] == 0:
            if split == "test":
                continue
            raise UserError(_why_empty(split, plan, sum(documents.values())))
        tokens[split], digests[split] = write_split(folder / split, split, segments, min(workers, WRITERS))
    index = PreparedIndex(
        fingerprint=hashlib.sha256("".join(digests["train"]).encode()).hexdigest(),
        source=plan.source,
        tokenizer=plan.tokenizer,
        tokenizer_sha256=plan.tokenizer_sha256,
        encoder=plan.encoder,
        vocab_size=plan.vocab_size,
        eos_id=plan.eos_id,
        dtype=plan.dtype,
        seed=plan.seed,
        tokens=tokens,
        documents={split: count for split, count in documents.items() if count},
        chunks_sha256=digests,
        files=tuple(files),
    )
    index.save(folder)


def _why_empty(split: str, plan: Plan, training_documents: int) -> str:
    what = plan.source.repo_id or plan.source.text_dir
    if split == "train" or plan.source.val_fraction is None:
        return f"the {split} split of {what!r} has no text: give it documents, and remove the half-prepared folder"
    return (
        f"{what!r} has no validation split, and val_fraction {plan.source.val_fraction:g} of its {training_documents:,}"
        " documents held out none: remove the half-prepared folder and raise val_fraction, or add a file named"
        " validation"
    )


class Stopped(Exception):
    """Another thread has failed, or the user stops."""


@dataclass
class EncodingPass:
    """The first pass: files fetched and hashed, their parts encoded into segments.

    Beside a part's segments, ``PART.done`` tells how many they are; ``FILE.sha256`` tells which file they are of.
    """

    folder: Path
    plan: Plan
    reading: Reading

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self._stop = threading.Event()
        estimate = sum(file.estimated_text_bytes for file in self.plan.files)
        self._progress = Progress(estimate, self.plan.source.repo_id or Path(self.plan.source.text_dir).name)

    def run(self, workers: int) -> tuple[list[PreparedFile], list[Segment]]:
        """Do what is left of it.

        Returns:
            The files as they were read, and all segments in the order of files and parts.
        """
        fetched: dict[int, tuple[Path, str, list[tuple[Part, int]]]] = {}
        encoded: dict[tuple[int, int], tuple[int, int]] = {}
        done: SimpleQueue[tuple[tuple[int, ...], Future]] = SimpleQueue()
        left = 0

        def submit(pool: ThreadPoolExecutor, key: tuple[int, ...], task: Callable, *arguments: object) -> None:
            nonlocal left
            left += 1
            pool.submit(task, *arguments).add_done_callback(lambda future: done.put((key, future)))

        with ThreadPoolExecutor(workers) as encoders, ThreadPoolExecutor(DOWNLOADS) as fetchers:
            try:
                for number in range(len(self.plan.files)):
                    submit(fetchers, (number,), self._fetch, number)
                while left:
                    key, future = done.get()
                    left -= 1
                    if len(key) == 2:
                        encoded[key] = future.result()
                        continue
                    (number,) = key
                    fetched[number] = path, _, parts = future.result()
                    for part, num_bytes in parts:
                        submit(encoders, (number, part.start), self._encode, number, path, part, num_bytes)
            except BaseException:
                self._stop.set()
                for pool in (encoders, fetchers):
                    pool.shutdown(wait=False, cancel_futures=True)
                raise
            finally:
                self._progress.close()
        files, segments = [], []
        for number, file in enumerate(self.plan.files):
            _, sha256, parts = fetched[number]
            rows = 0
            for part, _ in parts:
                count, part_rows = encoded[number, part.start]
                rows += part_rows
                stem = self._stem(number, part)
                segments += [Segment(segment_path(stem, n), self.reading.dtype) for n in range(count)]
            files.append(PreparedFile(file.name, file.split, file.num_bytes, sha256, rows))
        return files, segments

    def _stem(self, number: int, part: Part) -> Path:
        return self.folder / f"{number:06d}-{part.start:014d}"

    def _fetch(self, number: int) -> tuple[Path, str, list[tuple[Part, int]]]:
        """Get a file and see how it is cut: its path, sha256, and parts with their bytes of text."""
        file = self.plan.files[number]
        if self._stop.is_set():
            raise Stopped
        path = path_of(file, self.plan.source, self._received)
        sha256, marker = file_sha256(path), self.folder / f"{number:06d}.sha256"
        expected = marker.read_text() if marker.exists() else file.sha256
        if expected not in (None, sha256):
            raise UserError(
                f"{str(path)!r} has sha256 {sha256[:12]}…, not {expected[:12]}…: it was changed or damaged; restore it"
                " or, in the Hub's cache, remove it"
            )
        _write_whole(marker, sha256)
        parts = parts_of(path, file.name, self.plan.source.column) if path.stat().st_size else []
        self._progress.correct_total(sum(num_bytes for _, num_bytes in parts) - file.estimated_text_bytes)
        return path, sha256, parts

    def _received(self, num_bytes: int) -> None:
        if self._stop.is_set():
            raise Stopped
        self._progress.received(num_bytes)

    def _encode(self, number: int, path: Path, part: Part, num_bytes: int) -> tuple[int, int]:
        """Encode a part, unless that is done: how many segments it has, and how many rows."""
        stem = self._stem(number, part)
        marker = stem.with_name(f"{stem.name}.done")
        if marker.exists():
            self._progress.advance(0, 0, num_bytes)
            count, rows = json.loads(marker.read_text())
            return count, rows
        file = self.plan.files[number]
        read = 0

        def advance(documents: int, tokens: int, new_bytes: int) -> None:
            nonlocal read
            if self._stop.is_set():
                raise Stopped
            read += new_bytes
            self._progress.advance(documents, tokens, new_bytes)

        count, rows = encode_part(path, file.name, number, file.split, part, self.reading, stem, advance)
        self._progress.correct_total(read - num_bytes)
        _write_whole(marker, json.dumps([count, rows]))
        return count, rows


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that a kill leaves it as it was or as it should be."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def write_split(folder: Path, split: str, segments: list[Segment], workers: int) -> tuple[int, list[str]]:
    """The second pass for a split: its documents, in the order of their keys, as chunks, and litdata's index.

    Returns:
        How many tokens there are, and the sha256 of each chunk.
    """
    folder.mkdir(exist_ok=True)
    num_tokens = sum(segment.num_tokens(split) for segment in segments)
    num_ranges = -(-num_tokens // CHUNK_TOKENS)
    bounds = [2**64 * number // num_ranges for number in range(num_ranges + 1)]
    # A few long documents may all have keys in one range: the others are no chunks.
    ranges = [
        (first, stop)
        for first, stop in zip(bounds, bounds[1:], strict=False)
        if any(len(segment.between(split, first, stop)[0]) for segment in segments)
    ]
    stop = threading.Event()

    def write(number: int) -> None:
        path = folder / chunk_name(number)
        if not path.exists() and not stop.is_set():
            write_chunk(path, gather(segments, split, *ranges[number]))

    with ThreadPoolExecutor(workers) as pool:
        try:
            list(pool.map(write, range(len(ranges))))
        except BaseException:
            stop.set()
            raise
    return write_index(folder, len(ranges), segments[0].tokens.dtype)
