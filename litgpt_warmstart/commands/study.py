"""What the commands of studies share: lists as typed, and options that a single run has but a study has not."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from litgpt_warmstart.errors import UserError, whole_number
from litgpt_warmstart.run.resolve import resolve
from litgpt_warmstart.run.spec import EvalArgs, RunArgs, RunSpec, TrainArgs

T = TypeVar("T")

NOT_FOR_A_STUDY = ("train.max_tokens", "train.max_steps", "train.max_time", "eval.initial_validation",
                   "eval.final_validation")  # fmt: skip
"""Options of a single run that :func:`check_comparable` refuses; a grid search takes the first."""


def as_list(
    value: object, kind: Callable[[Any], T], option: str, once: bool = True, words: str | None = None
) -> list[T]:
    """The elements of an option's value, ``1,2,3`` as typed, or a list as YAML has it.

    Args:
        kind: Makes an element, and raises ValueError or TypeError for what is none.
        once: Leave out repeated ones.
        words: What elements are in messages. Default: values of that kind.
    """
    if isinstance(value, str):
        parts: Sequence[object] = [part.strip() for part in value.strip("[] ").split(",") if part.strip()]
    else:
        parts = value if isinstance(value, list | tuple) else [value]
    try:
        elements = [_element(kind, part) for part in parts]
    except (ValueError, TypeError):
        words = words or f"{kind.__name__} values"
        raise UserError(f"{option} {value}: give {words} with commas between them") from None
    if not elements:
        raise UserError(f"{option} is empty: give at least one value")
    return list(dict.fromkeys(elements)) if once else elements


def _element(kind: Callable[[Any], T], part: Any) -> T:
    """One of a list's; a whole number may be typed as 1e3."""
    return kind(whole_number(part) if kind is int and isinstance(part, str) else part)


def from_scratch(run: RunArgs) -> Callable[..., RunSpec]:
    """What resolves runs from scratch, given target, folder and changes to what the user asked for."""

    def make(target: str, out_dir: Path, **changes: Any) -> RunSpec:
        args = replace(run, resume="auto", **changes)
        own = dict(target=target, initial_checkpoint_dir=None)
        return resolve("warmstart_scratch", target, None, None, out_dir, args, own)

    return make


def check_comparable(eval: EvalArgs, train: TrainArgs, budget: str, remedy: str) -> None:
    """Raise a UserError for options that would make a study's runs unequal, or leave out what it compares.

    Of the options that give a budget only ``budget`` is taken; ``remedy`` says what to give instead of the others.
    """
    for name in ("initial_validation", "final_validation"):
        if not getattr(eval, name):
            raise UserError(
                f"--eval.{name} false would leave a study without the losses that it compares: leave it out"
            )
    for name in ("max_tokens", "max_steps", "max_time"):
        if name != budget and getattr(train, name) is not None:
            raise UserError(f"--train.{name} is not for a study of several runs: {remedy}")
