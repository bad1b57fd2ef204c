"""Waits for ``litgpt.__main__``. Imported at start-up by a .pth file, in processes named litgpt only.

Nothing here may break ``litgpt`` or cost time: only the standard library is imported, and a failure is one line.
"""

import importlib.util
import sys
from types import ModuleType
from typing import Any

MODULE = "litgpt.__main__"


class _Finder:
    """Finds the module as others do, once, and has our commands registered when it has been run."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run(module)
                try:
                    from litgpt_warmstart.plugin import register

                    register(module)
                except Exception as error:  # litgpt goes on without us
                    print(f"litgpt-warmstart: its commands are not available here: {error!r}", file=sys.stderr)

            spec.loader.exec_module = run_and_register
        return spec


sys.meta_path.insert(0, _Finder())  # once, though virtual environments run .pth lines twice: modules are kept
