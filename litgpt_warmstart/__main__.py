"""``litgpt-warmstart COMMAND`` and ``python -m litgpt_warmstart COMMAND``: our commands without LitGPT's script."""

import functools
import gc
import signal
import sys
import traceback
import warnings
from pathlib import Path

from litgpt_warmstart.errors import ended_by_signals, exit_status

_freeze_once = functools.cache(gc.freeze)
"""Looking for garbage in what is imported, which stays, is half of a start: while it goes on, and at the end."""


def main() -> None:
    """Parse the command line and run a command; Ctrl-C, or a signal, while it starts ends it quietly."""
    try:
        with ended_by_signals():
            _main()
    except KeyboardInterrupt as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one, while the first ends it
        raise SystemExit(exit_status(error)) from None


def _main() -> None:
    gc.disable()
    try:
        import torch
        from jsonargparse import CLI, set_parsing_settings
        from jsonargparse.typing import register_type

        from litgpt_warmstart.command_line import OneLineParser, typed_path
        from litgpt_warmstart.commands import COMMANDS
    except Exception as error:  # of what kind depends on the two versions
        if not any("torchvision" in frame.filename for frame in traceback.extract_tb(error.__traceback__)):
            raise
        raise SystemExit(
            "litgpt-warmstart: error: the installed torchvision was built for another torch, and importing litgpt"
            " crashes on it; nothing here needs it: pip uninstall -y torchvision"
        ) from None
    finally:
        _freeze_once()
        gc.enable()
    set_parsing_settings(
        docstring_parse_attribute_docstrings=True,
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,
    )
    register_type(Path, str, typed_path, type_check=isinstance, fail_already_registered=False)
    warnings.filterwarnings("ignore", message=r"The epoch parameter in `scheduler.step\(\)`", category=UserWarning)
    torch.set_float32_matmul_precision("high")
    script = Path(sys.argv[0]).name
    typed = {name: COMMANDS[name] for name in sys.argv[1:2] if name in COMMANDS}  # others' parsers take time
    CLI(
        typed or COMMANDS,
        prog=script if script.startswith("litgpt") else "litgpt-warmstart",
        parser_class=OneLineParser,
    )


if __name__ == "__main__":
    main()
