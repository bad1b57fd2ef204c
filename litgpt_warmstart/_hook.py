"""Waits for ``litgpt.__main__``. Imported at start-up by a .pth file, in processes named litgpt only.

Nothing here may break ``litgpt`` or cost time: only the standard library is imported, and a failure is one line.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

MODULE = "litgpt.__main__"


class _RegisteringLoader(importlib.abc.Loader):
    """Runs the module as its own loader does, then registers our commands."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        try:
            from litgpt_warmstart.plugin import register

            register(module)
        except Exception as error:  # litgpt goes on without us
            print(f"litgpt-warmstart: its commands are not available here: {error!r}", file=sys.stderr)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


def install() -> None:
    """Watch for the import, once: virtual environments run .pth lines twice."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


install()
