"""Start a large language model from a small one: arXiv 2411.07340 on LitGPT.

The Python API is what ``__all__`` names. It is imported when it is asked for, so that importing the package costs
nothing: ``litgpt`` does so each time it starts.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from litgpt_warmstart.api import FinishedRun, export, warmstart
    from litgpt_warmstart.errors import UserError
    from litgpt_warmstart.method.growth import Growth
    from litgpt_warmstart.method.scales import SCALES
    from litgpt_warmstart.run.grow import grow

__version__ = "0.2.0.dev0"
__all__ = ["SCALES", "FinishedRun", "Growth", "UserError", "export", "grow", "warmstart"]

_HOMES = {"SCALES": "method.scales", "Growth": "method.growth", "UserError": "errors", "grow": "run.grow"}


def __getattr__(name: str) -> Any:
    """What ``__all__`` names, imported now."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'api')}"), name)
