"""What the commands share that write one folder, whole."""

from collections.abc import Callable
from pathlib import Path

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import theirs_at
from litgpt_warmstart.run.checkpoint import Header
from litgpt_warmstart.run.folder import check_writable
from litgpt_warmstart.run.missing import missing


def folder_to_write(out_dir: Path | None, foreign: Callable[[Path], list[str]], overwrite: bool) -> Path:
    """``--out_dir``; a UserError where it cannot be written, holds what is ``foreign``, or is not to be replaced."""
    if out_dir is None:
        raise missing("out_dir")
    check_writable(out_dir)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        if theirs := theirs_at(out_dir, foreign):
            raise UserError(
                f"--out_dir {str(out_dir)!r} was not written by this command alone: it holds {', '.join(theirs[:3])};"
                " choose another"
            )
        if not overwrite:
            raise UserError(f"--out_dir {str(out_dir)!r} exists: pass --overwrite true, or another folder")
    return out_dir


def check_apart(out_dir: Path, read: dict[str, Header | None]) -> None:
    """Raise a UserError where a checkpoint that is read, by what it is called, lies in the folder to write."""
    for what, header in read.items():
        if header and out_dir.resolve() in (header.path.resolve(), *header.path.resolve().parents):
            raise UserError(f"--out_dir {str(out_dir)!r} holds {what}: choose another folder")
