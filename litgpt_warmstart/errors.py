"""What a user did wrong, told in one line."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

DEBUG_VARIABLE = "LITGPT_WARMSTART_DEBUG"
"""Environment variable: set to 1 to see the traceback behind a one-line error."""


class UserError(Exception):
    """Something a user can mend. The message names the thing and the remedy, in one line."""


class Diverged(UserError):
    """A loss or a weight is not finite: the run is over, and that is a result."""


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """The first ``limit`` characters of an error's text without its line breaks."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


@contextmanager
def told_in_one_line(command: str) -> Iterator[None]:
    """Print a :class:`UserError` as one line on standard error and exit with status 1; Ctrl-C is one line too.

    Args:
        command: The command's name as typed, for the start of the line.
    """
    try:
        yield
    except UserError as error:
        if os.environ.get(DEBUG_VARIABLE) == "1":
            raise
        print(f"{command}: error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except PermissionError as error:
        if os.environ.get(DEBUG_VARIABLE) == "1":
            raise
        print(f"{command}: error: {error.filename!r}: {error.strerror}: choose another", file=sys.stderr)
        raise SystemExit(1) from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise
        if os.environ.get(DEBUG_VARIABLE) == "1":
            raise
        print(f"{command}: error: this machine's memory is too small: take a smaller model or batch", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        if os.environ.get(DEBUG_VARIABLE) == "1":
            raise
        print(f"{command}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
