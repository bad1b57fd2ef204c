"""One process at a time in a folder."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from litgpt_warmstart.errors import UserError

LOCK = ".lock"
"""The empty file that is locked. It stays: removing it would let two processes lock two files of one name."""


@contextmanager
def locked(folder: Path, busy: str) -> Iterator[None]:
    """Keep other processes out of a folder; the system releases the lock when this one ends, however it ends.

    Where there are no such locks, neither on the system nor on the file system, nothing is kept out.

    Args:
        folder: It exists.
        busy: What to tell if another process holds it.

    Raises:
        UserError: Another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # no POSIX
        yield
        return
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(busy) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):  # file systems without locks
                raise
        yield
