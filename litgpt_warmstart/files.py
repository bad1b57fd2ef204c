"""Files and folders of ours: whole or not at all, never through a link, one process at a time."""

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from litgpt_warmstart.errors import Busy, UserError, one_line

LOCK = ".lock"
"""The empty file that is locked. It stays: removing it would let two processes lock two files of one name."""


@contextmanager
def locked(folder: Path, busy: str) -> Iterator[None]:
    """Keep other processes out of a folder that exists; the system releases the lock however this one ends.

    Where the file system has no such locks, nothing is kept out.

    Raises:
        Busy: Another process holds it, which ``busy`` tells.
        UserError: The lock file is a link.
        OSError: The lock file cannot be opened.
    """
    lock = FileLock(folder / LOCK, fallback_to_soft=False, preserve_lock_file=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Busy(busy) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{str(folder / LOCK)!r} is a link, which is not followed: remove it") from None
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    try:
        yield
    finally:
        lock.release()  # which does nothing where it is not held


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits; taken once while the file stays as it is."""
    stat = path.stat()
    return _sha256(path.resolve(), stat.st_ino, stat.st_size, stat.st_mtime_ns)


@lru_cache
def _sha256(path: Path, *state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def entries(folder: Path) -> list[str]:
    """Names of all that is in a folder."""
    return sorted(path.name for path in folder.iterdir())


def others(folder: Path, names: Collection[str]) -> list[str]:
    """Entries of a folder that are not among the files of these names."""
    return [name for name in entries(folder) if name not in (*names, LOCK) or (folder / name).is_dir()]


@contextmanager
def removed_if_empty(folder: Path) -> Iterator[None]:
    """After an error, remove a folder and its parents again, as far as they were made meanwhile and hold nothing."""
    folder = folder.absolute()
    missing = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    try:
        yield
    except BaseException:
        for each in missing:
            with suppress(OSError):
                each.rmdir()
        raise


@contextmanager
def atomic_folder(path: Path, foreign: Callable[[Path], list[str]] = entries) -> Iterator[Path]:
    """A folder to fill that appears at ``path`` whole or not at all; an older folder there is replaced.

    What is ``foreign``, by default everything, is never deleted: an older folder with such an entry, a file or a link
    goes aside, under a name that is told. What is filled is a hidden folder beside ``path``, removed after an error.
    """
    path = Path(os.path.abspath(path))
    partial, older = partial_folder(path), older_folder(path)
    with removed_if_empty(path.parent), ExitStack() as held:
        try:
            partial.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(partial, f"another process is writing {str(path)!r}: wait for it"))
        except OSError as error:
            raise UserError(f"cannot write {str(path)!r}: {one_line(error)}: move that, or choose another") from error
        try:
            for left in partial.iterdir():  # by a process that was killed
                if left.name != LOCK:
                    shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            _give_up(older, path, foreign)
            yield partial
            for file in (*partial.rglob("*"), partial):
                flush_to_disk(file)
            if os.path.lexists(path):
                path.rename(older)
            partial.rename(path)
            (path / LOCK).unlink()
            flush_to_disk(path.parent)
        except (OSError, RuntimeError) as error:
            # What torch's writer says of a full disk depends on where it comes to its end.
            words = ("PytorchStreamWriter", "inline_container", "iostream error")
            if isinstance(error, RuntimeError) and not any(word in str(error) for word in words):
                raise
            if isinstance(error, FileNotFoundError) and not partial.exists() and not path.exists():
                gone = f"{str(path)!r} has been removed or renamed while it was written"
                raise UserError(f"{gone}: give the command again, and leave its folder in its place") from error
            raise UserError(
                f"cannot write {str(path)!r}: {one_line(error)}; free space or choose another folder"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            _give_up(older, path, foreign)


def theirs_at(path: Path, foreign: Callable[[Path], list[str]]) -> list[str]:
    """Names of what at a path is not ours: a link or a file is wholly somebody's, of a folder what is foreign."""
    return [path.name] if path.is_symlink() or not path.is_dir() else foreign(path)


def _give_up(older: Path, path: Path, foreign: Callable[[Path], list[str]]) -> None:
    """Put back a folder that was to be replaced by one that is not there, else remove it, or keep it aside and tell."""
    if not os.path.lexists(older):
        return
    if not os.path.lexists(path) and not older.is_symlink():
        older.rename(path)
    elif theirs_at(older, foreign):
        kept = free_name(path, f"{path.name}-before")
        older.rename(kept)
        with suppress(OSError):  # a closed terminal
            print(f"{str(path)!r} held more than this package writes there: kept as {str(kept)!r}", file=sys.stderr)
    else:
        shutil.rmtree(older, ignore_errors=True)


def free_name(path: Path, name: str) -> Path:
    """A path beside ``path`` where nothing is: the name with the first number that is free."""
    number = 1
    while os.path.lexists(found := path.with_name(f"{name}-{number}")):
        number += 1
    return found


def remove_folder(path: Path) -> None:
    """Remove a folder, hidden first: half of one would be taken for a whole one. No link is followed."""
    hidden = path.with_name(f".{path.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    path.rename(hidden)
    shutil.rmtree(hidden)


def partial_folder(path: Path) -> Path:
    """What :func:`atomic_folder` fills."""
    return path.with_name(f".{path.name}.partial")


def older_folder(path: Path) -> Path:
    """Where :func:`atomic_folder` keeps the folder that it replaces, between its two renames."""
    return path.with_name(f".{path.name}.older")


def where_it_is(path: Path) -> Path:
    """A folder's path, or :func:`older_folder` where a process was killed between the two renames, or is there now."""
    older = older_folder(path)
    return older if older.is_dir() and not older.is_symlink() and not os.path.lexists(path) else path


def put_back(path: Path) -> None:
    """Give a folder its name back after such a kill; only who holds the lock knows that it was one."""
    if (older := where_it_is(path)) != path:
        older.rename(path)


def flush_to_disk(path: Path) -> None:
    """Have a file or folder on disk before going on, against a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8, so that a kill or a loss of power leaves it as it was or as it should be.

    A link at ``path`` is replaced, and its target left alone.
    """
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        with partial.open("xb") as file:  # x: never through a link that somebody has put there meanwhile
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
        flush_to_disk(partial)
        os.replace(partial, path)
    except BaseException:  # a full disk, a folder of that name, a signal
        partial.unlink(missing_ok=True)
        raise


def dump_yaml(content: dict[str, Any], path: Path) -> None:
    """Write plain values as YAML in their own order."""
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def cache_file(name: str) -> Path:
    """Where something is remembered for this user; a RuntimeError where no home folder is known."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # to be ignored, by the XDG Base Directory Specification
        cache = Path.home() / ".cache"
    return cache / "litgpt_warmstart" / f"{name}.json"


def remembered(name: str) -> dict[str, Any]:
    """What :func:`remember` has kept under a name; nothing where it is damaged. Anybody may have changed it."""
    with suppress(OSError, ValueError, RuntimeError):  # the last one of nesting without end, too
        found = json.loads(cache_file(name).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def remember(name: str, content: dict[str, Any]) -> None:
    """Keep plain values in the user's cache, where there is one that can be written."""
    with suppress(OSError, RuntimeError):
        cache_file(name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(cache_file(name), json.dumps(content, indent=1))
