"""Start a large language model from a small one: arXiv 2411.07340 on LitGPT.

The Python API is what ``__all__`` names. It is imported when it is asked for, so that importing the package costs
nothing: ``litgpt`` does so each time it starts.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from litgpt_warmstart.api import SCALES, FinishedRun, Growth, UserError, export, grow, warmstart

__version__ = "0.2.0.dev0"
__all__ = ["SCALES", "FinishedRun", "Growth", "UserError", "export", "grow", "warmstart"]


def __getattr__(name: str) -> Any:
    """What ``__all__`` names, imported now."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from litgpt_warmstart import api

    return getattr(api, name)
