"""The commands by name. Each module is named as its command is typed and has one function, ``setup``."""

from collections.abc import Callable

from litgpt_warmstart.commands import (
    warmstart,
    warmstart_ablations,
    warmstart_coord_check,
    warmstart_export,
    warmstart_grid_search,
    warmstart_grow,
    warmstart_plan,
    warmstart_prepare_data,
    warmstart_report,
    warmstart_scratch,
    warmstart_successive,
)

COMMANDS: dict[str, Callable] = {
    "warmstart": warmstart.setup,
    "warmstart_scratch": warmstart_scratch.setup,
    "warmstart_grow": warmstart_grow.setup,
    "warmstart_grid_search": warmstart_grid_search.setup,
    "warmstart_plan": warmstart_plan.setup,
    "warmstart_successive": warmstart_successive.setup,
    "warmstart_ablations": warmstart_ablations.setup,
    "warmstart_prepare_data": warmstart_prepare_data.setup,
    "warmstart_coord_check": warmstart_coord_check.setup,
    "warmstart_report": warmstart_report.setup,
    "warmstart_export": warmstart_export.setup,
}
