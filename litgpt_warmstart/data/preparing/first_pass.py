"""The first pass of a preparation: files fetched and hashed, their parts encoded into segments, on threads."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from litgpt_warmstart.data.preparing.encoding import DocumentEncoder
from litgpt_warmstart.data.preparing.plan import Plan, path_of
from litgpt_warmstart.data.preparing.prepared_index import PreparedFile
from litgpt_warmstart.data.preparing.progress import Progress
from litgpt_warmstart.data.preparing.segments import Reading, Segment, encode_part, segment_path
from litgpt_warmstart.data.preparing.sources import Part, parts_of
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import file_sha256, write_whole

DOWNLOADS = 4
"""Files that are fetched and hashed at once."""


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
            piece_bytes=self.plan.source.piece_bytes,
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
        write_whole(marker, sha256)
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
        write_whole(marker, json.dumps(result))
        return result
