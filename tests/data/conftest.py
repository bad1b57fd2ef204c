"""Text in every format, a tokenizer, and a Hub."""

import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from litgpt_warmstart.data import PreparedText
from litgpt_warmstart.data.preparing import prepare as preparing
from litgpt_warmstart.data.preparing import read, request, write
from litgpt_warmstart.data.preparing.request import Preparation, PreparedIndex
from litgpt_warmstart.data.stdlib_text import pieces, stdlib_documents
from litgpt_warmstart.executors import Task
from tests.data.hub_server import Hub, Repository, serve


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """About a megabyte of documents of some 2,000 characters, all different."""
    found = [piece for text in list(stdlib_documents().values())[:60] for piece in pieces(text)]
    return list(dict.fromkeys(found))[:500]


def parquet(texts: Sequence[str | None], column: str = "text", kind: pa.DataType = pa.string()) -> bytes:
    """A parquet file with a column of text and one of something else."""
    buffer = io.BytesIO()
    table = pa.table({"meta": list(range(len(texts))), column: pa.array(texts, pa.string()).cast(kind)})
    pq.write_table(table, buffer, row_group_size=20)
    return buffer.getvalue()


def jsonl(texts: Sequence[str], column: str = "text") -> bytes:
    """Lines of JSON objects."""
    return "".join(json.dumps({column: text, "meta": 1}, ensure_ascii=False) + "\n" for text in texts).encode()


def write_folder(folder: Path, texts: Sequence[str]) -> Path:
    """A folder with the texts in all formats, and a validation file of 20 others."""
    folder.mkdir(parents=True)
    parts = [texts[20 + number :: 5] for number in range(5)]
    (folder / "a.parquet").write_bytes(parquet(parts[0]))
    (folder / "b.jsonl").write_bytes(jsonl(parts[1]))
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(jsonl(parts[2])))
    with pa.CompressedOutputStream(str(folder / "d.jsonl.zst"), "zstd") as stream:
        stream.write(jsonl(parts[3]))
    for number, text in enumerate(parts[4]):
        (folder / f"e-{number}.txt").write_text(text, encoding="utf-8", newline="")
    (folder / "validation.parquet").write_bytes(parquet(texts[:20]))
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks, portions and chunks so small that a megabyte has many of each."""
    monkeypatch.setattr(read, "BLOCK_BYTES", 10_000)
    monkeypatch.setattr(write, "PORTION_BYTES", 60_000)
    monkeypatch.setattr(write, "SHUFFLED_CHARACTERS", 80_000)


@pytest.fixture
def text_dir(tmp_path: Path, texts: list[str]) -> Path:
    """The texts in all formats."""
    return write_folder(tmp_path / "my text", texts)


@pytest.fixture
def ask(tmp_path: Path, text_dir: Path, stdlib_path: Path) -> Preparation:
    """A preparation of all formats in the folder, with StdlibText's tokenizer."""
    return Preparation(
        tmp_path / "data" / "mine", text_dir=text_dir, files="*", tokenizer=str(stdlib_path), num_workers=2
    )


def of(files: dict[str, bytes], ask: Preparation) -> Preparation:
    """The preparation of a folder of other files."""
    folder = ask.text_dir.with_name("other text")
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return replace(ask, text_dir=folder)


def ids_of(ask: Preparation, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """The texts' token ids, by the library that the tokenizer is of."""
    tokenizer = Tokenizer.from_file(f"{ask.tokenizer}/tokenizer.json")
    return [tuple(encoding.ids) for encoding in tokenizer.encode_batch(texts)]


def contents(folder: Path) -> dict[str, bytes]:
    """Path -> bytes of every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def stored_documents(folder: Path, split: str) -> list[tuple[int, ...]]:
    """The documents of a split as token ids, in their order, without the end-of-text tokens."""
    data = PreparedText(folder)
    tokens = data.tokens(split)[:]
    *documents, rest = np.split(tokens, np.flatnonzero(tokens == data.index.eos_id) + 1)
    assert not len(rest), "the last document has no end"
    return [tuple(document[:-1].tolist()) for document in documents]


@pytest.fixture
def hub(texts: list[str], stdlib_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with a small dataset in SlimPajama-6B's layout and a tokenizer as sparse as GPT-2's, and an empty cache."""
    files = {f"data/train-{n:05d}-of-00003-0123456789abcdef.parquet": parquet(texts[50 + n :: 3]) for n in range(3)}
    files["data/validation-00000-of-00001-0123456789abcdef.parquet"] = parquet(texts[:25])
    files["data/test-00000-of-00001-0123456789abcdef.parquet"] = parquet(texts[25:50])
    files["README.md"] = b"# SlimPajama"
    tokenizer = {"tokenizer.json": (stdlib_path / "tokenizer.json").read_bytes(),
                 "tokenizer_config.json": b'{"model_max_length": 1024}',
                 "generation_config.json": b'{"eos_token_id": 0}'}  # fmt: skip
    dataset = Repository(files, request.SLIMPAJAMA_6B_COMMIT)
    served = Hub({request.SLIMPAJAMA_6B: dataset}, {request.TOKENIZER: Repository(tokenizer)})
    with serve(served):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", served.url)
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        yield served


def quiet(line: str) -> None:
    """Says nothing."""


def here(tasks: Iterable[Task], ended: Callable[[str, Any], None], at_most: float = float("inf")) -> None:
    """Carry out tasks in this process; Ctrl-C comes after ``at_most``."""
    for number, task in enumerate(tasks):
        if number >= at_most:
            raise KeyboardInterrupt
        ended(task.name, task.work())


def prepare(ask: Preparation, thorough: bool = False, say: Callable[[str], object] = quiet) -> PreparedIndex:
    """A preparation that starts no processes."""
    return preparing.prepare(ask, thorough, say, here)


def stop_after(num_portions: int, ask: Preparation) -> Path:
    """Do a part of a preparation; gives its folder."""
    with pytest.raises(KeyboardInterrupt):
        preparing.prepare(ask, say=quiet, carry_out=partial(here, at_most=num_portions))
    return ask.data_path.with_name(f".{ask.data_path.name}.partial")
