"""The edge of every command: arguments are looked at once, from flags, config files and Python alike, then trusted."""

import functools
import inspect
import math
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import docstring_parser
from litgpt.data import DataModule

from litgpt_warmstart.errors import UserError, told_in_one_line

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C")

LARGEST_SEED = 2**32 - 1
LARGEST_INT = 2**63 - 1
SEEDS = ("seed", "seeds", "base_seed")
NAMES_OR_PATHS = ("target", "base", "mup_base", "scales", "tokenizer")
"""Options that name a model or a tokenizer, or the path of one; some take several, with commas."""


def checked(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose arguments have passed :func:`checked_value`; what a user did wrong is told in one line."""
    name = command.__module__.rpartition(".")[2]
    careful = checking(command)

    @functools.wraps(careful)
    def telling(*args: Any, **kwargs: Any) -> Any:
        with told_in_one_line(f"litgpt {name}"):
            return careful(*args, **kwargs)

    return telling


def checking(function: Callable[P, R]) -> Callable[P, R]:
    """The same for callers in Python: what a user did wrong is raised as a UserError."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def careful(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        for option, value in bound.arguments.items():
            bound.arguments[option] = checked_value(option, value)
        return function(*bound.args, **bound.kwargs)

    return careful


def raising(command: Any) -> Callable[..., Any]:
    """A :func:`checked` command as :func:`checking` has it."""
    return command.__wrapped__


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


def flat(*groups: str, without: Collection[str] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the fields of some dataclasses that it takes as options of its own, by their bare names.

    A parameter ``growth: Growth`` becomes ``--shrink``, ``--alignment`` and so on: signature and docstring, from which
    jsonargparse makes options and their help, have the fields with their defaults and attribute docstrings. What the
    command itself has a parameter for, or says in its docstring, goes before a field's. Fields ``without`` which the
    command decides are no options of it.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(command)
        told = inspect.getdoc(command) or ""
        parameters: list[inspect.Parameter] = []
        members: dict[str, tuple[Any, list[str]]] = {}
        for name, parameter in own.parameters.items():
            if name not in groups:
                parameters.append(parameter)
                continue
            kind = parameter.annotation
            docs = _docs(kind)
            shown = [field for field in fields(kind) if field.name not in (*own.parameters, *without)]
            members[name] = kind, [field.name for field in shown]
            for field in shown:
                default = field.default if field.default_factory is MISSING else field.default_factory()
                parameters.append(parameter.replace(name=field.name, default=default, annotation=field.type))
            told = _documented(told, {field.name: docs[field.name] for field in shown})
        signature = own.replace(parameters=parameters)

        def call(*args: Any, **kwargs: Any) -> Any:
            given = dict(signature.bind(*args, **kwargs).arguments)
            for name, (kind, names) in members.items():
                given[name] = kind(**{field: given.pop(field) for field in names if field in given})
            return command(**given)

        flattened: Any = functools.wraps(command)(call)
        flattened.__signature__ = signature
        flattened.__doc__ = told
        return flattened

    return decorate


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
        changed = _changed(f"{option}.", {f.name: getattr(value, f.name) for f in fields(value) if f.init})
        return replace(value, **changed) if changed else value
    if isinstance(value, dict):
        changed = _changed(f"{option}.", value)
        return {**value, **changed} if changed else value
    if isinstance(value, list | tuple) and type(value) in (list, tuple):  # no named tuple, which takes other arguments
        inners = type(value)(checked_value(option, inner) for inner in value)
        return value if all(map(operator.is_, inners, value)) else inners
    path = name in NAMES_OR_PATHS or name.endswith(("_path", "_dir"))
    if isinstance(value, str) and not value.strip() and (path or not option.startswith("data.")):
        raise UserError(f"--{option} is empty: give a value, or leave it out")
    if isinstance(value, Path):
        text = _expanded(option, str(value))
        return value if text == str(value) else Path(text)
    if isinstance(value, str) and path:
        whole = ",".join(_expanded(option, part) for part in value.split(","))
        return value if whole == value else whole
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"--{option} must be finite, got {value}")
    if isinstance(value, int) and abs(value) > LARGEST_INT:
        raise UserError(f"--{option} is too large: {str(value)[:20]}…")
    if isinstance(value, int) and name in SEEDS:
        check_seeds(option, value)
    return value


def _changed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The new values, by name, of those that checking changes; with the prefix names are options."""
    new = {name: checked_value(f"{prefix}{name}", value) for name, value in values.items()}
    return {name: value for name, value in new.items() if value is not values[name]}


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
    changed = _changed(f"{option}.", typed)
    if not changed:
        return data
    if missing := parameters.keys() - given.keys():
        raise UserError(
            f"--{option}.{min(changed)}: give the whole path: {type(data).__name__} hides its {min(missing)}"
        )
    return type(data)(**(given | changed))
