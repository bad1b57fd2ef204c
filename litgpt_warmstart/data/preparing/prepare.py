"""From text to a folder of tokens: :func:`prepare`.

All of it happens in a hidden folder beside ``data_path``, which is renamed at the end:

.NAME.partial/
  plan.json          source, files, settings: a preparation that goes on must have the same
  tokenizer files
  portions/          what each task that is done has read and written
  train/ val/ test/  chunks
  prepared.json      written last

The bytes are the same for any number of workers.
"""

import math
import os
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from litgpt_warmstart.data.preparing import hub, request, write
from litgpt_warmstart.data.preparing.encode import encoder_of
from litgpt_warmstart.data.preparing.read import SPLITS, SourceFile, text_bytes
from litgpt_warmstart.data.preparing.request import PLAN, PREPARED, Chunk, Plan, Preparation, PreparedIndex
from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.executors import Task, carry_out_in_processes
from litgpt_warmstart.files import LOCK, file_sha256, flush_to_disk, locked, removed_if_empty

VAL_TOKENS = 20_000
"""Where fewer tokens than these are held out, and the user has not said which share to take, more are."""
MOST_VAL_FRACTION = 0.08
"""But never a larger share, unless it holds out none of few documents: one is held out then, and instead of all."""
MOST_SHUFFLED_TOKENS = 2**29
"""Of a validation split, in memory; a longer one stays in the order of its files."""
DOWNLOADS = 4
"""Files that are fetched and hashed at once."""
SECONDS_BETWEEN_LINES = 10.0
"""Of progress, where there is no terminal."""

Say = Callable[[str], object]
CarryOut = Callable[[Iterable[Task], Callable[[str, Any], None]], object]
"""Does tasks, some at once, and calls with the name and the result of each."""


def prepare(
    asked: Preparation, thorough: bool = False, say: Say = print, carry_out: CarryOut | None = None
) -> PreparedIndex:
    """Prepare a folder of tokens, go on preparing it, or check that what is there is what is asked for.

    Args:
        asked: What, and where.
        thorough: Whether to compare prepared data with its source by content and with the Hub, too.
        say: Prints a line.
        carry_out: Does the tasks. Default: processes of this machine, as many as ``asked`` says.
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
            with removed_if_empty(folder.parent):
                folder.mkdir(parents=True, exist_ok=True)
                with locked(folder, f"another process is preparing {str(asked.data_path)!r}: wait for it"):
                    if not (target / PREPARED).is_file():
                        _prepare_into(target, folder, asked, say, carry_out)
                        thorough = False
        except KeyboardInterrupt:
            if folder.exists():
                say(f"The same command goes on; what is done is in {str(folder)!r}")
            raise
        except OSError as error:
            raise UserError(
                f"{str(error.filename or folder)!r}: {error.strerror or one_line(error)}; free space, mend that or"
                " choose another --data_path, and give the same command to go on"
            ) from error
    index = PreparedIndex.read(target / PREPARED)
    request.check_prepared(index, asked, thorough)
    return index


def _prepare_into(target: Path, folder: Path, asked: Preparation, say: Say, carry_out: CarryOut | None) -> None:
    """Fill the partial folder, unless that is done, and give it its name."""
    if not (folder / PREPARED).is_file():
        try:
            _fill(folder, asked, say, carry_out)
        except BaseException:
            if not any((folder / "portions").glob("*.json")):  # there is nothing to go on with
                shutil.rmtree(folder, ignore_errors=True)
            raise
    shutil.rmtree(folder / "portions", ignore_errors=True)
    for path in set(folder.glob("*/*.bin")) - PreparedIndex.read(folder / PREPARED).chunk_files(folder).keys():
        path.unlink()
    for name in (PLAN, LOCK):
        (folder / name).unlink(missing_ok=True)
    if target.exists():
        target.rmdir()
    folder.rename(target)
    flush_to_disk(target.parent)


def _fill(folder: Path, asked: Preparation, say: Say, carry_out: CarryOut | None) -> None:
    """Do what is left to do in the partial folder, and write its index."""
    if not (folder / PLAN).is_file():
        doing, plan = "Preparing", request.new_plan(folder, asked, say)
    else:
        doing, plan = "Going on preparing", Plan.read(folder / PLAN)
        if different := request.differences(asked, plan):
            raise UserError(
                f"the preparation begun in {str(folder)!r} is of {different}: go back to that, or remove the folder to"
                " begin anew"
            )
        if asked.encoder not in (None, plan.encoder):
            plan = _begin_anew(folder, replace(plan, encoder=asked.encoder))
    counts = Counter(file.split for file in plan.files)
    say(
        f"{doing} {plan.source.name!r} in {str(asked.data_path)!r}: files:"
        f" {', '.join(f'{split} {counts[split]:,}' for split in SPLITS if split in counts)}; vocabulary"
        f" {plan.vocab_size:,}, encoding with {plan.encoder}"
    )
    while True:
        try:
            results = _encode_all(folder, plan, asked, carry_out)
        except write.EncoderDiffers as error:
            differs = f"tiktoken does not give the tokenizer's ids on {str(error)!r}"
            if asked.encoder:
                raise UserError(f"{differs}: leave --encoder out") from None
            say(f"{differs}: beginning anew with tokenizers")
            plan = _begin_anew(folder, replace(plan, encoder="tokenizers"))
            continue
        chunks = {split: [chunk for result in results for chunk in result.chunks.get(split, ())] for split in SPLITS}
        fraction = plan.source.val_fraction
        held_out = sum(chunk.tokens for chunk in chunks["val"])
        least = min(result.shares[0] for result in results)
        greatest = max(result.shares[1] for result in results)
        one = math.nextafter(least, 1)
        if (
            fraction is None or asked.val_fraction or fraction in (one, MOST_VAL_FRACTION)
            or least >= greatest  # there is no other document
            or (held_out >= VAL_TOKENS and chunks["train"])
        ):  # fmt: skip
            break
        fraction = min(2 * fraction, MOST_VAL_FRACTION)
        if least >= MOST_VAL_FRACTION or fraction > greatest:
            fraction = one
        say(f"{held_out:,} tokens are held out, too few to validate: beginning anew with val_fraction {fraction:g}")
        plan = _begin_anew(folder, replace(plan, source=replace(plan.source, val_fraction=fraction)))
    for split in ("train", "val"):
        if not chunks[split]:
            shutil.rmtree(folder / "portions")
            more = f", a {'larger' if split == 'val' else 'smaller'} val_fraction" * bool(asked.val_fraction)
            more += " or a file named validation" * bool(fraction)
            raise UserError(f"the {split} split of {plan.source.name!r} has no text: give it documents{more}")
    _write_index(folder, plan, results, {split: found for split, found in chunks.items() if found})


def _write_index(folder: Path, plan: Plan, results: list[write.PortionResult], chunks: dict[str, list[Chunk]]) -> None:
    if len(chunks["val"]) > 1 and sum(chunk.tokens for chunk in chunks["val"]) <= MOST_SHUFFLED_TOKENS:
        # A run validates on the first blocks, which would be of the first files.
        chunks = chunks | {"val": [write.shuffle_documents(folder / "val", chunks["val"], plan)]}
    for split, those in chunks.items():
        write.write_index(folder / split, those, np.dtype(plan.dtype))
    rows, sha256 = Counter(), dict[str, str]()
    for result in results:
        rows.update(result.rows)
        if changed := [name for name, found in result.sha256.items() if sha256.setdefault(name, found) != found]:
            raise UserError(f"{changed[0]!r} has changed while it was prepared: remove {str(folder)!r} to begin anew")
    for path in folder.iterdir():
        flush_to_disk(path)
    found: dict[str, Any] = dict(
        files=tuple(replace(file, rows=rows[file.name], sha256=sha256[file.name]) for file in plan.files),
        fingerprint=write.combined_digest(chunks["train"]),
        documents={split: sum(result.documents.get(split, 0) for result in results) for split in chunks},
        chunks={split: tuple(those) for split, those in chunks.items()},
    )
    PreparedIndex(**vars(plan) | found).save(folder / PREPARED)


def _encode_all(folder: Path, plan: Plan, asked: Preparation, carry_out: CarryOut | None) -> list[write.PortionResult]:
    """Have all portions encoded that are not, and give the results in order."""
    portions = {portion.result_name: portion for portion in write.portions_of(plan.files)}
    (folder / "portions").mkdir(exist_ok=True)
    if carry_out is None:
        encoder_of(folder, plan.tokenizer_sha256, plan.encoder)  # before processes are forked, which then have it
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        carry_out = partial(carry_out_in_processes, min(asked.num_workers or cores, len(portions)))
    results: dict[str, write.PortionResult] = {}
    sizes = {file.name: text_bytes(file) for file in plan.files}
    counts = Counter(documents=0, tokens=0)
    with _progress(sum(sizes.values()), plan.source.repo_id or Path(plan.source.name).name) as bar:

        def ended(name: str, result: write.PortionResult) -> None:
            results[name] = result
            counts["documents"] += sum(result.documents.values())
            counts["tokens"] += sum(chunk.tokens for chunks in result.chunks.values() for chunk in chunks)
            bar.set_postfix_str(", ".join(f"{count:,} {what}" for what, count in counts.items()), refresh=False)
            bar.update(sum(sizes[part.name] // part.count for part in portions[name].parts))

        for name, portion in portions.items():
            if result := write.finished_portion(folder, portion):
                ended(name, result)
        if left := [portion for name, portion in portions.items() if name not in results]:
            carry_out(_tasks(folder, plan, left), ended)  # which may connect to a cluster first
    return [results[name] for name in portions]


def _tasks(folder: Path, plan: Plan, portions: Iterable[write.Portion]) -> Iterator[Task]:
    """A task for each portion, once its files are here."""
    stop, source = threading.Event(), plan.source

    def fetch(file: SourceFile) -> tuple[Path, str]:
        if source.repo_id and source.commit:
            path = hub.download(source.repo_id, file.name, source.commit, stop)
        else:
            path = Path(source.text_dir or "") / file.name
        try:
            sha256 = file_sha256(path)
        except OSError as error:
            raise UserError(f"cannot read {str(path)!r}: {error.strerror}: bring it back") from error
        if file.sha256 not in (None, sha256):
            raise UserError(f"{str(path)!r} is not as the Hub has it: remove it from the Hub's cache")
        return path, sha256

    needed = {part.name for portion in portions for part in portion.parts}
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        try:
            fetched = {file.name: pool.submit(fetch, file) for file in plan.files if file.name in needed}
            for portion in portions:
                files = {part.name: fetched[part.name].result() for part in portion.parts}
                work = partial(write.encode_portion, folder, replace(plan, files=()), portion, files)
                yield Task(portion.result_name, work)
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _progress(total_bytes: int, name: str) -> tqdm:
    """A bar on a terminal, a line now and then elsewhere."""
    line = "{desc}: {n_fmt}B of {total_fmt}B | {rate_fmt} | {remaining} left{postfix}\n"
    seconds = SECONDS_BETWEEN_LINES
    lines = dict(bar_format=line, delay=seconds, mininterval=seconds, miniters=1, leave=False)
    settings: dict[str, Any] = {} if sys.stderr.isatty() else lines
    return tqdm(total=total_bytes, unit="B", unit_scale=True, desc=name, dynamic_ncols=True, **settings)


def _begin_anew(folder: Path, plan: Plan) -> Plan:
    """Drop what was done by another plan, and keep this one. Killed in between, the other one begins anew."""
    for name in ("portions", *SPLITS):
        shutil.rmtree(folder / name, ignore_errors=True)
    plan.save(folder / PLAN)
    return plan
