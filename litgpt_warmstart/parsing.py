"""What comes from outside, as checked types: plain values of YAML or JSON in, a dataclass or one line out."""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import Field, TypeAdapter, ValidationError
from yaml.events import AliasEvent

from litgpt_warmstart.errors import UserError, one_line

T = TypeVar("T")

Count = Annotated[int, Field(ge=0, lt=2**63)]
"""How many there are of something."""
Size = Annotated[int, Field(gt=0, lt=2**63)]
"""A count that is not 0."""
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
"""Of a file in a folder that is known: it leads nowhere else."""

MOST_BYTES, MOST_ALIASES = 2**20, 16
"""A file with more is none of ours: aliases of aliases make gigabytes of a few lines."""


class _PlainLoader(yaml.SafeLoader):
    """YAML's plain values, with few aliases."""

    aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.aliases += self.check_event(AliasEvent)
        if self.aliases > MOST_ALIASES:
            raise yaml.YAMLError(f"it has more than {MOST_ALIASES} aliases")
        return super().compose_node(parent, index)


class Unreadable(UserError):
    """Something from outside that is not what it should be."""

    def __init__(self, reason: str, where: str = "") -> None:
        super().__init__(f"{where} is damaged: {reason}" if where else reason)
        self.reason = reason


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: It is missing, may not be read, or holds something else; the reason stands in the line.
    """
    return _read(path, lambda text: yaml.load(text, Loader=_PlainLoader))  # noqa: S506  # a SafeLoader


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; raises as :func:`read_yaml`."""
    return _read(path, json.loads)


def _read(path: Path, load: Callable[[str], Any]) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        found = load(content.decode("utf-8"))
    except OSError as error:
        raise UserError(f"{str(path)!r} is unreadable: {error.strerror}: check its path and permissions") from error
    except RecursionError as error:
        raise Unreadable("it is nested too deeply", repr(str(path))) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise Unreadable(one_line(error, 120), repr(str(path))) from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise Unreadable("it holds no names and values", repr(str(path)))
    return found


@lru_cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind)


def parse(kind: type[T] | Any, content: Any) -> T:
    """Plain values as a checked type: no text for a number, no 1 for true, no unknown name where the type forbids it.

    Args:
        kind: A dataclass, or any type that pydantic knows.
        content: What YAML or JSON gives.

    Raises:
        Unreadable: The first thing that does not fit, by its place.
    """
    try:
        return _adapter(kind).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Unreadable(one_line(f"{place}: {first['msg']}" if place else first["msg"], 160)) from error
    except UserError as error:  # what a dataclass refuses of its own fields
        raise Unreadable(one_line(error, 160)) from error
    except (TypeError, ValueError, RecursionError) as error:  # a date, a set, nesting without end
        raise Unreadable(one_line(error, 120)) from error
