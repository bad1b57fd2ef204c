"""The commands by name: each module here that is named as a command is typed, and has one function, ``setup``."""

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules

_NAMES = [module.name for module in iter_modules(__path__) if module.name.startswith("warmstart")]
COMMANDS: dict[str, Callable] = {name: import_module(f"{__name__}.{name}").setup for name in _NAMES}
