"""The DataModule that a checkpoint's record names. A record may come from anybody, so it decides little.

It chooses among what :mod:`litgpt_warmstart.data` exports and LitGPT's classes listed here, by plain arguments of their
own types, and what it names is only read, where it is prepared already. To prepare or to fetch takes the user's own
``--data``.
"""

import inspect
import json
import os
import re
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, get_type_hints

from litgpt.data import DataModule, LitData, MicroLlama, OpenWebText, TextFiles, TinyLlama, TinyStories
from pydantic import Field
from typing_extensions import TypedDict

import litgpt_warmstart.data as ours
from litgpt_warmstart.data.preparing.write import INDEX
from litgpt_warmstart.data.use import DataUse, class_path
from litgpt_warmstart.errors import NotYet, UserError, one_line
from litgpt_warmstart.parsing import FileName, Unreadable, parse


@dataclass(frozen=True)
class _Chunk:
    """A file of tokens, named in an index.json, and that beside it."""

    filename: FileName


class _ChunkConfig(TypedDict):
    """Of an index.json what litdata acts on: tokens as they are, of which nothing is unpacked, decoded or imported."""

    item_loader: Literal["TokensLoader"]
    data_format: list[Annotated[str, Field(pattern=r"^no_header_tensor:\d+$")]]
    data_spec: Literal[None, '[1, {"type": null, "context": null, "children_spec": []}]']
    compression: NotRequired[None]
    encryption: NotRequired[None]


class _ChunkIndex(TypedDict):
    """litdata's index.json of a folder of tokens."""

    chunks: list[_Chunk]
    config: _ChunkConfig


def _has_chunks(*folders: str | Path) -> bool:
    """Whether there are tokens in each of the folders; litdata would import modules that another index.json names."""
    paths = [Path(folder, INDEX) for folder in folders]
    if not all(path.is_file() for path in paths):
        return False
    for path in paths:
        try:
            parse(_ChunkIndex, json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError, Unreadable) as error:
            raise UserError(f"{str(path)!r} is no index of plain tokens: {one_line(error, 100)}") from error
    return True


LITGPTS: dict[type[DataModule], Callable[[Any], bool]] = {
    TextFiles: lambda data: _has_chunks(data.out_path_train, data.out_path_val),
    LitData: lambda data: _has_chunks(*(Path(data.data_path, name) for name in data.split_names or ("",))),
    TinyLlama: lambda data: _has_chunks(*data.required_paths),
    MicroLlama: lambda data: _has_chunks(*data.required_paths),
    OpenWebText: lambda data: _has_chunks(data.data_path_train, data.data_path_val),
    # Its preparation unpacks an archive unless it finds the stories.
    TinyStories: lambda data: (
        _has_chunks(data.data_path_train, data.data_path_val)
        and len([*(data.data_path / "TinyStories_all_data").glob("*.json")]) > 1
    ),
}
"""LitGPT's classes that a record may name -> whether a module's data is prepared here, as files alone tell."""


def _is_prepared(data: Any) -> bool:
    with suppress(UserError):  # no folder, or nothing in it that says where to take it from
        return data.is_prepared
    return False


def recorded_data(use: DataUse) -> DataModule:
    """The DataModule that a record names, where its data is prepared on this machine and a record may choose it."""
    is_there = dict.fromkeys((getattr(ours, name) for name in ours.__all__), _is_prepared) | LITGPTS
    cls = next((cls for cls in is_there if class_path(cls) == use.class_path), None)
    if cls is None:
        raise UserError(
            f"the base was trained on {use.class_path}, which a checkpoint may not choose: name it with --data to use"
            " it again"
        )
    hints = get_type_hints(cls.__init__) | get_type_hints(cls)
    names = set(inspect.signature(cls).parameters)
    arguments = {}
    for name, value in use.init_args.items():
        try:
            if name not in names:
                raise Unreadable("it has no such argument")
            arguments[name] = parse(hints[name], value)
            if name == "num_workers":
                arguments[name] = max(0, min(arguments[name], os.cpu_count() or 1))
            elif isinstance(value, str) and re.match(r"[\w.+-]+:", value):
                raise Unreadable("a checkpoint may name no address")
        except Unreadable as error:
            raise UserError(
                f"the base's data {cls.__name__} cannot be set up again, {name} is {value!r:.60} ({error}): pass --data"
            ) from error
    with suppress(OSError, TypeError, ValueError, AttributeError):  # no path, a name with a null byte
        # Of text that is prepared, it does not matter any more where it came from.
        taken = {name: value for name, value in arguments.items() if name == "data_path" or cls in LITGPTS}
        if is_there[cls](data := cls(**taken)):
            return data
    raise NotYet(
        f"the base's data is not prepared here, and what a checkpoint names is only read: to prepare it, pass"
        f" {_typed(cls, arguments)}"
    )


def _typed(cls: type[DataModule], arguments: dict[str, Any]) -> str:
    """The options that name a DataModule, as typed; those that its class has anyway are left out."""
    defaults = {p.name: p.default for p in inspect.signature(cls).parameters.values()}
    given = {n: v for n, v in arguments.items() if v is not None and v != defaults.get(n) and n != "num_workers"}
    texts = {n: f"[{','.join(v)}]" if isinstance(v, tuple) else str(v) for n, v in given.items()}
    words = [f"--data.{n} {shlex.quote(text)}" for n, text in texts.items()]
    return " ".join([f"--data {cls.__name__}", *words])
