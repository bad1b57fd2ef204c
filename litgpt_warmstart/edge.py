"""The edge of every command: arguments are looked at once, from flags, config files and Python alike, then trusted."""

import functools
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import docstring_parser
from litgpt.data import DataModule

from litgpt_warmstart.errors import UserError, told_in_one_line, whole_number

C = TypeVar("C")

LARGEST_SEED = 2**32 - 1
LARGEST_INT = 2**63 - 1
SEEDS = ("seed", "seeds", "base_seed")
NAMES_OR_PATHS = ("target", "base", "mup_base", "scales", "tokenizer")
"""Options that name a model or a tokenizer, or the path of one; some take several, with commas."""


def command(function: Callable[..., Any]) -> Any:
    """A command: what a user did wrong is told in one line. ``__wrapped__`` is for callers in Python, who catch it."""
    name = function.__module__.rpartition(".")[2]

    @functools.wraps(function)
    def telling(*args: Any, **kwargs: Any) -> Any:
        with told_in_one_line(f"litgpt {name}"):
            return function(*args, **kwargs)

    return telling


def options(
    *groups: str,
    without: Collection[str] = (),
    refused: Collection[str] = (),
    filled_in: Callable[..., Mapping[str, Any]] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Have :func:`checked_value` look at a function's arguments, and give it those of some dataclasses, bare.

    A parameter ``growth: Growth`` becomes ``--shrink``, ``--alignment`` and so on: signature and docstring, from which
    jsonargparse makes options and their help, have the fields with their defaults and attribute docstrings. What the
    function itself has a parameter for, or says in its docstring, goes before a field's. Fields ``without`` which the
    function decides are no options of it; those ``refused``, by their whole names, are not in --help.

    ``filled_in``, called as the function is, gives options with what was left out filled in, for ``--print_config``.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(function)
        told = inspect.getdoc(function) or ""
        parameters: list[inspect.Parameter] = []
        members: dict[str, tuple[Any, list[str]]] = {}
        for name, parameter in own.parameters.items():
            if name not in groups:
                parameters.append(parameter)
                continue
            kind = parameter.annotation
            docs = _docs(kind)
            taken = {*own.parameters, *without} - {*groups}  # a group is no option, and may have one of its name
            shown = [field for field in fields(kind) if field.name not in taken]
            members[name] = kind, [field.name for field in shown]
            for field in shown:
                default = field.default if field.default_factory is MISSING else field.default_factory()
                parameters.append(parameter.replace(name=field.name, default=default, annotation=field.type))
            told = _documented(told, {field.name: docs[field.name] for field in shown})
        signature = own.replace(parameters=parameters)

        def gathered(*args: Any, **kwargs: Any) -> dict[str, Any]:
            bound = signature.bind(*args, **kwargs)
            kinds = {name: parameter.annotation for name, parameter in signature.parameters.items()}
            given = {n: checked_value(n, _as_typed(n, kinds[n], value)) for n, value in bound.arguments.items()}
            for name, (kind, names) in members.items():
                given[name] = kind(**{field: given.pop(field) for field in names if field in given})
            return given

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return function(**gathered(*args, **kwargs))

        decorated: Any = call
        decorated.__signature__ = signature
        decorated.__doc__, decorated.refused = told, frozenset(refused)
        if fill := filled_in:
            decorated.filled_in = lambda **arguments: fill(**gathered(**arguments))
        return decorated

    return decorate


def _as_typed(option: str, kind: Any, value: Any) -> Any:
    """Text that Python has given for a path as one, and 1e6 for a whole number; flags' values are these already.

    Raises:
        UserError: A fraction where a whole number is declared, a word that is none of those declared, or a file's null
            where None is not.
    """
    kinds = get_args(kind)
    if value is None and kind is not Any and not {None, type(None)} & {*kinds}:
        raise UserError(f"--{option} is null: give a value, or leave it out")
    if isinstance(value, list) and kinds == (Path,):
        return [_as_typed(option, Path, each) for each in value]
    if isinstance(value, float) and int in (kind, *kinds) and float not in kinds:
        if (number := whole_number(value)) is None:
            raise UserError(f"--{option} {value}: give a whole number")
        return number
    literals = [each for each in (kind, *kinds) if get_origin(each) is Literal]
    words = [word for each in literals for word in get_args(each)]  # such as auto
    if not isinstance(value, str) or not value.strip() or value in words or str in kinds:
        return value
    if words and Path not in kinds:
        raise UserError(f"--{option} {value!r} is none of {', '.join(filter(None, words))}")
    return Path(value) if Path in (kind, *kinds) else value


def inheriting_docs(cls: type[C]) -> type[C]:
    """A dataclass whose options have the help of the classes that it inherits them from.

    jsonargparse reads the docstrings of a class's own fields; what stands in the class's docstring it reads, too.
    """
    for base in cls.__mro__[1:]:
        if is_dataclass(base) and base.__module__.partition(".")[0] == __package__:
            cls.__doc__ = _documented(cls.__doc__ or "", _docs(base))
    return cls


def _docs(cls: type) -> dict[str, str]:
    """What a dataclass says of each field."""
    return {doc.arg_name: doc.description or "" for doc in docstring_parser.parse_from_object(cls).params}


def _documented(told: str, docs: Mapping[str, str]) -> str:
    """A docstring that tells of these arguments, too, where it does not yet."""
    if "\nArguments:" not in told:
        told += "\n\nArguments:"
    for name, doc in docs.items():
        if f"\n    {name}: " not in told:
            told += f"\n    {name}: {' '.join(doc.split()).removesuffix('.')}."
    return told


def checked_value(option: str, value: Any) -> Any:
    """An argument, with ``~`` of its paths expanded; its option has dots where it stands in a group.

    Raises:
        UserError: It is empty (among a DataModule's arguments, a path), a number that is not finite or too large, or a
            seed that no generator takes.
    """
    name = option.rpartition(".")[2]
    if isinstance(value, DataModule):
        return _checked_data(option, value)
    if is_dataclass(value) and not isinstance(value, type):
        given = {
            field.name: _as_typed(f"{option}.{field.name}", field.type, getattr(value, field.name))
            for field in fields(value)
            if field.init
        }
        return replace(value, **checked_value(option, given))
    if isinstance(value, dict):
        return {key: checked_value(f"{option}.{key}", inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [checked_value(option, inner) for inner in value]
    is_path = name in NAMES_OR_PATHS or name.endswith(("_path", "_dir"))
    if isinstance(value, str) and not value.strip() and (is_path or not option.startswith("data.")):
        raise UserError(f"--{option} is empty: give a value, or leave it out")
    if isinstance(value, Path):
        return Path(_expanded(option, str(value)))
    if isinstance(value, str) and is_path:
        return ",".join(_expanded(option, part) for part in value.split(","))
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"--{option} must be finite, got {value}")
    if isinstance(value, int) and abs(value) > LARGEST_INT:
        raise UserError(f"--{option} is too large: {str(value)[:20]}…")
    if isinstance(value, int) and name in SEEDS:
        check_seeds(option, value)
    return value


def check_seeds(option: str, *seeds: int) -> None:
    """Raise a UserError for a seed that NumPy's and Lightning's generators refuse."""
    for seed in seeds:
        if not 0 <= seed <= LARGEST_SEED:
            raise UserError(f"--{option} {seed}: seeds lie in 0 … {LARGEST_SEED}")


def _expanded(option: str, path: str) -> str:
    """A path without the ``~`` that it may begin with."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError as error:
        raise UserError(f"--{option} {path}: no home folder is known: give the whole path") from error


def _checked_data(option: str, data: DataModule) -> DataModule:
    """The DataModule, made again where a path of its arguments was expanded: some join paths as they are made."""
    parameters = inspect.signature(type(data)).parameters
    given = {name: getattr(data, name) for name in parameters if hasattr(data, name)}
    # A module's own default may be an empty word, which nobody has typed.
    typed = {n: v for n, v in given.items() if not (isinstance(v, str) and v == parameters[n].default)}
    changed = {n: new for n, v in typed.items() if (new := checked_value(f"{option}.{n}", v)) is not v and new != v}
    if not changed:
        return data
    if missing := parameters.keys() - given.keys():
        raise UserError(
            f"--{option}.{min(changed)}: give the whole path: {type(data).__name__} hides its {min(missing)}"
        )
    return type(data)(**(given | changed))
