"""A preparation's tasks: each encodes a portion of the text and writes it as chunks, its documents shuffled.

What a portion gives depends on the plan alone, not on who encodes it when. It is done once its result is there, in
``portions/``; a task that was stopped leaves no result, and is done again.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from litgpt_warmstart.data.preparing.encode import DocumentEncoder
from litgpt_warmstart.data.preparing.index import Chunk, Plan, SourceFile, Split
from litgpt_warmstart.data.preparing.read import COMPRESSED, SPLITS, Part, documents, text_bytes
from litgpt_warmstart.data.preparing.write import write_chunk
from litgpt_warmstart.files import write_whole
from litgpt_warmstart.parsing import parse

PORTION_BYTES = 32 * 2**20
"""Text of a portion, about."""
SHUFFLED_CHARACTERS = 64 * 2**20
"""Text that is shuffled at once, and becomes a chunk: as a rule a whole portion, unless that is a compressed file."""
CHECKED_CHARACTERS = 64 * 2**10
"""Text of a portion on which tiktoken is compared with ``tokenizers``."""


class EncoderDiffers(Exception):
    """tiktoken gives other ids than ``tokenizers``, on the file named."""


@dataclass(frozen=True)
class Portion:
    """Small files of a split together, or a part of a large one."""

    number: int
    split: Split
    parts: tuple[Part, ...]

    @property
    def result_name(self) -> str:
        """Where its result is, in the folder of a preparation."""
        return f"portions/{self.number:06d}.json"


@dataclass(frozen=True)
class PortionResult:
    """What a portion was read from, and what it became."""

    sha256: dict[str, str]
    """Of its files, by name."""
    rows: dict[str, int]
    documents: dict[str, int]
    chunks: dict[str, tuple[Chunk, ...]]


def portions_of(files: Sequence[SourceFile]) -> Iterator[Portion]:
    """All portions of a source, by split and then in the order of its files."""
    number = 0
    for split in SPLITS:
        parts, size = [], 0.0
        for file in files:
            if file.split != split:
                continue
            compressed = Path(file.name).suffix in COMPRESSED
            count = 1 if compressed else max(1, round(text_bytes(file) / PORTION_BYTES))
            for part in range(count):
                if parts and size + text_bytes(file) / count > PORTION_BYTES:
                    yield Portion(number, split, tuple(parts))
                    number, parts, size = number + 1, [], 0.0
                parts.append(Part(file.name, part, count))
                size += text_bytes(file) / count
        if parts:
            yield Portion(number, split, tuple(parts))
            number += 1


def finished_portion(folder: Path, portion: Portion) -> PortionResult | None:
    """The result of a portion that was encoded before."""
    path = folder / portion.result_name
    return parse(PortionResult, json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def encode_portion(folder: Path, plan: Plan, portion: Portion, files: dict[str, tuple[Path, str]]) -> PortionResult:
    """Encode a portion and write its chunks, then its result.

    Args:
        folder: The preparation's, with the tokenizer's files.
        plan: Its plan; ``files`` may be left out.
        portion: What to encode.
        files: Path and sha256 of its files, by name.

    Raises:
        UserError: A file is damaged.
        EncoderDiffers: tiktoken disagrees with ``tokenizers`` on it.
        OSError: The chunks cannot be written.
    """
    encoder = encoder_of(folder, plan)
    held_out_share = plan.source.val_fraction if portion.split == "train" else None
    rows = dict.fromkeys((part.name for part in portion.parts), 0)
    waiting = _Documents(folder, plan, portion)
    checked = 0
    for part in portion.parts:
        for texts in documents(files[part.name][0], part, plan.source.column, plan.source.piece_bytes):
            rows[part.name] += len(texts)
            texts = [text for text in texts if text and not text.isspace()]
            for text in texts:
                if checked < CHECKED_CHARACTERS and encoder.name == "tiktoken":
                    sample = text[: CHECKED_CHARACTERS - checked]
                    checked += len(sample)
                    if not encoder.agrees([sample]):
                        raise EncoderDiffers(part.name)
                held = held_out_share is not None and held_out(text, held_out_share)
                waiting.add("val" if held else portion.split, encoder.encode(text), len(text))
    waiting.write()
    sha256 = {name: digest for name, (_, digest) in files.items()}
    chunks = {split: tuple(found) for split, found in waiting.chunks.items()}
    result = PortionResult(sha256, rows, waiting.counts, chunks)
    write_whole(folder / portion.result_name, json.dumps(asdict(result)))
    return result


def held_out(text: str, share: float) -> bool:
    """Whether a document is held out for validation: by its text alone, so that copies of one never part."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8, person=b"validation").digest()
    return int.from_bytes(digest, "big") < share * 2**64


_encoders: dict[tuple[Path, str, str], DocumentEncoder] = {}


def keep_encoder(folder: Path, plan: Plan, encoder: DocumentEncoder) -> None:
    """Have an encoder ready in this process, and in those that it forks from now on."""
    _encoders.clear()
    _encoders[folder, plan.tokenizer_sha256, plan.encoder] = encoder


def encoder_of(folder: Path, plan: Plan) -> DocumentEncoder:
    """The plan's encoder, made once in a process."""
    key = folder, plan.tokenizer_sha256, plan.encoder
    if key not in _encoders:
        keep_encoder(folder, plan, DocumentEncoder(folder, plan.encoder))
    return _encoders[key]


class _Documents:
    """Documents of a portion on their way to chunks."""

    def __init__(self, folder: Path, plan: Plan, portion: Portion) -> None:
        self.folder, self.plan, self.portion = folder, plan, portion
        self.counts: dict[str, int] = {}
        self.chunks: dict[str, list[Chunk]] = {}
        self._waiting: dict[str, list[np.ndarray]] = {}
        self._characters = self._times_written = 0

    def add(self, split: Split, ids: np.ndarray, characters: int) -> None:
        """Take a document, and write what waits where that is enough."""
        document = np.empty(len(ids) + 1, self.plan.dtype)
        document[:-1], document[-1] = ids, self.plan.eos_id
        self._waiting.setdefault(split, []).append(document)
        self._characters += characters
        if self._characters >= SHUFFLED_CHARACTERS:
            self.write()

    def write(self) -> None:
        """Write what waits, shuffled, as a chunk of each split."""
        number = self._times_written
        # Of NumPy only raw output stays the same between versions.
        random = np.random.Philox(np.random.SeedSequence([self.plan.seed, self.portion.number, number]))
        for split, waiting in self._waiting.items():
            order = np.argsort(random.random_raw(len(waiting)), kind="stable")
            path = self.folder / split / f"chunk-{self.portion.number}-{number}.bin"
            chunk = write_chunk(path, np.concatenate([waiting[place] for place in order]))
            self.chunks.setdefault(split, []).append(chunk)
            self.counts[split] = self.counts.get(split, 0) + len(waiting)
        self._waiting, self._characters, self._times_written = {}, 0, number + 1
