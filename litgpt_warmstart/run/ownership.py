"""What in a run's folder is the run's, so that nothing of a user's is replaced or removed.

A run names what it writes, other than checkpoint folders, in out_dir/.run.json. Runs of the first landing have none:
there a file is a run's if it begins as theirs do.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import older_folder, others, partial_folder, remove_folder, write_whole
from litgpt_warmstart.parsing import parse
from litgpt_warmstart.run import norms
from litgpt_warmstart.run.checkpoint import FILES, RECORD, STATE, WEIGHTS, step_folders
from litgpt_warmstart.run.metrics import FILE_NAME, HEADERS
from litgpt_warmstart.run.record import Record

MANIFEST = ".run.json"
OUTCOME = "outcome.json"
NAMES = (FILE_NAME, norms.FILE_NAME, OUTCOME)
"""Files that a run, or the study that carried it out, writes beside its checkpoint folders."""
LOGS = "logs"
_LOG_FOLDER = re.compile(r"logs/(csv|tensorboard)/version_[0-9]+")
_LOG_FILE = re.compile(r"events\.out\.tfevents\..*|hparams\.yaml|metrics\.csv")


@dataclass(frozen=True)
class _Manifest:
    """What a run says that it writes: files, and the logger's folders, as paths below out_dir."""

    files: list[str]
    logs: list[str]


def check_free(out_dir: Path) -> None:
    """Raise a UserError where something at a name that a run writes was not written by a run of ours."""
    final = out_dir / "final"
    saved = [path for path in out_dir.glob("step-*") if re.fullmatch(r"step-[0-9]{8,}", path.name)]
    for path in (*saved, final):
        if os.path.lexists(path) and not is_checkpoint(path):
            raise _not_ours(path)
    for name in NAMES:
        check_file(out_dir / name)
    for path in (older_folder(final), partial_folder(final), out_dir / LOGS):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise _not_ours(path)
    if (out_dir / MANIFEST).is_dir():
        raise _not_ours(out_dir / MANIFEST)


def check_file(path: Path) -> None:
    """Raise a UserError where a file beside checkpoint folders was not written by a run of ours."""
    if os.path.lexists(path) and path.name not in _owned_files(path.parent):
        raise _not_ours(path)


def _not_ours(path: Path) -> UserError:
    return UserError(
        f"{str(path)!r} was not written by a run of litgpt-warmstart, and a run would write there: move it, or choose"
        " another --out_dir"
    )


def check_replaceable(folders: Iterable[Path]) -> None:
    """Raise a UserError where a checkpoint folder of ours that would be removed holds something of a user's."""
    for folder in folders:
        if theirs := others(folder, FILES):
            raise UserError(
                f"--overwrite would delete {', '.join(theirs[:3])} in {str(folder)!r}, which is not of a checkpoint:"
                " move it, or choose another --out_dir"
            )


def checkpoints(out_dir: Path) -> list[Path]:
    """The checkpoint folders of a run."""
    return [folder for folder in (*step_folders(out_dir), out_dir / "final") if is_checkpoint(folder)]


def holds_run(out_dir: Path) -> bool:
    """Whether something of a run is there."""
    return bool(checkpoints(out_dir) or _owned_files(out_dir))


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder, and no link, is a trained checkpoint of ours; its record may be damaged."""
    if folder.is_symlink() or not (folder / RECORD).is_file():
        return False
    try:
        return bool(Record.load(folder / RECORD).training)
    except (UserError, OSError):
        return (folder / STATE).is_file() and (folder / WEIGHTS).is_file()


def claim(out_dir: Path, files: Iterable[str], log_dir: str | None) -> None:
    """Write down what a run that begins, or goes on, writes.

    Args:
        out_dir: The run's folder.
        files: Names in it.
        log_dir: Where its logger writes files; elsewhere than under logs/ they are nobody's to remove.
    """
    folders = [*_log_folders(out_dir), *([Path(log_dir)] if log_dir else [])]
    logs = {folder.relative_to(out_dir).as_posix() for folder in folders if folder.is_relative_to(out_dir)}
    before = _manifest(out_dir)
    named = {*files, *(before.files if before else ())}
    manifest = {"files": sorted(named), "logs": sorted(filter(_LOG_FOLDER.fullmatch, logs))}
    write_whole(out_dir / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def remove_run(out_dir: Path) -> None:
    """Delete what an earlier run left in ``out_dir``, and nothing else; the manifest goes last."""
    log_folders, files = _log_folders(out_dir), _owned_files(out_dir)
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


def _manifest(out_dir: Path) -> _Manifest | None:
    """The manifest; None without one, or where something else is at its place."""
    path = out_dir / MANIFEST
    try:
        return None if path.is_symlink() else parse(_Manifest, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, UserError):
        return None


def _owned_files(out_dir: Path) -> list[str]:
    """The files among :data:`NAMES` that are a run's."""
    manifest = _manifest(out_dir)
    named = manifest.files if manifest else []
    there = [name for name in NAMES if os.path.lexists(out_dir / name) and not (out_dir / name).is_dir()]
    return [name for name in there if name in named or _looks_owned(out_dir / name)]


def _looks_owned(path: Path) -> bool:
    """Whether a file says what a run of the first landing wrote under its name."""
    if not path.is_file():
        return False
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.name != OUTCOME:
        headers = HEADERS if path.name == FILE_NAME else (norms.COLUMNS,)
        return text.partition("\n")[0].rstrip("\r") in {",".join(header) for header in headers}
    try:
        content = json.loads(text)
    except ValueError:
        return False
    return isinstance(content, dict) and {"status", "step_count", "settings"} <= content.keys()


def _log_folders(out_dir: Path) -> list[Path]:
    """The logger's folders that are a run's, none of them reached through a link."""
    if manifest := _manifest(out_dir):
        folders = [out_dir / name for name in manifest.logs if _LOG_FOLDER.fullmatch(name)]
    else:
        found = out_dir.glob(f"{LOGS}/*/version_*") if checkpoints(out_dir) else ()
        folders = [path for path in found if _LOG_FOLDER.fullmatch(path.relative_to(out_dir).as_posix())]
    return [f for f in folders if f.is_dir() and f.resolve() == out_dir.resolve() / f.relative_to(out_dir)]
