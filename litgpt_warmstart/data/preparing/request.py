"""What is asked for, and how what is there differs from it."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from litgpt_warmstart.data.preparing import hub
from litgpt_warmstart.data.preparing.index import PREPARED, DtypeName, EncoderName, Plan, PreparedIndex, SourceFile
from litgpt_warmstart.data.preparing.read import PIECE_BYTES, chosen_files, folder_files
from litgpt_warmstart.data.tokens import HEADER_BYTES
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import file_sha256

SLIMPAJAMA_6B = "DKYoon/SlimPajama-6B"
SLIMPAJAMA_6B_COMMIT = "b5f90f419b7489cdba26fdbc8c022fcb5562f968"
TOKENIZER = "openai-community/gpt2"
COLUMN = "text"
LEAST_PIECE_BYTES = 64


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


def default_data_path(repo_id: str | None, text_dir: Path | None) -> Path:
    """data/ and the name of the repository or folder.

    Raises:
        UserError: Neither is given.
    """
    if repo_id:
        return Path("data") / repo_id.rpartition("/")[2].lower()
    if text_dir:
        return Path("data") / text_dir.resolve().name.lower()
    raise UserError("data_path is missing: give the folder of prepared data, or repo_id or text_dir to prepare it")


def changes(asked: Preparation, plan: Plan) -> list[str]:
    """What is asked for otherwise than it was prepared, or begun, in words; empty where nothing is."""
    source = plan.source
    if asked.repo_id and asked.repo_id != source.repo_id:
        return [f"{source.name!r}, not {asked.repo_id!r}"]
    if asked.text_dir and (not source.text_dir or asked.text_dir.resolve() != Path(source.text_dir).resolve()):
        return [f"{source.name!r}, not {str(asked.text_dir)!r}"]
    found = []
    if (
        asked.repo_id
        and asked.revision not in (None, source.revision)
        and not _is_commit(asked.revision, source.commit)
    ):
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


def _is_commit(revision: str | None, commit: str | None) -> bool:
    """Whether a revision is a commit, or its first digits."""
    return revision is not None and commit is not None and len(revision) >= 7 and commit.startswith(revision)


def _tokenizer_changes(tokenizer: str, plan: Plan) -> list[str]:
    if hub.tokenizer_digest(hub.tokenizer_files(tokenizer)) == plan.tokenizer_sha256:
        return []
    return [f"the tokenizer {plan.tokenizer!r} as it was, not {tokenizer!r} as it is now"]


def changed_files(plan: Plan, since: float, thorough: bool) -> list[str]:
    """How the source folder, where it still exists, differs from what was read of it; at most one difference.

    Args:
        plan: What was read.
        since: Files changed after this time are hashed; others are trusted where their size is the same.
        thorough: Whether to hash all.
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

    def content(file: SourceFile) -> tuple[str, int, str | None]:
        return file.name, file.num_bytes, file.sha256 or known.get(file.name)

    if {content(file) for file in files} == {content(file) for file in index.files}:
        return []
    return [f"commit {source.commit} of {source.revision!r}, which is now {commit} with other files"]
