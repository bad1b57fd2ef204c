"""What is asked for, what is decided before the first file is read, and how what is there differs from it."""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from huggingface_hub import constants, try_to_load_from_cache

from litgpt_warmstart.data.preparing import hub
from litgpt_warmstart.data.preparing.encode import encoder_of
from litgpt_warmstart.data.preparing.index import (
    PREPARED,
    DtypeName,
    EncoderName,
    Plan,
    PreparedIndex,
    Source,
    SourceFile,
)
from litgpt_warmstart.data.preparing.read import (
    PIECE_BYTES,
    SPLITS,
    chosen_files,
    folder_files,
    format_of,
    text_bytes,
)
from litgpt_warmstart.data.tokens import HEADER_BYTES
from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.files import file_sha256
from litgpt_warmstart.parsing import Unreadable

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
    Default: 0.01."""
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
        if self.num_workers is not None and self.num_workers < 1:
            raise UserError(f"num_workers must be above 0, got {self.num_workers}")


def default_data_path(repo_id: str | None, text_dir: Path | None) -> Path:
    """data/ and the name of the repository or folder; a UserError where neither is given."""
    if name := repo_id or (text_dir and str(text_dir.resolve())):
        return Path("data") / Path(name).name.lower()
    raise UserError("data_path is missing: give the folder of prepared data, or repo_id or text_dir to prepare it")


def begun_plan(folder: Path, asked: Preparation) -> Plan | None:
    """The plan begun in a folder, if any; a UserError where it is damaged or something else is asked for now."""
    path = folder / PLAN
    if not path.is_file():
        return None
    try:
        plan = Plan.read(path)
    except Unreadable as error:
        raise UserError(f"{str(path)!r} is damaged ({one_line(error, 80)}): remove its folder to begin anew") from error
    if different := changes(asked, plan) or changed_files(plan, 0.0, thorough=False):
        raise UserError(
            f"the preparation begun in {str(folder)!r} is of {'; '.join(different)}: go back to that, or remove the"
            " folder to begin anew"
        )
    return plan


def new_plan(folder: Path, asked: Preparation, say: Callable[[str], object]) -> Plan:
    """Decide everything, and write the tokenizer's files and the plan into the folder."""
    commit = revision = None
    if asked.repo_id:
        revision = asked.revision or "main"
        commit, found = hub.dataset_files(asked.repo_id, revision)
        files = chosen_files(found, asked.files, f"dataset {asked.repo_id!r}", say)
    elif asked.text_dir:
        files = folder_files(asked.text_dir, asked.files, say)
    else:
        raise UserError(f"nothing is prepared in {str(asked.data_path)!r}: give repo_id or text_dir to prepare it")
    formats = {format_of(file.name) for file in files}
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
    check_space(asked, files, commit, np.dtype(dtype).itemsize)
    if encoder.why_not_tiktoken and asked.encoder is None:
        say(f"Encoding with tokenizers, several times slower than tiktoken would be: {encoder.why_not_tiktoken}")
    has_val = any(file.split == "val" for file in files)
    plan = Plan(
        source=Source(
            repo_id=asked.repo_id,
            revision=revision,
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


def described(plan: Plan) -> str:
    """Files by format and split, and what is held out, in words."""
    formats = ", ".join(sorted({format_of(file.name) or "" for file in plan.files}))
    splits = [file.split for file in plan.files]
    counts = ", ".join(f"{split} {splits.count(split):,}" for split in SPLITS if split in splits)
    fraction = plan.source.val_fraction
    held_out = f", {fraction:.0%} of the documents (more of a short text) held out for validation" if fraction else ""
    return f"{formats} files: {counts}{held_out}; vocabulary {plan.vocab_size:,}, encoding with {plan.encoder}"


def token_dtype(vocab_size: int, asked: DtypeName | None = None) -> DtypeName:
    """The type asked for, else the smallest that TokensLoader knows; a UserError where it cannot hold every id."""
    chosen: DtypeName = asked or ("uint16" if vocab_size <= 2**16 else "int32")
    if vocab_size - 1 > np.iinfo(chosen).max:
        raise UserError(f"the tokenizer has {vocab_size:,} tokens, more than {chosen} holds: leave --dtype out")
    return chosen


def check_space(asked: Preparation, files: Iterable[SourceFile], commit: str | None, token_bytes: int) -> None:
    """Raise a UserError where the disk has too little room for downloads and tokens, by estimate."""
    needs = [(asked.data_path.parent, sum(map(text_bytes, files)) / BYTES_PER_TOKEN * token_bytes)]
    if asked.repo_id and commit:
        where = dict(repo_type="dataset", revision=commit)
        cached = [isinstance(try_to_load_from_cache(asked.repo_id, file.name, **where), str) for file in files]
        missing = sum(file.num_bytes for file, found in zip(files, cached, strict=True) if not found)
        needs.append((Path(constants.HF_HUB_CACHE), missing))
    needed: dict[int, float] = {}
    for path, num_bytes in needs:
        path = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        disk = path.stat().st_dev
        needed[disk] = needed.get(disk, 0.0) + num_bytes
        free = shutil.disk_usage(path).free
        if needed[disk] > free:
            raise UserError(
                f"preparing takes about {needed[disk] / 1e9:.1f} GB on the disk of {str(path)!r}, which has"
                f" {free / 1e9:.1f} GB free: free space, or choose another --data_path or HF_HOME"
            )


def changes(asked: Preparation, plan: Plan) -> list[str]:
    """What is asked for otherwise than it was prepared, or begun, in words; empty where nothing is."""
    source = plan.source
    if asked.repo_id and asked.repo_id != source.repo_id:
        return [f"{source.name!r}, not {asked.repo_id!r}"]
    if asked.text_dir and (not source.text_dir or asked.text_dir.resolve() != Path(source.text_dir).resolve()):
        return [f"{source.name!r}, not {str(asked.text_dir)!r}"]
    found = []
    if asked.repo_id and asked.revision and asked.revision != source.revision:
        first_digits = len(asked.revision) >= 7 and (source.commit or "").startswith(asked.revision)
        if not first_digits:
            found.append(f"revision {source.revision!r} (commit {source.commit}), not {asked.revision!r}")
    before = {name: getattr(source, name) for name in ("files", "column", "val_fraction", "piece_bytes")}
    before |= {"piece_bytes": source.piece_bytes or PIECE_BYTES, "seed": plan.seed, "dtype": plan.dtype}
    for name, value in before.items():
        now = getattr(asked, name)
        if now not in (None, value) and not (name == "val_fraction" and value is None):
            found.append(f"{name} {value!r}, not {now!r}")
    if asked.tokenizer and (os.path.isdir(asked.tokenizer) or asked.tokenizer != plan.tokenizer):
        found += _tokenizer_changes(asked.tokenizer, plan)
    return found


def _tokenizer_changes(tokenizer: str, plan: Plan) -> list[str]:
    same = hub.tokenizer_digest(hub.tokenizer_files(tokenizer)) == plan.tokenizer_sha256
    return [] if same else [f"the tokenizer {plan.tokenizer!r} as it was, not {tokenizer!r} as it is now"]


def changed_files(plan: Plan, since: float, thorough: bool) -> list[str]:
    """How the source folder, where it still exists, differs from what was read of it; at most one difference.

    Files that changed ``since`` are hashed, or all; others are trusted where their size is the same.
    """
    folder = Path(plan.source.text_dir or "")
    if not plan.source.text_dir or not folder.is_dir():
        return []
    now = {file.name: file for file in folder_files(folder, plan.source.files)}
    for file in plan.files:
        if file.name not in now:
            return [f"{file.name!r}, which is gone"]
        path = folder / file.name
        same = now.pop(file.name).num_bytes == file.num_bytes
        if same and file.sha256 and (thorough or path.stat().st_mtime > since):
            same = file_sha256(path) == file.sha256
        if not same:
            return [f"{file.name!r} as it was before it changed"]
    return [f"{plan.source.text_dir!r} before {name!r} came" for name in list(now)[:1]]


def check_prepared(index: PreparedIndex, asked: Preparation, thorough: bool) -> None:
    """Raise a UserError where prepared data is not what is asked for, or its source has changed since.

    A thorough look is at the Hub, too, and at the content of all files.
    """
    check_chunks(asked.data_path, index, thorough)
    since = (asked.data_path / PREPARED).stat().st_mtime
    different = changes(asked, index) or changed_files(index, since, thorough)
    if not different and thorough:
        different = _moved(index)
    if different:
        raise UserError(
            f"{str(asked.data_path)!r} was prepared from {'; '.join(different)}: choose another --data_path, or remove"
            " the folder to prepare it anew"
        )


def check_chunks(folder: Path, index: PreparedIndex, thorough: bool) -> None:
    """Raise a UserError where a chunk is missing or cut off or, looking thoroughly, has another content."""
    item_bytes = 2 if index.dtype == "uint16" else 4
    chunks = {folder / split / chunk.name: chunk for split, found in index.chunks.items() for chunk in found}
    for path, chunk in chunks.items():
        if not path.is_file() or path.stat().st_size != HEADER_BYTES + chunk.tokens * item_bytes:
            raise UserError(f"{str(path)!r} is missing or cut off: prepare the data again in another folder")
    if thorough:
        with ThreadPoolExecutor() as pool:
            for (path, chunk), sha256 in zip(chunks.items(), pool.map(file_sha256, chunks), strict=True):
                if sha256 != chunk.sha256:
                    raise UserError(f"{str(path)!r} is damaged: remove its folder's parent and prepare it again")


def _moved(index: PreparedIndex) -> list[str]:
    """How the Hub differs from what was prepared; nothing where it cannot be reached."""
    source = index.source
    try:
        found = [] if os.path.isdir(index.tokenizer) else _tokenizer_changes(index.tokenizer, index)
        if found or not source.repo_id or not source.revision or source.revision == source.commit:
            return found
        commit, files = hub.dataset_files(source.repo_id, source.revision)
        files = chosen_files(files, source.files, source.name, lambda line: None)
    except UserError:
        return []
    known = {file.name: file.sha256 for file in index.files}
    now, before = ({(f.name, f.num_bytes, f.sha256 or known.get(f.name)) for f in fs} for fs in (files, index.files))
    if now == before:
        return []
    return [f"commit {source.commit} of {source.revision!r}, which is now {commit} with other files"]
