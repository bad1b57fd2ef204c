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

import errno
import gc
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from litgpt_warmstart.data.preparing import hub
from litgpt_warmstart.data.preparing.encode import encoder_of
from litgpt_warmstart.data.preparing.index import PREPARED, Chunk, Plan, PreparedIndex, SourceFile
from litgpt_warmstart.data.preparing.read import SPLITS, text_bytes
from litgpt_warmstart.data.preparing.request import (
    PLAN,
    Preparation,
    begun_plan,
    check_prepared,
    described,
    new_plan,
)
from litgpt_warmstart.data.preparing.write import (
    EncoderDiffers,
    Portion,
    PortionResult,
    combined_digest,
    encode_portion,
    finished_portion,
    portions_of,
    shuffle_documents,
    write_index,
)
from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.executors import Task, carry_out_in_processes
from litgpt_warmstart.files import LOCK, file_sha256, flush_to_disk, locked

VAL_TOKENS = 20_000
"""Where fewer tokens than these are held out, and the user has not said which share to take, more are."""
MOST_VAL_FRACTION = 0.08
"""But never a larger share."""
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
        # The collector would look again and again through all that was imported, and in forked processes copy it.
        gc.freeze()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder, f"another process is preparing {str(asked.data_path)!r}: wait for it"):
                if not (target / PREPARED).is_file() and _prepare_into(target, folder, asked, say, carry_out):
                    return PreparedIndex.load(target)
        except KeyboardInterrupt:
            if folder.exists():
                say(f"The same command goes on; what is done is in {str(folder)!r}")
            raise
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            remedy = "free space" if full else "mend that"
            other = "" if full else ", or choose another --data_path"
            raise UserError(
                f"{str(error.filename or folder)!r}: {error.strerror or one_line(error)}; {remedy} and give the same"
                f" command to go on{other}"
            ) from error
        finally:
            gc.unfreeze()
    index = PreparedIndex.load(target)
    check_prepared(index, asked, thorough)
    return index


def _prepare_into(target: Path, folder: Path, asked: Preparation, say: Say, carry_out: CarryOut | None) -> bool:
    """Fill the partial folder, unless that is done, and give it its name; tells whether it was filled now."""
    to_fill = not (folder / PREPARED).is_file()
    if to_fill:
        try:
            _fill(folder, asked, say, carry_out)
        except BaseException:
            if not any((folder / "portions").glob("*.json")):  # there is nothing to go on with
                shutil.rmtree(folder, ignore_errors=True)
            raise
    shutil.rmtree(folder / "portions", ignore_errors=True)
    for split, chunks in PreparedIndex.load(folder).chunks.items():
        for path in (folder / split).glob("*.bin"):
            if path.name not in {chunk.name for chunk in chunks}:
                path.unlink()
    for name in (PLAN, LOCK):
        (folder / name).unlink(missing_ok=True)
    if target.exists():
        target.rmdir()
    folder.rename(target)
    flush_to_disk(target.parent)
    return to_fill


def _fill(folder: Path, asked: Preparation, say: Say, carry_out: CarryOut | None) -> None:
    """Do what is left to do in the partial folder, and write its index."""
    plan = begun_plan(folder, asked)
    doing = "Going on preparing" if plan else "Preparing"
    if plan is None:
        plan = new_plan(folder, asked, say)
    elif asked.encoder not in (None, plan.encoder):
        plan = _begin_anew(folder, replace(plan, encoder=asked.encoder))
    say(f"{doing} {plan.source.name!r} in {str(asked.data_path)!r}: {described(plan)}")
    while True:
        try:
            results = _encode_all(folder, plan, asked, carry_out)
        except EncoderDiffers as error:
            differs = f"tiktoken does not give the tokenizer's ids on {str(error)!r}"
            if asked.encoder:
                raise UserError(f"{differs}: leave --encoder out") from None
            say(f"{differs}: beginning anew with tokenizers")
            plan = _begin_anew(folder, replace(plan, encoder="tokenizers"))
            continue
        chunks = {split: [chunk for result in results for chunk in result.chunks.get(split, ())] for split in SPLITS}
        fraction = plan.source.val_fraction
        held_out = sum(chunk.tokens for chunk in chunks["val"])
        if fraction is None or asked.val_fraction or held_out >= VAL_TOKENS or fraction >= MOST_VAL_FRACTION:
            break
        fraction = min(2 * fraction, MOST_VAL_FRACTION)
        say(f"{held_out:,} tokens are held out, too few to validate: beginning anew with val_fraction {fraction:g}")
        plan = _begin_anew(folder, replace(plan, source=replace(plan.source, val_fraction=fraction)))
    _write_index(folder, plan, results, {split: found for split, found in chunks.items() if found})


def _write_index(folder: Path, plan: Plan, results: list[PortionResult], chunks: dict[str, list[Chunk]]) -> None:
    documents = {split: sum(result.documents.get(split, 0) for result in results) for split in chunks}
    if not {"train", "val"} <= chunks.keys():
        shutil.rmtree(folder / "portions")
        raise UserError(_why_empty("val" if "train" in chunks else "train", plan, sum(documents.values())))
    if len(chunks["val"]) > 1 and sum(chunk.tokens for chunk in chunks["val"]) <= MOST_SHUFFLED_TOKENS:
        # A run validates on the first blocks, which would be of the first files.
        chunks = chunks | {"val": [shuffle_documents(folder / "val", chunks["val"], plan)]}
    for split, found in chunks.items():
        write_index(folder / split, found, np.dtype(plan.dtype))
    files = {file.name: replace(file, rows=0) for file in plan.files}
    for result in results:
        for name, rows in result.rows.items():
            files[name] = replace(files[name], rows=(files[name].rows or 0) + rows, sha256=result.sha256[name])
    for path in folder.iterdir():
        flush_to_disk(path)
    content: dict[str, Any] = vars(plan) | {"files": tuple(files.values()), "documents": documents}
    content["chunks"] = {split: tuple(found) for split, found in chunks.items()}
    PreparedIndex(**content, fingerprint=combined_digest(chunks["train"])).save(folder / PREPARED)


def _why_empty(split: str, plan: Plan, num_documents: int) -> str:
    name, fraction = plan.source.name, plan.source.val_fraction
    if split == "train":
        return f"the training files of {name!r} are empty: give it documents"
    if fraction is None:
        return f"the {split} split of {name!r} has no text: give it documents"
    return (
        f"{name!r} has no validation split, and val_fraction {fraction:g} of its {num_documents:,} documents held out"
        " none: raise val_fraction, or add a file named validation"
    )


def _encode_all(folder: Path, plan: Plan, asked: Preparation, carry_out: CarryOut | None) -> list[PortionResult]:
    """Have all portions encoded that are not, and give the results in order."""
    portions = list(portions_of(plan.files))
    (folder / "portions").mkdir(exist_ok=True)
    if carry_out is None:
        encoder_of(folder, plan.tokenizer_sha256, plan.encoder)  # before processes are forked, which then have it
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(asked.num_workers or cores, len(portions))
        carry_out = partial(carry_out_in_processes, workers)
    results: dict[str, PortionResult] = {}
    sizes = {file.name: text_bytes(file) for file in plan.files}
    with _progress(sum(sizes.values()), plan.source.repo_id or Path(plan.source.name).name) as bar:
        counts = {"documents": 0, "tokens": 0}

        def ended(name: str, result: PortionResult) -> None:
            results[name] = result
            counts["documents"] += sum(result.documents.values())
            counts["tokens"] += sum(chunk.tokens for chunks in result.chunks.values() for chunk in chunks)
            bar.set_postfix_str(", ".join(f"{count:,} {what}" for what, count in counts.items()), refresh=False)
            bar.update(sum(sizes[part.name] // part.count for part in portion_of[name].parts))

        portion_of = {portion.result_name: portion for portion in portions}
        carry_out(_tasks(folder, plan, portions, ended), ended)
    return [results[portion.result_name] for portion in portions]


def _tasks(
    folder: Path, plan: Plan, portions: list[Portion], ended: Callable[[str, PortionResult], None]
) -> Iterator[Task]:
    """A task for each portion that is left, once its files are here; ``ended`` is told of the others."""
    stop = threading.Event()

    def go_on(num_bytes: int = 0) -> None:
        if stop.is_set():
            raise InterruptedError

    def fetch(file: SourceFile) -> tuple[Path, str]:
        go_on()
        source, path = plan.source, Path(plan.source.text_dir or "") / file.name
        if source.repo_id and source.commit:
            path = hub.download(source.repo_id, file.name, source.commit, go_on)
        elif not path.is_file():
            raise UserError(f"{str(path)!r} is gone: bring it back")
        try:
            return path, file_sha256(path)
        except OSError as error:
            raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from error

    with ThreadPoolExecutor(DOWNLOADS) as pool:
        try:
            fetched = {file.name: pool.submit(fetch, file) for file in plan.files}
            told = {file.name: file.sha256 for file in plan.files}
            for portion in portions:
                files = {part.name: fetched[part.name].result() for part in portion.parts}
                result = finished_portion(folder, portion)
                for name, (path, sha256) in files.items():
                    expected = told[name] or (result.sha256[name] if result else sha256)
                    if sha256 != expected:
                        raise UserError(
                            f"{str(path)!r} has sha256 {sha256[:12]}…, not {expected[:12]}…: it was changed or damaged;"
                            " restore it or, in the Hub's cache, remove it"
                        )
                if result:
                    ended(portion.result_name, result)
                else:
                    work = partial(encode_portion, folder, replace(plan, files=()), portion, files)
                    yield Task(portion.result_name, work)
        finally:
            stop.set()


def _progress(total_bytes: int, name: str) -> tqdm:
    """A bar on a terminal, a line now and then elsewhere."""
    shared = {"total": total_bytes, "unit": "B", "unit_scale": True, "desc": name, "dynamic_ncols": True}
    if sys.stderr.isatty():
        return tqdm(**shared)
    line = "{desc}: {n_fmt}B of {total_fmt}B | {rate_fmt} | {remaining} left{postfix}\n"
    seconds = SECONDS_BETWEEN_LINES
    return tqdm(**shared, bar_format=line, delay=seconds, mininterval=seconds, miniters=1, leave=False)


def _begin_anew(folder: Path, plan: Plan) -> Plan:
    """Drop what was done by another plan, and keep this one. Killed in between, the other one begins anew."""
    shutil.rmtree(folder / "portions", ignore_errors=True)
    for split in SPLITS:
        shutil.rmtree(folder / split, ignore_errors=True)
    plan.save(folder / PLAN)
    return plan
