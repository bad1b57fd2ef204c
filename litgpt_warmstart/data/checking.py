"""Whether prepared tokens are as they were prepared: looked at in the background while a run trains."""

import os
import threading
from collections.abc import Mapping
from pathlib import Path

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import file_sha256, remember, remembered


class ChunkCheck:
    """Compares files with the SHA-256 that they were prepared with in a thread, once while they stay as they are.

    What was found good is remembered in the user's cache under the data's name, not beside files that may be another's.
    Who is not ``trusting`` compares it again: a bit may flip where size and time stay.
    """

    def __init__(self, sha256: Mapping[Path, str], name: str, trusting: bool = True) -> None:
        self._sha256, self._trusting = sha256, trusting
        self._memory = f"checked/{name}"
        self._bad: str | None = None
        self._thread = threading.Thread(target=self._look, name="chunk check", daemon=True)

    def begin(self) -> None:
        """Look at the files from now on."""
        self._thread.start()

    def raise_if_bad(self, wait: bool) -> None:
        """Raise a UserError where a file is not as it was prepared, as far as was looked, or, if one waits, at all."""
        if wait:
            self._thread.join()
        if self._bad is not None:
            raise UserError(self._bad)

    def _look(self) -> None:
        known = remembered(self._memory)
        for path, sha256 in self._sha256.items():
            try:
                name, state = str(path.resolve()), [sha256, path.stat().st_size, path.stat().st_mtime_ns]
                if self._trusting and known.get(name) == state:
                    continue
                found = file_sha256(path)
            except OSError as error:
                self._bad = f"{str(path)!r} cannot be read ({error.strerror}): prepare the data again in another folder"
                break
            if found != sha256:
                self._bad = (
                    f"{str(path)!r} is not as it was prepared (its SHA-256 is another): prepare the data again in"
                    " another folder, and train anew what has read it since"
                )
                known.pop(name, None)
                break
            known[name] = state
        remember(self._memory, {path: state for path, state in known.items() if os.path.exists(path)})
