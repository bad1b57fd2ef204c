"""jsonargparse 4.41's parser, with one line for each error, and what it does not do with our commands' types."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin

from jsonargparse import ArgumentParser

from litgpt_warmstart.errors import DEBUG_VARIABLE, UserError, one_line

NO_PATH = "is empty: give a path, or leave it out"


def typed_path(text: str) -> Path:
    """The path that was typed; Path takes nothing at all for the current folder."""
    if isinstance(text, str) and not text.strip():
        raise ValueError(NO_PATH)
    return Path(text)


class OneLineParser(ArgumentParser):
    """jsonargparse's parser without the usage, which for a command of ours is 50 lines, before each error.

    A positional argument that is a list takes all words (``warmstart_report out/a out/b``); jsonargparse takes one,
    ``[out/a, out/b]``.
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
                action.nargs = "+"
                (action._typehint,) = get_args(kind)  # pyright: ignore[reportAttributeAccessIssue]  # jsonargparse's
        return added

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Any:
        self.config_file = cfg_path
        parsed = self._in_one_line(super().parse_path, cfg_path, *args, **kwargs)
        self.config_file = None
        return parsed

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        return self._in_one_line(super().parse_args, *args, **kwargs)

    def instantiate_classes(self, *args: Any, **kwargs: Any) -> Any:
        return self._in_one_line(super().instantiate_classes, *args, **kwargs)

    def _in_one_line(self, parse: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method; what jsonargparse, or a user's class, does not expect is one line, too."""
        try:
            return parse(*args, **kwargs)
        except Exception as error:
            if os.environ.get(DEBUG_VARIABLE) == "1":
                raise
            self.error(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        if self.config_file is not None:
            message = f"--config {self.config_file}: {message}"
        if NO_PATH in message:
            option = ".".join(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', message)))
            message = f"--{option} {NO_PATH}"
        # What jsonargparse says of a value outside a Literal of strings.
        choices = {f'"{action.dest}"': f": {action.metavar[1:-1].replace(',', ', ')}" for action in self._actions
                   if isinstance(action.metavar, str) and action.metavar.startswith("{")}  # fmt: skip
        named = next((said for key, said in choices.items() if key in message), "")
        message = message.replace("Cannot take a Union of no types.", f"not one of its choices{named}")
        left_over = message.partition("Unrecognized arguments: ")[2].split()
        if left_over and not any(word.startswith("-") for word in left_over):
            message += "; lists are typed with commas: 1,2,3"
        program = self.prog.replace(" [options]", "")  # which jsonargparse puts before a command
        print(f"{program}: error: {one_line(message)} (see --help)", file=sys.stderr)
        raise SystemExit(2)


def _keeping_the_name(action: type) -> type:
    """The action of an option that is a class's name or a mapping (``--optimizer``), made to add up.

    jsonargparse forgets the name when a flag gives an argument of the class, and arguments when a flag names it.
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
