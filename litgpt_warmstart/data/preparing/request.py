"""What is asked for, what is decided before the first file is read, and prepared.json: what came of it.

data/mine/
  prepared.json          a PreparedIndex: source, tokenizer, and each chunk's name, tokens and sha256
  tokenizer.json, tokenizer_config.json
  train/ val/ (test/)    litdata's index.json and its chunks, one item each: 12 bytes of header, then the tokens

The chunks of a split, in the order in which they stand in ``chunks``, are one stream of tokens. Within a chunk
documents are shuffled, and the validation split is one chunk; those of the training split follow the order of the
source's files, so who trains reads blocks in a permuted order.
"""

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from litgpt_warmstart.data.blocks import HEADER_BYTES
from litgpt_warmstart.data.checking import ChunkCheck
from litgpt_warmstart.data.preparing import hub, read
from litgpt_warmstart.data.preparing.encode import EncoderName, encoder_of
from litgpt_warmstart.data.preparing.read import SourceFile, Split  # Python 3.14 takes `read.Split` for the method's
from litgpt_warmstart.errors import UserError, check_above_zero, one_line
from litgpt_warmstart.files import file_sha256, write_whole
from litgpt_warmstart.parsing import FileName, Sha256, Unreadable, parse

SLIMPAJAMA_6B = "DKYoon/SlimPajama-6B"
SLIMPAJAMA_6B_COMMIT = "b5f90f419b7489cdba26fdbc8c022fcb5562f968"
TOKENIZER = "openai-community/gpt2"
COLUMN = "text"
VAL_FRACTION = 0.01
SEED = 42
LEAST_PIECE_BYTES = 64
BYTES_PER_TOKEN = 3.5
"""Text of a token, for estimates of disk space: low for English, high for code."""
PLAN = "plan.json"
PREPARED = "prepared.json"
FORMAT_VERSION = 2
DtypeName = Literal["uint16", "int32"]


@dataclass(kw_only=True)
class TextSource:
    """Which text, and how it becomes tokens. None stands for the default, or for whatever is prepared already."""

    repo_id: str | None = None
    """Dataset repository on the Hub, with parquet or jsonl files."""
    revision: str | None = None
    """Its branch, tag or commit. Default: main as it is when the preparation begins."""
    text_dir: Path | None = None
    """A folder of .parquet, .jsonl or .txt files (.gz and .zst of the latter two too), instead of ``repo_id``. Paths
    that name train, validation or test decide the split."""
    files: str | None = None
    """Only files whose path in the repository or folder matches this pattern, e.g. ``en/*.json.gz``. Default: those of
    one format, parquet before jsonl before json before txt."""
    column: str | None = None
    """Column or key that holds the text. Default: text."""
    val_fraction: float | None = None
    """Share of the training documents to hold out, chosen by their text alone, where no file is named validation.
    Default: 0.01, or as much more as a short text needs."""
    piece_bytes: int | None = None
    """Cut .txt files at line ends into documents of about this size, which are shuffled. Small ones mix a batch of few
    short sequences; large ones keep what belongs together. Default: 65536."""
    tokenizer: str | None = None
    """Hub repository or folder of the tokenizer, with a tokenizer.json. Default: openai-community/gpt2, or what the
    data was prepared with."""
    seed: int | None = None
    """Of the documents' order. Default: 42."""


@dataclass
class Preparation(TextSource):
    """What is asked for."""

    data_path: Path
    dtype: DtypeName | None = None
    encoder: EncoderName | None = None
    num_workers: int | None = None

    def check(self) -> None:
        """Raise a UserError for what no preparation can be."""
        if self.repo_id and self.text_dir:
            raise UserError("repo_id and text_dir exclude each other: choose one")
        if self.revision and not self.repo_id:
            raise UserError("revision is for repo_id: leave it out, or give both")
        if self.text_dir and self.text_dir.resolve() in (self.data_path.resolve(), *self.data_path.resolve().parents):
            raise UserError(f"data_path {str(self.data_path)!r} lies within text_dir: choose another")
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise UserError(f"val_fraction must lie between 0 and 1, got {self.val_fraction}")
        if self.piece_bytes is not None and self.piece_bytes < LEAST_PIECE_BYTES:
            raise UserError(f"piece_bytes must be at least {LEAST_PIECE_BYTES}, got {self.piece_bytes}")
        check_above_zero(dict(num_workers=self.num_workers))


@dataclass(frozen=True)
class Source:
    """Where the text came from; as :class:`TextSource` asks for it, and what was decided."""

    repo_id: str | None
    revision: str | None
    commit: str | None
    """The one that ``revision`` stood for."""
    text_dir: str | None
    files: str | None
    column: str
    val_fraction: float | None
    """None where the source has a validation split."""
    piece_bytes: int | None = None

    @property
    def name(self) -> str:
        """The repository or folder, for messages."""
        return self.repo_id or self.text_dir or ""


@dataclass(frozen=True)
class Chunk:
    """A file of tokens."""

    name: FileName
    """Within the folder of its split."""
    tokens: int
    sha256: Sha256
    """Of the whole file."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was decided before the first file was read; plan.json while a preparation goes on."""

    format_version: int = FORMAT_VERSION
    source: Source
    files: tuple[SourceFile, ...]
    tokenizer: str
    """Name or folder of the tokenizer."""
    tokenizer_sha256: str
    """Of its tokenizer.json and its end-of-text token."""
    encoder: EncoderName
    """The library that encodes; the ids are the tokenizer's either way."""
    vocab_size: int
    eos_id: int
    dtype: DtypeName
    seed: int
    """Of the order of documents within a chunk."""

    def save(self, path: Path) -> None:
        """Write it into a file, whole or not at all."""
        content = asdict(self)
        write_whole(path, json.dumps(content | {"sha256": _digest(content)}, indent=1))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read it from a file; a UserError where it cannot be read, is damaged or of another format version."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version, digest = content["format_version"], content.pop("sha256", None)
            if version == 1:
                raise UserError(_how_to_prepare_again(path.parent, content))
            if version > FORMAT_VERSION:
                raise UserError(
                    f"{str(path)!r} has format version {version}, this litgpt-warmstart reads up to {FORMAT_VERSION}:"
                    " upgrade it"
                )
            if digest != _digest(content):
                raise ValueError("it is not as it was written")
            return parse(cls, content)
        except OSError as error:  # which says nothing of what is in it
            raise UserError(f"{str(path)!r} cannot be read ({error.strerror}): check path and permissions") from error
        except (Unreadable, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{str(path)!r} is damaged ({one_line(error, 80)}): remove its folder, and prepare the data again"
            ) from error


@dataclass(frozen=True, kw_only=True)
class PreparedIndex(Plan):
    """What a folder of prepared tokens says of itself."""

    fingerprint: Sha256
    """sha256 over the training chunks' sha256: identity of the training tokens."""
    documents: dict[str, int]
    chunks: dict[Split, tuple[Chunk, ...]]
    """The chunks of each split, in order."""

    @property
    def tokens(self) -> dict[str, int]:
        """Stored tokens by split."""
        return {split: sum(chunk.tokens for chunk in chunks) for split, chunks in self.chunks.items()}

    def chunk_files(self, folder: Path) -> dict[Path, Chunk]:
        """Path -> chunk, of all splits."""
        return {folder / split / chunk.name: chunk for split, chunks in self.chunks.items() for chunk in chunks}


def _how_to_prepare_again(folder: Path, content: dict[str, Any]) -> str:
    """What to tell of data in the first landing's format: other chunks, in another order."""
    asked = {field.name for field in fields(Source)} - {"commit"}  # no other name is one of the command's options
    options = {name: value for name, value in content["source"].items() if name in asked}
    options |= {"tokenizer": content["tokenizer"], "seed": content["seed"], "data_path": f"{folder}-2"}
    if options.get("column") == COLUMN:  # which .txt files refuse
        options["column"] = None
    words = (word for name, value in options.items() if value is not None for word in (f"--{name}", str(value)))
    command = shlex.join(["litgpt", "warmstart_prepare_data", *words])
    return (
        f"{str(folder)!r} was prepared by litgpt-warmstart 0.1, in another format; runs on it can be grown from,"
        f" exported and reported, not resumed: prepare it again with {command}"
    )


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def default_data_path(repo_id: str | None, text_dir: Path | None) -> Path:
    """data/ and the name of the repository or folder; a UserError where neither is given."""
    if name := repo_id or (text_dir and str(text_dir.resolve())):
        return Path("data") / Path(name).name.lower()
    raise UserError("data_path is missing: give the folder of prepared data, or repo_id or text_dir to prepare it")


def source_files(
    source: TextSource | Source, say: Callable[[str], object] = lambda line: None
) -> tuple[str | None, tuple[SourceFile, ...]]:
    """A source's commit, where it is on the Hub, and its files as they are now."""
    if source.repo_id:
        commit, found = hub.dataset_files(source.repo_id, source.revision or "main")
        return commit, read.chosen_files(found, source.files, f"dataset {source.repo_id!r}", say)
    return None, read.folder_files(Path(source.text_dir or ""), source.files, say)


def new_plan(folder: Path, asked: Preparation, say: Callable[[str], object]) -> Plan:
    """Decide everything, and write the tokenizer's files and the plan into the folder."""
    if not asked.repo_id and not asked.text_dir:
        raise UserError(f"nothing is prepared in {str(asked.data_path)!r}: give repo_id or text_dir to prepare it")
    commit, files = source_files(asked, say)
    formats = {read.format_of(file.name) for file in files}
    if asked.column and formats == {".txt"}:
        raise UserError(f"column {asked.column!r} has no meaning for .txt files: leave it out")
    if asked.piece_bytes and formats != {".txt"}:
        raise UserError("piece_bytes is for .txt files, other formats say themselves what a document is: leave it out")
    tokenizer = asked.tokenizer or TOKENIZER
    contents = hub.tokenizer_files(tokenizer)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    tokenizer_sha256 = hub.tokenizer_digest(contents)
    encoder = encoder_of(folder, tokenizer_sha256, asked.encoder)
    dtype = token_dtype(encoder.vocab_size, asked.dtype)
    needed = np.dtype(dtype).itemsize * sum(map(read.text_bytes, files)) / BYTES_PER_TOKEN
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"the tokens take about {needed / 1e9:.1f} GB of the disk of {str(asked.data_path)!r}, which has"
            f" {free / 1e9:.1f} GB free: free space, or choose another --data_path"
        )
    if encoder.why_not_tiktoken and asked.encoder is None:
        say(f"Encoding with tokenizers, several times slower than tiktoken would be: {encoder.why_not_tiktoken}")
    has_val = any(file.split == "val" for file in files)
    plan = Plan(
        source=Source(
            repo_id=asked.repo_id,
            revision=(asked.revision or "main") if asked.repo_id else None,
            commit=commit,
            text_dir=str(asked.text_dir.resolve()) if asked.text_dir else None,
            files=asked.files,
            column=asked.column or COLUMN,
            val_fraction=None if has_val else asked.val_fraction or VAL_FRACTION,
            piece_bytes=asked.piece_bytes,
        ),
        files=files,
        tokenizer=tokenizer,
        tokenizer_sha256=tokenizer_sha256,
        encoder=encoder.name,
        vocab_size=encoder.vocab_size,
        eos_id=encoder.tokenizer.token_to_id(json.loads(contents["tokenizer_config.json"])["eos_token"]),
        dtype=dtype,
        seed=SEED if asked.seed is None else asked.seed,
    )
    plan.save(folder / PLAN)
    return plan


def token_dtype(vocab_size: int, asked: DtypeName | None = None) -> DtypeName:
    """The type asked for, else the smallest that TokensLoader knows; a UserError where it cannot hold every id."""
    chosen: DtypeName = asked or ("uint16" if vocab_size <= 2**16 else "int32")
    if vocab_size - 1 > np.iinfo(chosen).max:
        raise UserError(f"the tokenizer has {vocab_size:,} tokens, more than {chosen} holds: leave --dtype out")
    return chosen


def differences(asked: Preparation, plan: Plan, since: float = 0.0, thorough: bool = False) -> str:
    """What is asked for otherwise than it was prepared, or begun, in words, else what has changed; empty where nothing.

    Of a source's folder, files that changed ``since`` are compared by their content; a thorough look is at the content
    of all, and at the Hub.
    """
    before = vars(plan) | vars(plan.source) | {"piece_bytes": plan.source.piece_bytes or read.PIECE_BYTES}
    now = {name: value for name, value in vars(asked).items() if name in before and value is not None}
    now.pop("encoder", None)  # another one gives the same
    if asked.text_dir:
        now["text_dir"] = str(asked.text_dir.resolve())
    if len(asked.revision or "") >= 7 and (plan.source.commit or "").startswith(asked.revision or ""):
        del now["revision"]
    if plan.source.val_fraction is None:
        now.pop("val_fraction", None)
    if asked.tokenizer and (os.path.isdir(asked.tokenizer) or asked.tokenizer != plan.tokenizer):
        del now["tokenizer"]
        if hub.tokenizer_digest(hub.tokenizer_files(asked.tokenizer)) != plan.tokenizer_sha256:
            return f"the tokenizer {plan.tokenizer!r} as it was, not {asked.tokenizer!r} as it is now"
    found = [f"{name} {before[name]!r}, not {value!r}" for name, value in now.items() if value != before[name]]
    return "; ".join(found) or changed_source(plan, since, thorough)


def changed_source(plan: Plan, since: float, thorough: bool) -> str:
    """The first file, by name, that the source has otherwise than it was read, in words; empty where none is known."""
    source, folder = plan.source, Path(plan.source.text_dir or "")
    if not (folder.is_dir() if source.text_dir else thorough and source.revision != source.commit):
        return ""
    try:
        _, files = source_files(source)
    except UserError:  # the Hub cannot be reached, or all files are gone
        return ""
    before, now = ({file.name: file for file in found} for found in (plan.files, files))
    for name in sorted(before.keys() | now.keys()):
        was, new = before.get(name), now.get(name)
        if was and new and was.num_bytes == new.num_bytes:
            sha256, path = new.sha256, folder / name
            if source.text_dir and was.sha256 and (thorough or path.stat().st_mtime > since):
                sha256 = file_sha256(path)
            if sha256 in (None, was.sha256) or was.sha256 is None:
                continue
        return f"{source.name!r} before {name!r} changed"
    return ""


def check_prepared(index: PreparedIndex, asked: Preparation, thorough: bool) -> None:
    """Raise a UserError where prepared data is damaged, is not what is asked for, or its source has changed since."""
    chunks = index.chunk_files(asked.data_path)
    for path, chunk in chunks.items():
        if not path.is_file() or path.stat().st_size != HEADER_BYTES + chunk.tokens * np.dtype(index.dtype).itemsize:
            raise UserError(f"{str(path)!r} is missing or cut off: prepare the data again in another folder")
    if thorough:
        sha256 = {path: chunk.sha256 for path, chunk in chunks.items()}
        check = ChunkCheck(sha256, index.fingerprint, trusting=False)
        check.begin()
        check.raise_if_bad(wait=True)
    since = (asked.data_path / PREPARED).stat().st_mtime
    if different := differences(asked, index, since, thorough):
        raise UserError(
            f"{str(asked.data_path)!r} was prepared from {different}: choose another --data_path, or remove"
            " the folder to prepare it anew"
        )
