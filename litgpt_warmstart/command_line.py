"""jsonargparse 4.41's parser, with one line for each error, and what it does not do with our commands' types."""

import inspect
import os
import re
import sys
from argparse import SUPPRESS
from collections.abc import Callable
from functools import cache, wraps
from importlib.metadata import version
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from jsonargparse._util import NestedArg

from litgpt_warmstart import __version__
from litgpt_warmstart.errors import (
    DEBUG_VARIABLE,
    NotYet,
    UserError,
    nearest,
    one_line,
    only_looking,
    told_in_one_line,
    whole_number,
)
from litgpt_warmstart.parsing import Unreadable, read_yaml

IN_WORDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a name", Path: "a path",
    dict: "a mapping", dict[str, float]: "a mapping of names to numbers", tuple: "a list", list: "a list",
    list[dict[str, Any]]: "a list, such as '[{shrink: [0.2, 0.4]}]'",
}  # fmt: skip
"""What an option takes, by its type."""
CONFIGS = Path(__file__).parent / "configs"
"""The configs that are installed with the package."""


@cache
def _versions() -> str:
    """Of those that matter; each parser has them, and its commands' do."""
    return f"litgpt-warmstart {__version__}, litgpt {version('litgpt')}, torch {version('torch')}"


def typed_path(text: str) -> Path:
    """The path that was typed; Path takes nothing at all for the current folder."""
    if isinstance(text, str) and not text.strip():
        raise ValueError("a path is empty")
    return Path(text)


def find_config(command: str, typed: str) -> str:
    """The file that ``--config`` says: a path, or else the name of one of the package's.

    Args:
        command: The command that it is for.
        typed: ``quickstart`` is CONFIGS/COMMAND/quickstart.yaml, ``study/figure-01`` CONFIGS/study/figure-01.yaml,
            ``-`` what comes through a pipe.

    Raises:
        UserError: Neither is there.
    """
    if not typed.strip():
        raise UserError("--config is empty: give a file, or the name of one of the package's configs")
    if typed == "-" or os.path.isfile(typed) or not re.fullmatch(r"[\w-]+(/[\w-]+)*", typed):
        return typed
    for folder in (CONFIGS / command, CONFIGS):
        if (folder / f"{typed}.yaml").is_file():
            return str(folder / f"{typed}.yaml")
    known = sorted(path.stem for path in (CONFIGS / command).glob("*.yaml"))
    told = (
        f"the package has {', '.join(known)}{nearest(typed, known)}" if known else f"the package has none of {command}"
    )
    raise UserError(f"--config {typed}: no such file, and no such config: {told}")


class OneLineParser(ArgumentParser):
    """jsonargparse's parser without the usage, which for a command of ours is 50 lines, before each error.

    A positional argument that is a list takes all words (``warmstart_report out/a out/b``); jsonargparse takes one,
    ``[out/a, out/b]``. What is not supported, by its docstring or the command's ``refused``, is not in --help.
    """

    config_file: Any = None
    """The file that is being read, for messages."""
    function: Callable[..., Any] | None = None
    """The command that is called with what is parsed; None of the parser of all commands."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)  # --scale would be taken for --scale_eps
        self.of_file = set[str]()  # what a file says of a class (``--optimizer``), its arguments among them
        self.add_argument("--version", action="version", version=_versions(), help="Print versions and exit.")

    def add_function_arguments(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[str]:
        self.function = function
        added = super().add_function_arguments(function, *args, **kwargs)
        refused = getattr(function, "refused", ())
        for action in self._actions:
            if isinstance(action, ActionConfigFile):
                action.__class__ = _finding(function.__module__.rpartition(".")[2])
            if action.dest in refused or (action.help or "").startswith("Not supported"):
                action.help = SUPPRESS
        self._take_our_types()
        return added

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
        added = super().add_class_arguments(*args, **kwargs)
        self._take_our_types()
        return added

    def dump(self, cfg: Any, *args: Any, **kwargs: Any) -> str:
        """For ``--print_config``: with what the command would fill in; where it is not known yet, that is told."""
        return super().dump(self._filled_in(cfg), *args, **kwargs)

    def _filled_in(self, cfg: Any) -> Any:
        fill = getattr(self.function, "filled_in", None)
        if fill is None:
            return cfg
        self._in_one_line(self.validate, cfg, skip_required=True)  # jsonargparse makes classes of it first
        name = f"litgpt {self.function.__module__.rpartition('.')[2]}"
        arguments = {key: value for key, value in vars(self.instantiate_classes(cfg)).items() if key != "config"}
        with told_in_one_line(name), only_looking():
            try:
                told = fill(**arguments)
            except NotYet as error:
                print(f"{name}: what is left out is not filled in: {error}", file=sys.stderr)
                return cfg
        return self.parse_object(told, cfg_base=cfg)

    def _dump_delete_default_entries(self, subcfg: dict[str, Any], subdefaults: dict[str, Any]) -> None:
        """For ``--print_config=skip_default``, which jsonargparse ends on a class whose default is none."""
        known = {
            k: {} if isinstance(subcfg.get(k), dict) and not isinstance(v, dict) else v for k, v in subdefaults.items()
        }
        super()._dump_delete_default_entries(subcfg, known)

    def _take_our_types(self) -> None:
        for action in self._actions:
            kind = getattr(action, "_typehint", None)
            if not action.option_strings and get_origin(kind) is list:
                action.nargs = "+"
                (kind,) = get_args(kind)
                action._typehint = kind  # pyright: ignore[reportAttributeAccessIssue]  # jsonargparse's
            if words := _in_plain_words(kind):
                action.__class__ = _told_plainly(type(action), words)
            if kind == str | dict:
                action.__class__ = _keeping_the_name(type(action))

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Any:
        names_this, self.config_file = self.config_file, cfg_path
        if os.path.isfile(cfg_path):
            self._in_one_line(read_yaml, Path(cfg_path))
        parsed = self._in_one_line(super().parse_path, cfg_path, *args, **kwargs)
        for group in {option[2:].partition(".")[0] for option in self._options if "." in option}:
            takes_value = any(action.dest == group and hasattr(action, "_typehint") for action in self._actions)
            if not takes_value and group in parsed and not isinstance(parsed[group], Namespace):
                self.error(self._of_group(group, parsed[group]))
        self.config_file = names_this
        for action in self._actions:
            if getattr(action, "_typehint", None) == str | dict and isinstance(parsed.get(action.dest), dict):
                self.of_file.update(parsed[action.dest])
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
            match error:
                case Unreadable():
                    told = error.reason
                case UserError():
                    told = str(error)
                case RecursionError():
                    told = "it is nested too deeply"
                case _:
                    told = f"{type(error).__name__}: {error}"
            self.error(told)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        message = self._in_words(message)
        if self.config_file is not None:
            message = f"--config {self.config_file}: {message}"
        program = self.prog.replace(" [options]", "")  # which jsonargparse puts before a command
        print(f"{program}: error: {one_line(message)} (see --help)", file=sys.stderr)
        raise SystemExit(2)

    def _in_words(self, message: str) -> str:
        """jsonargparse's message in a user's words, with the nearest of what can be typed."""
        if self._subcommands_action and (found := re.search(r"subcommand: invalid choice: '([^']*)'", message)):
            return f"there is no command {found[1]!r}{nearest(found[1], self._subcommands_action._name_parser_map)}"
        flat = " ".join(message.split())
        if found := re.search(
            r'Parser key "([\w.]+)": (?:File does not exist|Path is not a file): [\'"](.*)[\'"]', flat
        ):
            return f"--{found[1]} {found[2]}: there is no such file"
        if found := re.search(r"Unable to load config .* - (--.*)", flat):
            return found[1]
        if found := re.search(r'Parser key "([\w.]+)": Unable to load config \'(.*?)\'', flat):
            return self._of_group(found[1], found[2])
        if found := re.search(r'Parser key "([\w.]+)":.*given class_path [^ ]+ --(.*?) Given value type: ', flat):
            return f"--{found[1]}.{found[2]}"
        if found := re.search(r'Parser key "([\w.]+)":.*given class_path .* Key "([\w.]+)" is required', flat):
            return f"--{found[1]}.{found[2]} is missing"
        if found := re.search(r'Key "([\w.]+)" is required', message):
            return f"{found[1].rpartition('.')[2]} are missing: give folders, one after another"
        if found := re.search(r"given class_path '([\w.]+)'.* Key '((?!class_path)\w+)' is not expected", flat):
            path, _, name = found[1].rpartition(".")
            if name == "DataModule":
                return f"--data.{found[2]} is an argument of a data source: name one before it, such as PreparedText"
            known = inspect.signature(getattr(sys.modules[path], name)).parameters
            return f"{name} has no argument {found[2]!r}: it has {', '.join(known)}{nearest(found[2], known)}"
        if found := re.search(r'Parser key "([\w.]+)":.* Subtypes: .* Given value: ?(.*)', flat):
            return self._of_no_class(*found.groups())
        if found := re.search(r"does not accept nested key '([\w.]+)'|Key '([\w.]+)' is not expected", message):
            key = found[1] or found[2]
            return f"there is no option {key!r}{nearest(key, [option[2:] for option in self._options])}"
        _, is_left_over, left_over = message.partition("Unrecognized arguments: ")
        if is_left_over:
            unknown = [word.partition("=")[0] for word in left_over.split() if word.startswith("--")]
            if not unknown:
                return f"{message}; lists are typed with commas: 1,2,3"
            message += nearest(unknown[0], self._options)
        return message

    def _of_group(self, group: str, value: Any) -> str:
        """What is wrong with a value where there are options below."""
        below = [option for option in self._options if option.startswith(f"--{group}.")]
        return f"{_given(f'--{group}', value)}: give its options, such as {below[0]}"

    def _of_no_class(self, option: str, value: str) -> str:
        """What is wrong with a value that should name a class."""
        named = re.search(r"(?:'class_path': |val=)'([^']*)'", value)
        name = named[1] if named else value
        kinds = [kind for each in self._all_actions if each.dest == option for kind in get_args(each._typehint)]
        known = [each.__name__ for kind in kinds for each in _subclasses(kind)]
        if name in known or not re.fullmatch(r"[\w./-]+", name):
            return f"{_given(f'--{option}', value)}: give a class's name, or class_path and init_args alone"
        return f"--{option} {name}: there is no such class{nearest(name, known)}"

    @property
    def _all_actions(self) -> list[Any]:
        """This parser's, and those of the commands below it."""
        below = self._subcommands_action._name_parser_map.values() if self._subcommands_action else ()
        return [*self._actions, *(action for parser in below for action in parser._actions)]

    @property
    def _options(self) -> list[str]:
        """What is in --help."""
        return [option for each in self._all_actions if each.help != SUPPRESS for option in each.option_strings]


def _subclasses(kind: type) -> list[type]:
    """All that derive from a class, at any depth."""
    return [each for child in kind.__subclasses__() for each in (child, *_subclasses(child))]


def _in_plain_words(kind: Any) -> dict[str, Any]:
    """What an option takes, in words, and as what type; nothing where it takes a class, say."""
    words = {}
    for each in get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,):
        if get_origin(each) is Literal:
            words |= {str(word): each for word in get_args(each) if word is not None}
        elif each is not type(None):
            words[IN_WORDS.get(each) or IN_WORDS.get(get_origin(each))] = each
    if "a list" in words:
        words.pop("a name", None)  # which is a list as typed, with commas
    return {} if None in words else words


def _given(option: str, value: Any) -> str:
    """An option with its value, or one of several, for messages."""
    is_empty = not all(str(each).strip() for each in (value if isinstance(value, list) else [value]))
    return f"{option} is empty" if is_empty else f"{option} {value}"


def _finding(command: str) -> type:
    """The action of ``--config`` of a command; see :func:`find_config`."""

    class Finding(ActionConfigFile):
        def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
            super().__call__(parser, cfg, find_config(command, values), option_string)

    return Finding


def _told_plainly(action: type, words: dict[str, Any]) -> type:
    """The action of an option whose types have words; a whole number may be typed as 1e6.

    Args:
        action: jsonargparse's.
        words: What is taken, in words, and their types.
    """

    class Plain(action):
        @wraps(action._check_type)  # whose parameters jsonargparse looks at
        def _check_type(self, value: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                checked = super()._check_type(value, *args, **kwargs)
                if isinstance(checked, Exception):  # as which jsonargparse takes a list for a name or a mapping
                    raise TypeError from checked
                return checked
            except TypeError as error:
                number = whole_number(value) if int in words.values() else None
                if number is not None:
                    return super()._check_type(number, *args, **kwargs)
                name = f"--{self.dest}" if self.option_strings else self.dest
                if isinstance(value, NestedArg):
                    name, value = f"{name}.{value.key}", value.val
                given, choices = _given(name, value), [word for word in words if get_origin(words[word]) is Literal]
                leave = ", or leave it out" * given.endswith("is empty")
                told = f"{given}: give {' or '.join(words)}{leave}{nearest(str(value), choices)}"
                raise TypeError(told) from error

    return Plain


def _keeping_the_name(action: type) -> type:
    """The action of an option that is a class's name or a mapping (``--optimizer``), made to add up.

    jsonargparse forgets the name when a flag gives an argument of the class, and arguments when a flag names it. A
    mapping that is typed takes the place of all that was before it.
    """

    class Keeping(action):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            if len(args) == 4:
                parser, cfg, value, option = args
                before = cfg.get(self.dest)
                names_class = option in (f"--{self.dest}", f"--{self.dest}.class_path")
                if isinstance(before, dict) and names_class:
                    cfg[self.dest] = None
                    if "{" not in value:
                        cfg[self.dest] = _of_class(before, value, parser.of_file)
                        return None
                elif not names_class:
                    parser.of_file.discard(option.removeprefix(f"--{self.dest}."))
                    if isinstance(before, str):
                        cfg[self.dest] = {"class_path": before}
            return super().__call__(*args, **kwargs)

    return Keeping


def _of_class(given: dict[str, Any], name: str, of_file: set[str]) -> dict[str, Any]:
    """A class's mapping under another name: what a file says of its own class goes, a flag's arguments stay."""
    same = str(given.get("class_path", name)).rpartition(".")[2] == name.rpartition(".")[2]
    dropped = {"class_path"} if same else {"class_path"} | of_file
    return {"class_path": name} | {argument: value for argument, value in given.items() if argument not in dropped}
