"""``litgpt-warmstart COMMAND`` and ``python -m litgpt_warmstart COMMAND``: our commands without LitGPT's script."""

import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin

NO_PATH = "is empty: give a path, or leave it out"


def _path(text: str) -> Path:
    """The path that was typed; Path takes nothing at all for the current folder."""
    if isinstance(text, str) and not text.strip():
        raise ValueError(NO_PATH)
    return Path(text)


def _keeping_the_name(action: type) -> type:
    """The action of an option that is a class's name or a mapping (``--optimizer``), made to add up.

    jsonargparse 4.41 forgets the name when a flag gives an argument of the class, and arguments when a flag names it.
    """

    class Keeping(action):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            if len(args) == 4:
                parser, cfg, value, option = args
                before = cfg.get(self.dest)
                if str(option).startswith(f"--{self.dest}.") and isinstance(before, str):
                    cfg[self.dest] = {"class_path": before}
                elif option == f"--{self.dest}" and isinstance(before, dict) and "{" not in value:
                    args = parser, cfg, value, f"{option}.class_path"
            return super().__call__(*args, **kwargs)

    return Keeping


def main() -> None:
    """Parse the command line and run a command; Ctrl-C while it starts ends it quietly."""
    try:
        _main()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one, while the first ends it
        raise SystemExit(130) from None


def _main() -> None:
    try:
        import torch
        from jsonargparse import CLI, ArgumentParser, set_parsing_settings
        from jsonargparse.typing import register_type

        from litgpt_warmstart.commands import COMMANDS
        from litgpt_warmstart.errors import DEBUG_VARIABLE, UserError, one_line
    except Exception as error:  # of what kind depends on the two versions
        if not any("torchvision" in frame.filename for frame in traceback.extract_tb(error.__traceback__)):
            raise
        raise SystemExit(
            "litgpt-warmstart: error: the installed torchvision was built for another torch, and importing litgpt"
            " crashes on it; nothing here needs it: pip uninstall -y torchvision"
        ) from None

    script = Path(sys.argv[0]).name
    program = script if script.startswith("litgpt") else "litgpt-warmstart"

    def in_one_line(parser: ArgumentParser, parse: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a parser's method; what jsonargparse 4.41, or a user's class, does not expect is one line, too."""
        try:
            return parse(*args, **kwargs)
        except Exception as error:
            if os.environ.get(DEBUG_VARIABLE) == "1":
                raise
            parser.error(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")

    class OneLineParser(ArgumentParser):
        """jsonargparse's parser without the usage, which for a command of ours is 50 lines, before each error.

        A positional argument that is a list takes all words (``warmstart_report out/a out/b``); jsonargparse 4.41 takes
        one, ``[out/a, out/b]``.
        """

        config_file: Any = None
        """The file that is being read, for messages."""

        def add_function_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
            added = super().add_function_arguments(*args, **kwargs)
            for action in self._actions:
                kind = getattr(action, "_typehint", None)
                if kind == str | dict:
                    action.__class__ = _keeping_the_name(type(action))
                if not action.option_strings and get_origin(kind) is list:
                    action.nargs, (action._typehint,) = "+", get_args(kind)
            return added

        def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Any:
            self.config_file = cfg_path
            parsed = in_one_line(self, super().parse_path, cfg_path, *args, **kwargs)
            self.config_file = None
            return parsed

        def parse_args(self, *args: Any, **kwargs: Any) -> Any:
            return in_one_line(self, super().parse_args, *args, **kwargs)

        def instantiate_classes(self, *args: Any, **kwargs: Any) -> Any:
            return in_one_line(self, super().instantiate_classes, *args, **kwargs)

        def error(self, message: str, ex: Exception | None = None) -> None:
            if not self.exit_on_error:
                super().error(message, ex)
            if self.config_file is not None:
                message = f"--config {self.config_file}: {message}"
            if NO_PATH in message:
                option = ".".join(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', message)))
                message = f"--{option} {NO_PATH}"
            # What jsonargparse 4.41 says of a value outside a Literal of strings.
            choices = {f'"{a.dest}"': f": {a.metavar[1:-1].replace(',', ', ')}" for a in self._actions
                       if isinstance(a.metavar, str) and a.metavar.startswith("{")}  # fmt: skip
            named = next((said for key, said in choices.items() if key in message), "")
            message = message.replace("Cannot take a Union of no types.", f"not one of its choices{named}")
            left_over = message.partition("Unrecognized arguments: ")[2].split()
            if left_over and not any(word.startswith("-") for word in left_over):
                message += "; lists are typed with commas: 1,2,3"
            command = next((word for word in sys.argv[1:2] if word in COMMANDS), "")
            print(
                f"{program} {command}: error: {one_line(message)} (see --help)".replace(" :", ":"),
                file=sys.stderr,
            )
            raise SystemExit(2)

    set_parsing_settings(
        docstring_parse_attribute_docstrings=True,
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,
    )
    register_type(Path, str, _path, type_check=isinstance, fail_already_registered=False)
    warnings.filterwarnings("ignore", message=r"The epoch parameter in `scheduler.step\(\)`", category=UserWarning)
    torch.set_float32_matmul_precision("high")
    CLI(COMMANDS, prog=program, parser_class=OneLineParser)


if __name__ == "__main__":
    main()
