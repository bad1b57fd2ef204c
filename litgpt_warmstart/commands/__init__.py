"""The commands by name. Each module is named as its command is typed and has one function, ``setup``."""

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules

COMMANDS: dict[str, Callable] = {
    found.name: import_module(f"{__name__}.{found.name}").setup
    for found in iter_modules(__path__)
    if found.name.startswith("warmstart")
}
