"""The commands by name: each module here that is named as a command is typed, and has one function, ``setup``."""

from collections.abc import Callable

from litgpt_warmstart.commands import (
    warmstart,
    warmstart_ablations,
    warmstart_coord_check,
    warmstart_export,
    warmstart_fit,
    warmstart_grid_search,
    warmstart_grow,
    warmstart_lr_transfer,
    warmstart_plan,
    warmstart_prepare_data,
    warmstart_report,
    warmstart_scratch,
    warmstart_successive,
)

_MODULES = (
    warmstart, warmstart_ablations, warmstart_coord_check, warmstart_export, warmstart_fit, warmstart_grid_search,
    warmstart_grow, warmstart_lr_transfer, warmstart_plan, warmstart_prepare_data, warmstart_report, warmstart_scratch,
    warmstart_successive,
)  # fmt: skip
COMMANDS: dict[str, Callable] = {module.__name__.rpartition(".")[2]: module.setup for module in _MODULES}
