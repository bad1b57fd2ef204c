"""Cooldowns of a schedule: where in a run they lie, and how they come down."""

import math
from collections.abc import Sequence
from typing import Literal

from litgpt_warmstart.errors import UserError

CooldownShape = Literal["linear", "1-sqrt", "inverse", "exponential"]


def cooled(start: float, end: float, progress: float, shape: CooldownShape) -> float:
    """From ``start`` to ``end`` as ``progress`` goes from 0 to 1.

    ``1-sqrt`` is arXiv 2405.18392's; ``inverse`` interpolates between the inverses of the two ends (arXiv
    2410.05192), so ``end`` must be above 0; ``exponential`` is exp(-progress), shifted and scaled to meet both ends,
    as the power scheduler decays to 0 (arXiv 2408.13359).
    """
    if shape == "inverse":
        return 1.0 / ((1.0 - progress) / start + progress / end)
    left = {
        "linear": 1.0 - progress,
        "1-sqrt": 1.0 - math.sqrt(progress),
        "exponential": (math.exp(-progress) - math.exp(-1.0)) / (1.0 - math.exp(-1.0)),
    }[shape]
    return end + (start - end) * left


def place_cooldowns(
    total_steps: int, warmup_steps: int, steps: int | None, fraction: float, ends: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """(first, end) optimizer steps of each cooldown.

    A cooldown's place depends on no later one, so a wsd-s run that is lengthened has its old ones where they were.

    The last cooldown ends with the run, those before it at ``ends``, which increase; none begins within the warmup.
    Each takes ``steps``, or without that a fraction of the steps since the end of the one before.

    Raises:
        UserError: One does not fit.
    """
    if ends and ends[-1] > total_steps:
        raise UserError(
            f"--train.cooldown_ends {ends[-1]:,} is beyond the run of {total_steps:,} steps: leave it out, or raise"
            " --train.max_tokens"
        )
    cooldowns: list[tuple[int, int]] = []
    before = 0
    for end in (*ends, total_steps):
        if end == before:  # the last was named too
            continue
        length = steps or max(1, round(fraction * (end - before)))
        first = end - length
        if first < max(before, warmup_steps):
            if before:
                told = f"a cooldown of {length:,} steps to step {end:,} overlaps the one that ends at {before:,}"
            else:
                told = f"a warmup of {warmup_steps:,} and a cooldown of {length:,} steps do not fit into {end:,} steps"
            raise UserError(f"{told}: lower --train.cooldown_steps or --train.cooldown_fraction, or train longer")
        cooldowns.append((first, end))
        before = end
    return tuple(cooldowns)
