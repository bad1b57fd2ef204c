"""What a user did wrong, told in one line."""

import difflib
import os
import select
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import FrameType

DEBUG_VARIABLE = "LITGPT_WARMSTART_DEBUG"
"""Environment variable: set to 1 to see the traceback behind a one-line error."""

STUDY_PACKAGES = ("jinja2", "matplotlib", "pandas", "ray")
"""What the extra ``study`` installs for studies and reports, as it is imported."""

DIRECT_CAUSE = "\nThe above exception was the direct cause of the following exception:\n"
"""What Python writes between the tracebacks of ``raise … from``."""


class UserError(Exception):
    """Something a user can mend. The message names the thing and the remedy, in one line."""


class Diverged(UserError):
    """A loss or a weight is not finite: the run is over, and that is a result."""


class BrokeOff(UserError):
    """Something outside the run has failed in its middle: what it has reached can still be saved."""


class Busy(UserError):
    """Another process holds what this one wants to write."""


class NotYet(UserError):
    """What a command needs is not given, or not made or fetched yet: there is nothing wrong with what is."""


_ONLY_LOOKING = ContextVar("only_looking", default=False)


@contextmanager
def only_looking() -> Iterator[None]:
    """Have nothing fetched or made meanwhile: what would be raises :class:`NotYet`."""
    before = _ONLY_LOOKING.set(True)
    try:
        yield
    finally:
        _ONLY_LOOKING.reset(before)


def check_may_make(what: str) -> None:
    """Raise a NotYet for what would be fetched or made, where there is to be only looking."""
    if _ONLY_LOOKING.get():
        raise NotYet(f"{what} when the command runs")


def check_above_zero(options: Mapping[str, float | None]) -> None:
    """Raise a UserError for an option that is given and not above 0."""
    for option, value in options.items():
        if value is not None and not value > 0:  # nor NaN
            raise UserError(f"--{option} must be above 0, got {value}")


def nearest(typed: str, known: Iterable[str]) -> str:
    """The end of a message about a mistyped or shortened word: what is nearest, or nothing where nothing is near."""
    lowered = {word.lower(): word for word in known}
    longer = sorted((word for word in lowered if typed and word.startswith(typed.lower())), key=len)
    found = longer or difflib.get_close_matches(typed.lower(), lowered, 1)
    return f"; did you mean {lowered[found[0]]}?" if found else ""


def whole_number(value: object) -> int | None:
    """A number without a fraction, or its text such as 1e6 or 1_000_000, as an integer; None for anything else."""
    try:
        number = float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() and not isinstance(value, bool) else None


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """The first ``limit`` characters of an error's text without its line breaks.

    Of a text that carries a traceback, as errors of a loader's or a preparation's workers do, it is what stands at the
    traceback's end: the cause.
    """
    text = " ".join(_cause(str(error)).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _cause(text: str) -> str:
    _, *tracebacks = text.split("Traceback (most recent call last):\n")
    if not tracebacks:
        return text
    ends = []
    for traceback in reversed(tracebacks):
        if ends and DIRECT_CAUSE not in traceback:
            break
        lines = traceback.partition(DIRECT_CAUSE)[0].splitlines()
        first = next((number for number, line in enumerate(lines) if line and not line[0].isspace()), 0)
        ends.append("\n".join(lines[first:]).removeprefix(f"{UserError.__module__}.{UserError.__name__}: "))
    return ends[0] if len(ends) == 1 else f"{ends[0].rstrip(' .')}: {ends[-1]}"


class Ended(KeyboardInterrupt):
    """A signal came that ends programs: to everything here it is what Ctrl-C is."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)


def exit_status(error: BaseException) -> int:
    """What a command ends with: 128 and the number of a signal, as shells have it, or 1."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + (error.signal if isinstance(error, Ended) else signal.SIGINT)
    return 1


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Have SIGTERM and SIGHUP raise, so that nothing half-written stays; further ones do not break into that.

    What is ignored, as under nohup, or handled by others stays so, and forked processes just end.
    """
    process = os.getpid()
    mine = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        for each in mine:
            signal.signal(each, signal.SIG_IGN)
        raise Ended(number)

    for number in mine:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)


STDOUT_IS_GONE = "standard output cannot be written: nobody reads it any more, or its disk is full"


@contextmanager
def told_in_one_line(command: str) -> Iterator[None]:
    """Print what a user did wrong, or ended, as one line on standard error, and exit with :func:`exit_status`.

    The line begins with the command's name.
    """
    try:
        yield
        if stdout_is_gone():
            raise UserError(STDOUT_IS_GONE)
    except (Exception, KeyboardInterrupt) as error:
        told = _told(error)
        if told is None or os.environ.get(DEBUG_VARIABLE) == "1":
            raise
        stdout_is_gone()
        with suppress(OSError):  # the terminal may have been closed
            print(f"{command}: {told}", file=sys.stderr)
        raise SystemExit(exit_status(error)) from None


def _told(error: BaseException) -> str | None:
    """What an error is to a user; None for one that is nobody's but ours."""
    match error:
        case UserError():
            return f"error: {error}"
        case ModuleNotFoundError() if error.name in STUDY_PACKAGES:
            return f"error: {error.name} is not installed: pip install 'litgpt-warmstart[study]'"
        case KeyboardInterrupt():
            return f"ended by {error.signal.name}" if isinstance(error, Ended) else "interrupted"
        case BrokenPipeError():
            return f"error: {STDOUT_IS_GONE}" if reader_is_gone() else None
        case PermissionError():
            return f"error: {error.filename!r}: {error.strerror}: choose another"
        case MemoryError():
            return "error: this machine's memory is too small: take a smaller model or batch"
        case RuntimeError() if "can't allocate memory" in str(error):
            return _told(MemoryError())
    return None


def reader_is_gone() -> bool:
    """Whether standard output is a pipe, or a terminal, that nobody reads any more."""
    asked = select.poll()
    asked.register(sys.stdout.fileno(), select.POLLOUT)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in asked.poll(0))


def stdout_is_gone() -> bool:
    """Whether standard output cannot be written any more, as after ``| head``.

    It is then turned to nothing: Python flushes it when it ends, and would tell of that.
    """
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
