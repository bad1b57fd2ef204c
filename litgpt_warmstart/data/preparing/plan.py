"""The plan of a preparation: what is decided before the first file is read."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from litgpt_warmstart.data.preparing import hub
from litgpt_warmstart.data.preparing.encode import DocumentEncoder
from litgpt_warmstart.data.preparing.index import DtypeName, Plan, Source, SourceFile
from litgpt_warmstart.data.preparing.portions import keep_encoder
from litgpt_warmstart.data.preparing.read import SPLITS, chosen_files, folder_files, format_of, text_bytes
from litgpt_warmstart.data.preparing.request import COLUMN, TOKENIZER, Preparation, changed_files, changes
from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.parsing import Unreadable

VAL_FRACTION = 0.01
SEED = 42
BYTES_PER_TOKEN = 3.5
"""Text of a token, for estimates of disk space: low for English, high for code."""
PLAN = "plan.json"


def begun_plan(folder: Path, asked: Preparation) -> Plan | None:
    """The plan of a preparation that was begun in a folder; None without one.

    Raises:
        UserError: It is damaged, something else is asked for now, or the source has changed; says what.
    """
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
    """Decide everything; the tokenizer's files and the plan are written into the folder.

    Raises:
        UserError: Nothing to prepare, no room for it, or it cannot be had.
    """
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
    encoder = DocumentEncoder(folder, asked.encoder)
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
        tokenizer_sha256=hub.tokenizer_digest(contents),
        encoder=encoder.name,
        vocab_size=encoder.vocab_size,
        eos_id=encoder.tokenizer.token_to_id(json.loads(contents["tokenizer_config.json"])["eos_token"]),
        dtype=dtype,
        seed=SEED if asked.seed is None else asked.seed,
    )
    plan.save(folder / PLAN)
    keep_encoder(folder, plan, encoder)
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
    """The type asked for, else the smallest that TokensLoader knows and that holds every id.

    Raises:
        UserError: The one asked for is too small.
    """
    chosen: DtypeName = asked or ("uint16" if vocab_size <= 2**16 else "int32")
    if vocab_size - 1 > np.iinfo(chosen).max:
        raise UserError(f"the tokenizer has {vocab_size:,} tokens, more than {chosen} holds: leave --dtype out")
    return chosen


def check_space(asked: Preparation, files: Iterable[SourceFile], commit: str | None, token_bytes: int) -> None:
    """Raise a UserError where the disk has too little room for downloads and tokens, by estimate."""
    folder = asked.data_path.parent
    needs = [(folder, sum(map(text_bytes, files)) / BYTES_PER_TOKEN * token_bytes)]
    if asked.repo_id and commit:
        missing = [file.num_bytes for file in files if not hub.is_cached(asked.repo_id, file.name, commit)]
        needs.append((hub.cache_dir(), sum(missing)))
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
