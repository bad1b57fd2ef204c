"""A run's folder: what in it is the run's, so that nothing of a user's is replaced or removed, and where it goes on.

out_dir/
  step-00001000/    checkpoint folders (see checkpoint.py), one every save_interval steps
  final/            the last one
  metrics.csv       one row per logged step
  norms.csv         sizes of activations and weights, with --track
  outcome.json      how it ended, where a study carried it out
  logs/             the logger's own files
  .run.json         which of the logger's folders are the run's; runs of the first landing have none
  .lock             keeps a second process out
"""

import json
import math
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.files import older_folder, others, partial_folder, remove_folder, where_it_is, write_whole
from litgpt_warmstart.parsing import parse
from litgpt_warmstart.run import metrics, norms
from litgpt_warmstart.run.checkpoint import DECISIVE, FILES, RECORD, STATE, WEIGHTS, check_files
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.spec import RunSpec

OUTCOME, MANIFEST, LOGS = "outcome.json", ".run.json", "logs"
FORMATS = {metrics.FILE_NAME: metrics.METRICS, norms.FILE_NAME: norms.NORMS}
NAMES = (*FORMATS, OUTCOME)
"""Files that a run, or the study that carried it out, writes beside its checkpoint folders."""
_LOG_FOLDER = re.compile(r"logs/(csv|tensorboard)/version_[0-9]+")
_LOG_FILE = re.compile(r"events\.out\.tfevents\..*|hparams\.yaml|metrics\.csv")


def step_folders(out_dir: Path, digits: int = 1) -> list[Path]:
    """The folders step-<so many digits or more>, by their steps; step-best is a user's own. A run writes 8."""
    pattern = re.compile(rf"step-[0-9]{{{digits},}}")
    numbered = [(int(f.name[5:]), f) for f in out_dir.glob("step-*") if pattern.fullmatch(f.name)]
    return [folder for _, folder in sorted(numbered)]


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder, and no link, is a trained checkpoint of ours; its record may be damaged."""
    if folder.is_symlink() or not (folder / RECORD).is_file():
        return False
    try:
        return bool(Record.load(folder / RECORD).training)
    except (UserError, OSError):
        return (folder / STATE).is_file() and (folder / WEIGHTS).is_file()


def checkpoints(out_dir: Path) -> list[Path]:
    """The checkpoint folders of a run."""
    return [folder for folder in (*step_folders(out_dir), out_dir / "final") if is_checkpoint(folder)]


def trained(out_dir: Path) -> tuple[dict[Path, Record], list[tuple[Path, str]]]:
    """The checkpoints of a run with their records, most steps first, and those whose record cannot be read, with why.

    Those that were only grown are no part of a run. Nothing is moved: final/ may be at :func:`older_folder`.
    """
    found, unread = {}, []
    for folder in (where_it_is(out_dir / "final"), *step_folders(out_dir)):
        try:
            if (folder / RECORD).is_file() and (record := Record.load(folder / RECORD)).training:
                found[folder] = record
        except (UserError, OSError) as error:
            unread.append((folder, one_line(error)))
    return dict(sorted(found.items(), key=lambda item: item[1].step_count, reverse=True)), unread


def newest_checkpoint(out_dir: Path, most_steps: float = math.inf) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The checkpoint of a run with the most optimizer steps that training can go on from; None without one.

    Those with more than ``most_steps`` are not looked at.

    Returns:
        The folder, and those that were passed over, with the reason: their record cannot be read or, of those with more
        steps, a file is missing or has changed since it was saved.
    """
    found, passed_over = trained(out_dir)
    for folder in (folder for folder, record in found.items() if record.step_count <= most_steps):
        try:
            if missing := [name for name in DECISIVE if not (folder / name).is_file()]:
                raise UserError(f"{missing[0]} is missing")
            check_files(folder, found[folder])
            return folder, passed_over
        except (UserError, OSError) as error:
            passed_over.append((folder, one_line(error)))
    return None, passed_over


def find_resume_dir(spec: RunSpec) -> Path | None:
    """The checkpoint folder to go on from, or None to start.

    Raises:
        UserError: ``out_dir`` cannot be written, it holds a run and neither --resume nor --overwrite is given, it holds
            something of a user's where the run would write, or there is nothing to resume.
    """
    check_writable(spec.out_dir)
    resume, out_dir, norms_file = spec.args.resume, repr(str(spec.out_dir)), spec.out_dir / norms.FILE_NAME
    if not resume:
        _check_startable(spec)
        return None
    found, unread = newest_checkpoint(spec.out_dir)
    if spec.args.track and (norms_file.is_symlink() or norms_file.is_dir()):  # what a file holds is kept aside
        raise _not_ours(norms_file)
    folder = found
    if isinstance(resume, Path):
        folder = resume if resume.is_dir() else resume.parent
        if not (folder / STATE).is_file():
            raise UserError(f"--resume {str(resume)!r} has no {STATE}: give a step-*/ folder of a run")
        if found and folder.resolve().parent != spec.out_dir.resolve():
            raise UserError(f"--resume {str(folder)!r} is no part of the run in {out_dir}: change --out_dir")
    elif found is None and unread:
        damaged, reason = unread[-1]
        raise UserError(f"--resume: no checkpoint in {out_dir} can be read, {damaged.name}: {reason}")
    elif found is None and resume is True:
        raise UserError(f"--resume: no checkpoint in {out_dir}: pass --resume auto to start there")
    if found is None:
        check_free(spec.out_dir)
    return folder


def _check_startable(spec: RunSpec) -> None:
    """Raise a UserError where a run that starts anew would write over something, or into what it starts from."""
    out_dir, real = repr(str(spec.out_dir)), spec.out_dir.resolve()
    for needed in filter(None, (spec.start_dir, spec.mup_base_dir)):
        if needed.resolve() in (real, *real.parents):
            raise UserError(f"--out_dir {out_dir} is in {str(needed)!r}, which this run starts from: choose another")
        if spec.args.overwrite and real in needed.resolve().parents:
            raise UserError(
                f"--overwrite would delete {str(needed)!r}, which this run starts from: choose another --out_dir"
            )
    check_free(spec.out_dir)
    saved = checkpoints(spec.out_dir)
    if not spec.args.overwrite and (saved or any(_is_ours(spec.out_dir / name) for name in NAMES)):
        raise UserError(
            f"--out_dir {out_dir} already holds a run: pass --resume auto to go on, --overwrite true to replace it, or"
            " another --out_dir"
        )
    for folder in saved:
        if theirs := others(folder, FILES):
            raise UserError(
                f"--overwrite would delete {', '.join(theirs[:3])} in {str(folder)!r}, which is not of a checkpoint:"
                " move it, or choose another --out_dir"
            )


def check_writable(out_dir: Path) -> None:
    """Raise a UserError, before anything that takes long, for a folder that cannot be made or written into."""
    try:
        existing = next(path for path in (out_dir, *out_dir.absolute().parents) if path.exists())
        writable = existing.is_dir() and os.access(existing, os.W_OK)
    except OSError as error:  # a name that is too long, a folder that may not be searched
        raise UserError(f"cannot write --out_dir {str(out_dir)!r}: {error.strerror}: choose another") from error
    if not writable:
        raise UserError(f"cannot write --out_dir {str(out_dir)!r}: choose another")


def check_free(out_dir: Path) -> None:
    """Raise a UserError where something at a name that a run writes was not written by a run of ours."""
    final = out_dir / "final"
    saved, beside = [*step_folders(out_dir, digits=8), final], [out_dir / name for name in NAMES]
    theirs = [path for path in saved if os.path.lexists(path) and not is_checkpoint(path)]
    theirs += [path for path in beside if os.path.lexists(path) and not _is_ours(path)]
    for path in (older_folder(final), partial_folder(final), out_dir / LOGS):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            theirs.append(path)
    if (out_dir / MANIFEST).is_dir():
        theirs.append(out_dir / MANIFEST)
    if theirs:
        raise _not_ours(theirs[0])


def _is_ours(path: Path) -> bool:
    """Whether a file beside checkpoint folders says what a run of ours writes under its name."""
    if not path.is_file():
        return False
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.name in FORMATS:
        return text.partition("\n")[0].rstrip("\r") in FORMATS[path.name].headers
    with suppress(ValueError, RecursionError):
        content = json.loads(text)
        return isinstance(content, dict) and {"status", "step_count", "settings"} <= content.keys()
    return False


def _not_ours(path: Path) -> UserError:
    return UserError(
        f"{str(path)!r} was not written by a run of litgpt-warmstart, and a run would write there: move it, or choose"
        " another --out_dir"
    )


def claim(out_dir: Path, log_dir: str | None) -> None:
    """Write down where the logger of a run that begins, or goes on, writes; elsewhere its files are nobody's to remove.

    Before ``log_dir`` an earlier part of the run may have had others.
    """
    folders = {*_log_folders(out_dir), *([Path(log_dir)] if log_dir else [])}
    logs = [folder.relative_to(out_dir).as_posix() for folder in folders if folder.is_relative_to(out_dir)]
    write_whole(out_dir / MANIFEST, json.dumps({"logs": sorted(logs)}, indent=1) + "\n")


def _log_folders(out_dir: Path) -> list[Path]:
    """The logger's folders that are a run's, none of them reached through a link."""
    path, named = out_dir / MANIFEST, None
    with suppress(OSError, ValueError, RecursionError, UserError):  # there is none, or something else is at its place
        if not path.is_symlink():
            named = parse(dict[str, list[str]], json.loads(path.read_text(encoding="utf-8"))).get("logs")
    if named is None:
        found = out_dir.glob(f"{LOGS}/*/version_*") if checkpoints(out_dir) else ()
        named = [folder.relative_to(out_dir).as_posix() for folder in found]
    folders = [out_dir / name for name in named if _LOG_FOLDER.fullmatch(name)]
    return [f for f in folders if f.is_dir() and f.resolve() == out_dir.resolve() / f.relative_to(out_dir)]


def remove_run(out_dir: Path) -> None:
    """Delete what an earlier run left in ``out_dir``, and nothing else; the manifest goes last."""
    log_folders, files = _log_folders(out_dir), [name for name in NAMES if _is_ours(out_dir / name)]
    for folder in checkpoints(out_dir):
        remove_folder(folder)
    for folder in log_folders:
        for path in folder.iterdir():
            if _LOG_FILE.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                path.unlink()
        for emptied in (folder, folder.parent, out_dir / LOGS):
            if not any(emptied.iterdir()):
                emptied.rmdir()
    for name in (*files, MANIFEST):
        (out_dir / name).unlink(missing_ok=True)
    remove_left_overs(out_dir, "partial", "removed", "older")


def remove_left_overs(out_dir: Path, *kinds: str) -> None:
    """Delete what a process that was killed while writing or removing checkpoints has left hidden; no link is followed.

    Args:
        out_dir: The run's folder, whose lock is held.
        kinds: ``partial``: half written; ``removed``: half removed; ``older``: what was about to be replaced.
    """
    pattern = re.compile(rf"\.(final|step-[0-9]+)\.({'|'.join(kinds)})")
    for left in out_dir.glob(".*"):
        if pattern.fullmatch(left.name) and left.is_dir() and not left.is_symlink() and not others(left, FILES):
            shutil.rmtree(left, ignore_errors=True)
