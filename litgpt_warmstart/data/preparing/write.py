"""Text to chunks of tokens, a task a portion: encoded, its documents shuffled, written as litdata's TokensLoader reads.

What a portion gives depends on the plan alone, not on who encodes it when. It is done once its result is there, in
``portions/``; a task that was stopped leaves no result, and is done again. ``litgpt pretrain --data LitData`` reads:

split/
  index.json            litdata's: the chunks in order, and their format
  chunk-0-0.bin …       one item each: a header, then tokens
  shuffled.bin          of the validation split, in their place
"""

import hashlib
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from litgpt_warmstart.data.blocks import HEADER_BYTES
from litgpt_warmstart.data.preparing.encode import encoder_of
from litgpt_warmstart.data.preparing.read import COMPRESSED, SPLITS, Part, SourceFile, Split, documents, text_bytes
from litgpt_warmstart.data.preparing.request import Chunk, Plan
from litgpt_warmstart.files import flush_to_disk, write_whole
from litgpt_warmstart.parsing import parse

INDEX = "index.json"
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
    shares: tuple[float, float] = (1.0, 0.0)
    """The least and the greatest of its training documents, by :func:`share_of`; so where it has none."""


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
    """Encode a portion of ``files``, each by name with path and sha256, and write its chunks, then its result."""
    rows, counts = {part.name: 0 for part in portion.parts}, Counter[str]()
    chunks: defaultdict[str, tuple[Chunk, ...]] = defaultdict(tuple)
    shares = [1.0, 0.0]
    for number, encoded in enumerate(_encoded(folder, plan, portion, files, rows, shares)):
        random = _random(plan.seed, portion.number, number)
        for split in encoded:
            path = folder / split / f"chunk-{portion.number}-{number}.bin"
            chunks[split] += (write_chunk(path, _shuffled(encoded[split], random)),)
            counts[split] += len(encoded[split])
    digests = {name: sha256 for name, (_, sha256) in files.items()}
    result = PortionResult(digests, rows, dict(counts), dict(chunks), (shares[0], shares[1]))
    write_whole(folder / portion.result_name, json.dumps(asdict(result)))
    return result


def _encoded(
    folder: Path, plan: Plan, portion: Portion, files: dict[str, tuple[Path, str]], rows: dict[str, int],
    shares: list[float],
) -> Iterator[dict[str, list[np.ndarray]]]:  # fmt: skip
    """A portion's documents as tokens, by split, as many as are shuffled at once.

    Counts the ``rows`` of each file, and keeps the least and the greatest of the documents' ``shares``.
    """
    encoder = encoder_of(folder, plan.tokenizer_sha256, plan.encoder)
    held_out_share = plan.source.val_fraction if portion.split == "train" else None
    waiting: defaultdict[str, list[np.ndarray]] = defaultdict(list)
    checked = characters = 0
    for part in portion.parts:
        for texts in documents(files[part.name][0], part, plan.source.column, plan.source.piece_bytes):
            rows[part.name] += len(texts)
            for text in (text for text in texts if text and not text.isspace()):
                if checked < CHECKED_CHARACTERS and encoder.name == "tiktoken":
                    sample = text[: CHECKED_CHARACTERS - checked]
                    checked += len(sample)
                    if not encoder.agrees([sample]):
                        raise EncoderDiffers(part.name)
                held = False
                if held_out_share is not None:
                    share = share_of(text)
                    held = share < held_out_share
                    shares[:] = min(shares[0], share), max(shares[1], share)
                ids = encoder.encode(text)
                document = np.empty(len(ids) + 1, plan.dtype)
                document[:-1], document[-1] = ids, plan.eos_id
                waiting["val" if held else portion.split].append(document)
                characters += len(text)
                if characters >= SHUFFLED_CHARACTERS:
                    yield waiting
                    waiting.clear()
                    characters = 0
    yield waiting


def share_of(text: str) -> float:
    """Above which share, 0 to 1, a document is held out for validation: by its text alone, so copies never part."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8, person=b"validation").digest()
    return int.from_bytes(digest, "big") / 2**64


def write_chunk(path: Path, tokens: np.ndarray) -> Chunk:
    """Write token ids, shape (number of tokens,), as a chunk.

    By hand, as litdata's own writer takes an import of torch in each worker.
    """
    header = np.array([1, HEADER_BYTES, HEADER_BYTES + tokens.nbytes], np.uint32)
    digest = hashlib.sha256(header.data)
    digest.update(tokens.data)
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.write(header.data)
        file.write(tokens.data)
    flush_to_disk(path)
    return Chunk(path.name, len(tokens), digest.hexdigest())


def shuffle_documents(folder: Path, chunks: Sequence[Chunk], plan: Plan) -> Chunk:
    """Write the documents of several chunks of a split, shuffled, as one more; the others stay."""
    parts = [np.fromfile(folder / chunk.name, plan.dtype, offset=HEADER_BYTES) for chunk in chunks]
    tokens = np.concatenate(parts)
    documents = np.split(tokens, np.flatnonzero(tokens == plan.eos_id)[:-1] + 1)
    return write_chunk(folder / "shuffled.bin", _shuffled(documents, _random(plan.seed)))


def _random(*seeds: int) -> np.random.Philox:
    return np.random.Philox(np.random.SeedSequence(seeds))


def _shuffled(documents: list[np.ndarray], random: np.random.Philox) -> np.ndarray:
    """The documents as one array, in an order of raw random numbers: of NumPy only those stay between versions."""
    order = np.argsort(random.random_raw(len(documents)), kind="stable")
    return np.concatenate([documents[place] for place in order])


def write_index(folder: Path, chunks: Sequence[Chunk], dtype: np.dtype) -> None:
    """Write litdata's index of a split's chunks."""
    import torch
    from litdata.streaming import TokensLoader
    from litdata.streaming.writer import BinaryWriter

    with tempfile.TemporaryDirectory() as elsewhere:
        writer = BinaryWriter(elsewhere, chunk_bytes=2**32 - 1, item_loader=TokensLoader())
        writer.add_item(0, torch.from_numpy(np.zeros(1, dtype)))
        config = writer.get_config()
    entries = [
        dict(chunk_bytes=HEADER_BYTES + c.tokens * dtype.itemsize, chunk_size=1, dim=c.tokens, filename=c.name)
        for c in chunks
    ]
    # litdata writes the time here, to tell caches of remote folders apart; a digest of the content does so too.
    content = {"chunks": entries, "config": config, "updated_at": combined_digest(chunks)[:16]}
    write_whole(folder / INDEX, json.dumps(content, sort_keys=True))


def combined_digest(chunks: Sequence[Chunk]) -> str:
    """sha256 over the chunks' sha256."""
    return hashlib.sha256("".join(chunk.sha256 for chunk in chunks).encode()).hexdigest()
