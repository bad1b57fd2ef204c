"""Signals that end a program, as a wish to stop at the next good moment."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from litgpt_warmstart.data.loaders import STOPPING

AT_ONCE = (signal.SIGINT, signal.SIGTERM)
"""A second one of these acts at once, as ever.

Of the others a closed terminal sends several, a scheduler one before each limit: the second one is no other wish."""


@contextmanager
def deaf_to_children() -> Iterator[None]:
    """Ignore that child processes end: torch's handler raises wherever the program is when a loader's worker dies."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    except RuntimeError:  # the handler, at the last moment
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


class StopRequest:
    """While entered, the first signal that would end the program sets :attr:`signal`; a second Ctrl-C acts at once.

    A SIGHUP that is ignored, as under nohup, stays so. Processes forked meanwhile leave signals to this one, so that
    the step in hand still gets its data. Outside the main thread, where Python allows no handlers, it does nothing.

    Args:
        tells: Whether a line is printed of it; of several processes the first one's.
    """

    def __init__(self, tells: bool = True) -> None:
        self.signal: signal.Signals | None = None
        self._tells = tells
        self._previous: dict[signal.Signals, Any] = {}
        self._process = os.getpid()

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_status(self) -> int:
        """128 plus the signal's number, as shells report it."""
        return 128 + int(self.signal or 0)

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                if number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore(STOPPING)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process or self.signal is not None:
            return
        self.signal = signal.Signals(number)
        self._restore(AT_ONCE)
        if not self._tells:
            return
        with suppress(OSError):  # a closed terminal
            print(f"\n{self.signal.name}: stopping after this optimizer step; Ctrl-C to stop at once", file=sys.stderr)

    def _restore(self, numbers: tuple[signal.Signals, ...]) -> None:
        for number in numbers:
            if number in self._previous:
                signal.signal(number, self._previous.pop(number))
