"""What a preparation is of: what was asked for, what was decided, and where the two differ."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from litgpt_warmstart.data.preparing import hub
from litgpt_warmstart.data.preparing.chunks import TokenStream, chunk_name
from litgpt_warmstart.data.preparing.encoding import DocumentEncoder, EncoderName
from litgpt_warmstart.data.preparing.prepared_index import FORMAT_VERSION, PREPARED, PreparedIndex, Source
from litgpt_warmstart.data.preparing.sources import (
    PIECE_BYTES,
    SPLITS,
    SourceFile,
    documents,
    folder_source,
    format_of,
    hub_source,
    parts_of,
)
from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.files import file_sha256, write_whole

SLIMPAJAMA_6B = "DKYoon/SlimPajama-6B"
SLIMPAJAMA_6B_COMMIT = "b5f90f419b7489cdba26fdbc8c022fcb5562f968"
TOKENIZER = "openai-community/gpt2"
COLUMN = "text"
LEAST_PIECE_BYTES = 64
VAL_FRACTION = 0.01
SEED = 42
PLAN = "plan.json"
BYTES_PER_TOKEN = 3.5
"""Text of a token, for estimates of disk space: low for English, high for code."""
SAMPLE_CHARACTERS = 2**18
"""Text on which tiktoken is compared with ``tokenizers`` before it is chosen."""

DtypeName = Literal["uint16", "int32"]


@dataclass(frozen=True)
class Preparation:
    """What is asked for. None stands for the default, or for whatever is prepared already."""

    data_path: Path
    repo_id: str | None = None
    revision: str | None = None
    text_dir: Path | None = None
    files: str | None = None
    column: str | None = None
    val_fraction: float | None = None
    piece_bytes: int | None = None
    tokenizer: str | None = None
    seed: int | None = None
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
        if self.seed is not None and self.seed < 0:
            raise UserError(f"seed must not be negative, got {self.seed}")


@dataclass(frozen=True)
class Plan:
    """What was decided; plan.json while the preparation goes on."""

    source: Source
    files: tuple[SourceFile, ...]
    tokenizer: str
    tokenizer_sha256: str
    encoder: EncoderName
    vocab_size: int
    eos_id: int
    dtype: DtypeName
    seed: int
    format_version: int = FORMAT_VERSION

    def describe(self) -> str:
        """Files by format and split, and what is held out, in words."""
        formats = ", ".join(sorted({format_of(file.name) for file in self.files}))
        splits = [file.split for file in self.files]
        counts = ", ".join(f"{split} {splits.count(split):,}" for split in SPLITS if split in splits)
        fraction = self.source.val_fraction
        held_out = (
            f", {fraction:.0%} of the documents (more of a short text) held out for validation" if fraction else ""
        )
        return f"{formats} files: {counts}{held_out}; vocabulary {self.vocab_size:,}, encoding with {self.encoder}"

    def save(self, folder: Path) -> None:
        """Write it into a folder, whole or not at all."""
        write_whole(folder / PLAN, json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, folder: Path) -> "Plan":
        """Read it from a folder; raise a UserError where it is damaged."""
        try:
            content = json.loads((folder / PLAN).read_text(encoding="utf-8"))
            if content["format_version"] != FORMAT_VERSION:
                raise UserError(
                    f"{str(folder / PLAN)!r} is of format version {content['format_version']}, this litgpt-warmstart"
                    f" writes {FORMAT_VERSION}: go on with the version that began it, or remove its folder"
                )
            content["source"] = Source(**content["source"])
            content["files"] = tuple(SourceFile(**file) for file in content["files"])
            return cls(**content)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{str(folder / PLAN)!r} is damaged ({one_line(error, 80)}): remove its folder to begin anew"
            ) from error


def default_data_path(repo_id: str | None, text_dir: Path | None) -> Path:
    """data/ and the name of the repository or folder.

    Raises:
        UserError: Neither is given.
    """
    if repo_id is None and text_dir is None:
        raise UserError("data_path is missing: give the folder of prepared data, or repo_id or text_dir to prepare it")
    name = repo_id.rpartition("/")[2] if repo_id else text_dir.resolve().name
    return Path("data") / name.lower()


def new_plan(folder: Path, asked: Preparation, say: Callable[[str], None]) -> tuple[Plan, DocumentEncoder]:
    """Decide everything; the tokenizer's files and the plan are written into the folder.

    Returns:
        The plan, and the encoder that it names.

    Raises:
        UserError: Nothing to prepare, no room for it, or it cannot be had.
    """
    if not asked.repo_id and not asked.text_dir:
        raise UserError(f"nothing is prepared in {str(asked.data_path)!r}: give repo_id or text_dir to prepare it")
    commit = revision = None
    if asked.repo_id:
        revision = asked.revision or "main"
        commit, files = hub_source(asked.repo_id, revision, asked.files, say)
    else:
        files = folder_source(asked.text_dir, asked.files, say)
    if asked.column and all(format_of(file.name) == ".txt" for file in files):
        raise UserError(f"column {asked.column!r} has no meaning for .txt files: leave it out")
    if asked.piece_bytes and any(format_of(file.name) != ".txt" for file in files):
        raise UserError("piece_bytes is for .txt files, other formats say themselves what a document is: leave it out")
    tokenizer = asked.tokenizer or TOKENIZER
    contents = hub.tokenizer_files(tokenizer)
    for name, content in contents.items():
        (folder / name).write_bytes(content)

    has_val = any(file.split == "val" for file in files)
    source = Source(
        repo_id=asked.repo_id,
        revision=revision,
        commit=commit,
        text_dir=str(asked.text_dir.resolve()) if asked.text_dir else None,
        files=asked.files,
        column=asked.column or COLUMN,
        val_fraction=None if has_val else asked.val_fraction or VAL_FRACTION,
        piece_bytes=asked.piece_bytes,
    )
    encoder = DocumentEncoder(folder, asked.encoder)
    dtype = token_dtype(encoder.vocab_size, asked.dtype)
    check_space(asked, files, commit, np.dtype(dtype).itemsize)
    if encoder.name == "tiktoken":
        encoder.choose(_sample(source, files))
    if encoder.why_not_tiktoken and asked.encoder is None:
        say(f"Encoding with tokenizers, several times slower than tiktoken would be: {encoder.why_not_tiktoken}")
    plan = Plan(
        source=source,
        files=files,
        tokenizer=tokenizer,
        tokenizer_sha256=hub.tokenizer_digest(contents),
        encoder=encoder.name,
        vocab_size=encoder.vocab_size,
        eos_id=encoder.id_of(json.loads(contents["tokenizer_config.json"])["eos_token"]),
        dtype=dtype,
        seed=SEED if asked.seed is None else asked.seed,
    )
    plan.save(folder)
    return plan, encoder


def token_dtype(vocab_size: int, asked: DtypeName | None = None) -> DtypeName:
    """The type asked for, else the smallest that TokensLoader knows and that holds every id.

    Raises:
        UserError: The one asked for is too small.
    """
    chosen = asked or ("uint16" if vocab_size <= 2**16 else "int32")
    if vocab_size - 1 > np.iinfo(chosen).max:
        raise UserError(f"the tokenizer has {vocab_size:,} tokens, more than {chosen} holds: leave --dtype out")
    return chosen


def path_of(file: SourceFile, source: Source, received: Callable[[int], None] = lambda num_bytes: None) -> Path:
    """Where a file is on this machine; downloaded if need be, and ``received`` told of each piece.

    Raises:
        UserError: It cannot be had.
    """
    if source.repo_id:
        return hub.download(source.repo_id, file.name, source.commit, received)
    path = Path(source.text_dir) / file.name
    if not path.is_file():
        raise UserError(f"{str(path)!r} is gone: bring it back")
    return path


def check_space(asked: Preparation, files: Sequence[SourceFile], commit: str | None, token_bytes: int) -> None:
    """Raise a UserError where the disk has too little room for downloads, first pass and tokens, by estimate."""
    folder = asked.data_path.parent
    tokens = sum(file.estimated_text_bytes for file in files) / BYTES_PER_TOKEN
    needs = [(folder, 2 * token_bytes * tokens)]  # both passes' results
    if commit:
        missing = sum(f.num_bytes for f in files if not hub.is_cached(asked.repo_id, f.name, commit))
        needs.append((hub.cache_dir(), missing))
    disks: dict[int, tuple[Path, float]] = {}
    for path, need in needs:
        path = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        disk = path.stat().st_dev
        disks[disk] = (disks.get(disk, (path, 0.0))[0], disks.get(disk, (path, 0.0))[1] + need)
    for path, need in disks.values():
        free = shutil.disk_usage(path).free
        if need > free:
            raise UserError(
                f"preparing takes about {need / 1e9:.1f} GB on the disk of {str(path)!r}, which has {free / 1e9:.1f} GB"
                " free: free space, or choose another --data_path or HF_HOME"
            )


def _sample(source: Source, files: Sequence[SourceFile]) -> list[str]:
    """The first documents of the first training file."""
    for file in files:
        if file.split == "train" and file.num_bytes:
            path = path_of(file, source)
            if parts := parts_of(path, file.name, source.column):
                break
    else:
        raise UserError(f"the training files of {source.repo_id or source.text_dir!r} are empty")
    part, found, characters = parts[0][0], [], 0
    for texts in documents(path, file.name, part, source.column, source.piece_bytes):
        for text in texts:
            found.append((text or "")[:SAMPLE_CHARACTERS])
            characters += len(found[-1])
            if characters >= SAMPLE_CHARACTERS:
                return found
    return found


def changes(asked: Preparation, prepared: Plan | PreparedIndex) -> list[str]:
    """What is asked for otherwise than it was prepared, or begun, in words; empty where nothing is."""
    source = prepared.source
    was = source.repo_id or source.text_dir
    if asked.repo_id and asked.repo_id != source.repo_id:
        return [f"{was!r}, not {asked.repo_id!r}"]
    if asked.text_dir and (not source.text_dir or asked.text_dir.resolve() != Path(source.text_dir).resolve()):
        return [f"{was!r}, not {str(asked.text_dir)!r}"]
    found = []
    if asked.repo_id and asked.revision not in (None, source.revision) and not _names(asked.revision, source.commit):
        found.append(f"revision {source.revision!r} (commit {source.commit}), not {asked.revision!r}")
    for name in ("files", "column", "val_fraction", "piece_bytes"):
        before, now = getattr(source, name), getattr(asked, name)
        if name == "piece_bytes":
            before = before or PIECE_BYTES
        if now is not None and now != before and not (name == "val_fraction" and before is None):
            found.append(f"{name} {before!r}, not {now!r}")
    for name in ("seed", "dtype"):
        before, now = getattr(prepared, name), getattr(asked, name)
        if now is not None and now != before:
            found.append(f"{name} {before!r}, not {now!r}")
    local = asked.tokenizer is not None and os.path.isdir(asked.tokenizer)
    if asked.tokenizer is not None and (local or asked.tokenizer != prepared.tokenizer):
        found += _tokenizer_changes(asked.tokenizer, prepared)
    return found


def _tokenizer_changes(tokenizer: str, prepared: Plan | PreparedIndex) -> list[str]:
    if hub.tokenizer_digest(hub.tokenizer_files(tokenizer)) == prepared.tokenizer_sha256:
        return []
    return [f"the tokenizer {prepared.tokenizer!r} as it was, not {tokenizer!r} as it is now"]


def _names(revision: str, commit: str) -> bool:
    """Whether a revision is a commit, or its first digits."""
    return len(revision) >= 7 and commit.startswith(revision)


def changed_files(prepared: Plan | PreparedIndex, since: float, thorough: bool) -> list[str]:
    """How the source folder, where it still exists, differs from what was read of it; at most one difference.

    Args:
        prepared: What was read.
        since: Files changed after this time are hashed; others are trusted where their size is the same.
        thorough: Whether to hash all.
    """
    source = prepared.source
    if not source.text_dir or not Path(source.text_dir).is_dir():
        return []
    now = {file.name: file for file in folder_source(Path(source.text_dir), source.files)}
    for file in prepared.files:
        if file.name not in now:
            return [f"{file.name!r}, which is gone"]
        path = Path(source.text_dir) / file.name
        same = now.pop(file.name).num_bytes == file.num_bytes
        if same and file.sha256 and (thorough or path.stat().st_mtime > since):
            same = file_sha256(path) == file.sha256
        if not same:
            return [f"{file.name!r} as it was before it changed"]
    return [f"{source.text_dir!r} before {name!r} came" for name in islice(now, 1)]


def begun_plan(folder: Path, asked: Preparation) -> Plan | None:
    """The plan of a preparation that was begun in a folder; None without one.

    Raises:
        UserError: Something else is asked for now, or the source has changed; says what.
    """
    if not (folder / PLAN).is_file():
        return None
    plan = Plan.load(folder)
    different = changes(asked, plan) or changed_files(plan, 0.0, thorough=False)
    if different:
        raise UserError(
            f"the preparation begun in {str(folder)!r} is of {'; '.join(different)}: go back to that, or remove the"
            " folder to begin anew"
        )
    return plan


def check_prepared(index: PreparedIndex, asked: Preparation, thorough: bool) -> None:
    """Raise a UserError where prepared data is not what is asked for, or its source has changed since.

    Args:
        index: What is prepared.
        asked: What is asked for.
        thorough: Whether to look at the Hub, and to hash all files of a folder.
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
    for split, digests in index.chunks_sha256.items():
        TokenStream(folder / split, np.dtype(index.dtype)).check()
        paths = [folder / split / chunk_name(number) for number in range(len(digests))]
        if thorough:
            with ThreadPoolExecutor() as pool:
                for path, now, then in zip(paths, pool.map(file_sha256, paths), digests, strict=True):
                    if now != then:
                        raise UserError(f"{str(path)!r} is damaged: remove its folder's parent and prepare it again")


def _moved(index: PreparedIndex) -> list[str]:
    """How the Hub differs from what was prepared; nothing where it cannot be reached."""
    source, found = index.source, []
    try:
        if not os.path.isdir(index.tokenizer):
            found = _tokenizer_changes(index.tokenizer, index)
        if found or source.repo_id is None or source.revision == source.commit:
            return found
        commit, files = hub_source(source.repo_id, source.revision, source.files)
    except UserError:
        return []
    known = {file.name: file.sha256 for file in index.files}
    now = {(file.name, file.num_bytes, file.sha256 or known.get(file.name)) for file in files}
    if now == {(file.name, file.num_bytes, file.sha256) for file in index.files}:
        return []
    return [f"commit {source.commit} of {source.revision!r}, which is now {commit} with other files"]
