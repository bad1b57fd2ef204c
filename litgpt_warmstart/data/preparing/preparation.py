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
import os
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from litgpt_warmstart.data.preparing import hub
from litgpt_warmstart.data.preparing.chunks import CHUNK_TOKENS, chunk_name, combined_digest, write_chunk, write_index
from litgpt_warmstart.data.preparing.encoding import DocumentEncoder, EncoderName
from litgpt_warmstart.data.preparing.first_pass import EncodingPass
from litgpt_warmstart.data.preparing.plan import PLAN, Plan, Preparation, begun_plan, check_prepared, new_plan
from litgpt_warmstart.data.preparing.prepared_index import PREPARED, PreparedFile, PreparedIndex
from litgpt_warmstart.data.preparing.segments import EncoderDiffers, Segment, merge
from litgpt_warmstart.data.preparing.sources import SPLITS
from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.files import LOCK, flush_to_disk, locked

VAL_TOKENS = 20_000
"""Where fewer tokens than these are held out, and the user has not said which share to take, more are."""
MOST_VAL_FRACTION = 0.08
"""But never a larger share."""
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
            raise UserError(
                f"{str(asked.data_path)!r} exists and holds no prepared data: choose another data_path, or give it as"
                " text_dir"
            )
        if target.is_mount():
            raise UserError(f"{str(asked.data_path)!r} is a mount point: choose a folder in it as --data_path")
        folder = target.with_name(f".{target.name}.partial")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder, f"another process is preparing {str(asked.data_path)!r}: wait for it"):
                if not (target / PREPARED).is_file() and _prepare_into(target, folder, asked, say):
                    return PreparedIndex.load(target)
        except KeyboardInterrupt:
            if (folder / PLAN).exists():
                say(f"The same command goes on; what is done is in {str(folder)!r}")
            raise
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
    for name in ("segments", *(path.name for path in folder.glob("*.dropped"))):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (PLAN, LOCK):
        (folder / name).unlink(missing_ok=True)
    if target.exists():
        target.rmdir()
    folder.rename(target)
    flush_to_disk(target.parent)
    return to_fill


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
            f" {str(asked.data_path)!r}: {plan.describe()}"
        )
        files, segments, plan = _first_pass(folder, plan, encoder, asked, say)
    documents = {split: sum(segment.num_documents(split) for segment in segments) for split in SPLITS}
    for split in ("train", "val"):
        if documents[split] == 0:
            (folder / PLAN).unlink()  # there is nothing to go on with
            raise UserError(_why_empty(split, plan, sum(documents.values())))
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
        plan = replace(plan, source=replace(plan.source, val_fraction=fraction))
        _begin_anew(folder, plan)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _with_encoder(folder: Path, plan: Plan, encoder: EncoderName) -> tuple[Plan, DocumentEncoder]:
    """The plan with another encoder, and nothing that the one before has done."""
    plan = replace(plan, encoder=encoder)
    _begin_anew(folder, plan)
    return plan, DocumentEncoder(folder, encoder)


def _begin_anew(folder: Path, plan: Plan) -> None:
    """Drop what both passes have done, and keep another plan. Killed between the two, the old one begins anew."""
    for name in ("segments", *SPLITS):
        if (folder / name).exists():
            dropped = folder / f"{name}.dropped"
            shutil.rmtree(dropped, ignore_errors=True)
            (folder / name).rename(dropped)  # at once: half of the segments would be taken for all
    plan.save(folder)
    for dropped in folder.glob("*.dropped"):
        shutil.rmtree(dropped)


def _why_empty(split: str, plan: Plan, num_documents: int) -> str:
    what = plan.source.repo_id or plan.source.text_dir
    if split == "train" or plan.source.val_fraction is None:
        return f"the {split} split of {what!r} has no text: give it documents"
    return (
        f"{what!r} has no validation split, and val_fraction {plan.source.val_fraction:g} of its {num_documents:,}"
        " documents held out none: raise val_fraction, or add a file named validation"
    )


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
    written, digests = write_index(folder, len(ranges), segments[0].dtype)
    if written != num_tokens:  # chunks that another version cut
        raise UserError(f"{str(folder)!r} has {written:,} tokens, not {num_tokens:,}: remove it and go on")
    return written, digests
