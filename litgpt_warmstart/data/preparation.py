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

import errno
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from tqdm import tqdm

from litgpt_warmstart.checkpoint import file_sha256, flush_to_disk
from litgpt_warmstart.data import hub
from litgpt_warmstart.data.chunks import CHUNK_TOKENS, chunk_name, combined_digest, write_chunk, write_index
from litgpt_warmstart.data.encoding import DocumentEncoder, EncoderName
from litgpt_warmstart.data.plan import PLAN, Plan, Preparation, begun_plan, check_prepared, new_plan, path_of
from litgpt_warmstart.data.prepared_index import PREPARED, PreparedFile, PreparedIndex
from litgpt_warmstart.data.progress import Progress
from litgpt_warmstart.data.segments import EncoderDiffers, Reading, Segment, encode_part, merge, segment_path
from litgpt_warmstart.data.sources import SPLITS, Part, parts_of
from litgpt_warmstart.errors import UserError, one_line

VAL_TOKENS = 20_000
"""Where fewer tokens than these are held out, and the user has not said which share to take, more are."""
MOST_VAL_FRACTION = 0.08
"""But never a larger share."""
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
    target = asked.data_path.resolve()  # a link may lead to another disk
    if not (target / PREPARED).is_file():
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UserError(f"{str(asked.data_path)!r} exists and holds no prepared data: choose another --data_path")
        if target.is_mount():
            raise UserError(f"{str(asked.data_path)!r} is a mount point: choose a folder in it as --data_path")
        folder = target.with_name(f".{target.name}.partial")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder, asked.data_path):
                if not (target / PREPARED).is_file() and _prepare_into(target, folder, asked, say):
                    return PreparedIndex.load(target)
        except OSError as error:
            raise UserError(
                f"{str(error.filename or folder)!r}: {error.strerror or one_line(error)}; {_remedy(error)}"
            ) from error
    index = PreparedIndex.load(target)
    check_prepared(index, asked, thorough)
    return index


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free space and give the same command to go on"
    return "mend that and give the same command to go on, or choose another --data_path"


def _prepare_into(target: Path, folder: Path, asked: Preparation, say: Callable[[str], None]) -> bool:
    """Fill the partial folder, unless that is done, and give it its name.

    Returns:
        Whether it was filled now, as asked.
    """
    to_fill = not (folder / PREPARED).is_file()
    if to_fill:
        try:
            _fill(folder, asked, say)
        except BaseException:
            if not (folder / PLAN).exists():  # nothing was begun
                shutil.rmtree(folder, ignore_errors=True)
            raise
    shutil.rmtree(folder / "segments", ignore_errors=True)
    for name in (PLAN, "lock"):
        (folder / name).unlink(missing_ok=True)
    if target.exists():
        target.rmdir()
    folder.rename(target)
    flush_to_disk(target.parent)
    return to_fill


@contextmanager
def _locked(folder: Path, data_path: Path) -> Iterator[None]:
    """Keep a second preparation of the same folder away; the system releases the lock with the process."""
    try:
        import fcntl
    except ImportError:  # no POSIX
        yield
        return
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is preparing {str(data_path)!r}: wait for it") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):  # file systems without locks
                raise
        yield


def _fill(folder: Path, asked: Preparation, say: Callable[[str], None]) -> None:
    """Do both passes in the partial folder, and write its index."""
    plan = begun_plan(folder, asked)
    going_on = plan is not None
    with hub.quiet():
        if not going_on:
            plan, encoder = new_plan(folder, asked, say)
        elif asked.encoder not in (None, plan.encoder):
            plan, encoder = _with_encoder(folder, plan, asked.encoder)
        else:
            encoder = DocumentEncoder(folder, plan.encoder)
        say(
            f"{'Going on preparing' if going_on else 'Preparing'} {plan.source.repo_id or plan.source.text_dir!r} in"
            f" {str(asked.data_path)!r}: {len(plan.files):,} files ({', '.join(sorted(plan.formats))}), vocabulary"
            f" {plan.vocab_size:,}, encoding with {plan.encoder}"
        )
        files, segments, plan = _first_pass(folder, plan, encoder, asked, say)
    documents = {split: sum(segment.num_documents(split) for segment in segments) for split in SPLITS}
    for split in ("train", "val"):
        if documents[split] == 0:
            raise UserError(_why_empty(split, plan, sum(documents.values()), folder))
    tokens, digests = {}, {}
    for split in [split for split in SPLITS if documents[split]]:
        workers = min(asked.num_workers or _cores(), WRITERS)
        tokens[split], digests[split] = write_split(folder / split, split, segments, workers)
    for path in folder.rglob("*"):
        if "segments" not in path.parts:
            flush_to_disk(path)
    index = PreparedIndex(
        fingerprint=combined_digest(digests["train"]),
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


def _first_pass(
    folder: Path, plan: Plan, encoder: DocumentEncoder, asked: Preparation, say: Callable[[str], None]
) -> tuple[list[PreparedFile], list[Segment], Plan]:
    """Encode everything, anew where tiktoken turns out to be wrong, or where too little is held out of a short text.

    Returns:
        What :meth:`EncodingPass.run` gives, and the plan by which it was done.
    """
    while True:
        try:
            files, segments = EncodingPass(folder / "segments", plan, encoder).run(asked.num_workers or _cores())
        except EncoderDiffers as error:
            differs = f"tiktoken does not give the tokenizer's ids on {str(error)!r}"
            if asked.encoder:
                raise UserError(f"{differs}: leave --encoder out") from None
            say(f"{differs}: beginning anew with tokenizers")
            plan, encoder = _with_encoder(folder, plan, "tokenizers")
            continue
        fraction = plan.source.val_fraction
        held_out = sum(segment.num_tokens("val") for segment in segments)
        if fraction is None or asked.val_fraction or held_out >= VAL_TOKENS or fraction >= MOST_VAL_FRACTION:
            return files, segments, plan
        fraction = min(2 * fraction, MOST_VAL_FRACTION)
        say(f"{held_out:,} tokens are held out, too few to validate: beginning anew with val_fraction {fraction:g}")
        shutil.rmtree(folder / "segments")
        plan = replace(plan, source=replace(plan.source, val_fraction=fraction))
        plan.save(folder)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _with_encoder(folder: Path, plan: Plan, encoder: EncoderName) -> tuple[Plan, DocumentEncoder]:
    """The plan with another encoder, and nothing that the one before has done."""
    shutil.rmtree(folder / "segments", ignore_errors=True)
    plan = replace(plan, encoder=encoder)
    plan.save(folder)
    return plan, DocumentEncoder(folder, encoder)


def _why_empty(split: str, plan: Plan, num_documents: int, folder: Path) -> str:
    what = plan.source.repo_id or plan.source.text_dir
    if split == "train" or plan.source.val_fraction is None:
        return f"the {split} split of {what!r} has no text: give it documents, and remove {str(folder)!r} to begin anew"
    return (
        f"{what!r} has no validation split, and val_fraction {plan.source.val_fraction:g} of its {num_documents:,}"
        f" documents held out none: remove {str(folder)!r} and raise val_fraction, or add a file named validation"
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
    encoder: DocumentEncoder

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.reading = Reading(
            encoder=self.encoder,
            eos_id=self.plan.eos_id,
            dtype=np.dtype(self.plan.dtype),
            column=self.plan.source.column,
            seed=self.plan.seed,
            val_fraction=self.plan.source.val_fraction,
        )
        self._stop = threading.Event()
        estimate = sum(file.estimated_text_bytes for file in self.plan.files)
        self._progress = Progress(estimate, self.plan.source.repo_id or Path(self.plan.source.text_dir).name)

    def run(self, workers: int) -> tuple[list[PreparedFile], list[Segment]]:
        """Do what is left of it.

        Returns:
            The files as they were read, and all segments in the order of files and parts.
        """
        fetched: dict[int, tuple[Path, str, list[tuple[Part, int]]]] = {}
        encoded: dict[tuple[int, ...], tuple[int, int, int]] = {}
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
                count, part_rows, num_documents = encoded[number, part.start]
                rows += part_rows
                stem = self._stem(number, part)
                found = [Segment(segment_path(stem, n), self.reading.dtype) for n in range(count)]
                if sum(segment.bounds[-1] for segment in found) != num_documents:
                    raise UserError(f"{str(stem)!r}-* are not of one preparation: remove {str(self.folder)!r}")
                segments += found
            files.append(PreparedFile(file.name, file.split, file.num_bytes, sha256, rows))
        return files, segments

    def _stem(self, number: int, part: Part) -> Path:
        return self.folder / f"{number:06d}-{part.start:014d}-{'end' if part.stop is None else part.stop}"

    def _fetch(self, number: int) -> tuple[Path, str, list[tuple[Part, int]]]:
        """Get a file and see how it is cut: its path, sha256, and parts with their bytes of text."""
        file = self.plan.files[number]
        if self._stop.is_set():
            raise Stopped
        path = path_of(file, self.plan.source, self._received)
        marker = self.folder / f"{number:06d}.sha256"
        expected = marker.read_text() if marker.exists() else file.sha256
        try:
            sha256 = file_sha256(path)
        except OSError as error:
            raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from error
        if expected not in (None, sha256):
            raise UserError(
                f"{str(path)!r} has sha256 {sha256[:12]}…, not {expected[:12]}…: it was changed or damaged; restore it"
                " or, in the Hub's cache, remove it"
            )
        _write_whole(marker, sha256)
        parts = parts_of(path, file.name, self.plan.source.column)
        self._progress.correct_total(sum(num_bytes for _, num_bytes in parts) - file.estimated_text_bytes)
        return path, sha256, parts

    def _received(self, num_bytes: int) -> None:
        if self._stop.is_set():
            raise Stopped
        self._progress.received(num_bytes)

    def _encode(self, number: int, path: Path, part: Part, num_bytes: int) -> tuple[int, int, int]:
        """Encode a part, unless that is done; see :func:`encode_part`."""
        stem = self._stem(number, part)
        marker = stem.with_name(f"{stem.name}.done")
        if marker.exists():
            self._progress.advance(0, 0, num_bytes)
            return tuple(json.loads(marker.read_text()))
        file = self.plan.files[number]
        read = 0

        def advance(documents: int, tokens: int, new_bytes: int) -> None:
            nonlocal read
            if self._stop.is_set():
                raise Stopped
            read += new_bytes
            self._progress.advance(documents, tokens, new_bytes)

        result = encode_part(path, file.name, number, file.split, part, self.reading, stem, advance)
        self._progress.correct_total(read - num_bytes)
        _write_whole(marker, json.dumps(result))
        return result


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that a kill leaves it as it was or as it should be."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    flush_to_disk(partial)
    os.replace(partial, path)


def write_split(folder: Path, split: str, segments: list[Segment], workers: int) -> tuple[int, list[str]]:
    """The second pass for a split: its documents, in the order of their keys, as chunks, and litdata's index.

    Returns:
        How many tokens there are, and the sha256 of each chunk.
    """
    folder.mkdir(exist_ok=True)
    num_tokens = sum(segment.num_tokens(split) for segment in segments)
    num_ranges = -(-num_tokens // CHUNK_TOKENS)
    keys = [2**64 * number // num_ranges for number in range(num_ranges + 1)]
    cuts = np.array([segment.cuts(split, keys) for segment in segments])  # (segments, ranges + 1)
    # A few long documents may all have keys in one range: the others are no chunks.
    ranges = np.flatnonzero((cuts[:, 1:] > cuts[:, :-1]).any(0)).tolist()
    stop = threading.Event()
    bar = tqdm(total=len(ranges), unit="chunk", desc=split, dynamic_ncols=True, disable=not sys.stderr.isatty())

    def write(number: int) -> None:
        path, at = folder / chunk_name(number), ranges[number]
        if not path.exists() and not stop.is_set():
            write_chunk(path, merge(zip(segments, cuts[:, at].tolist(), cuts[:, at + 1].tolist(), strict=True)))
        bar.update()

    with bar, ThreadPoolExecutor(workers) as pool:
        try:
            list(pool.map(write, range(len(ranges))))
        except BaseException:
            stop.set()
            raise
    return write_index(folder, len(ranges), segments[0].dtype)
