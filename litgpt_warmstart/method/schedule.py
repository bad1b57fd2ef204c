"""Step -> learning-rate multiplier, as pure functions.

The multiplier is applied to every parameter group's own ``base_lr * lr_scale``, so muP's ratios between groups hold
under each schedule (arXiv 2203.03466).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from litgpt_warmstart.errors import UserError

ScheduleName = Literal["constant", "warmup", "cosine", "linear", "wsd", "wsd-s", "power", "rewarm"]
CooldownShape = Literal["linear", "1-sqrt", "inverse", "exponential"]


class Cooldown(NamedTuple):
    """What a schedule's cooldown is unless the user says otherwise."""

    shape: CooldownShape
    fraction: float
    """Of the run's optimizer steps; for wsd-s, of those since the end of the cooldown before."""
    min_lr_ratio: float


COOLDOWNS: dict[ScheduleName, Cooldown] = {
    # arXiv 2405.18392, section 3.2: 1-sqrt beats linear, and lengths beyond 20% bring nothing more.
    "wsd": Cooldown("1-sqrt", 0.2, 0.0),
    # arXiv 2410.05192; a fraction of each stretch, as the cycles of its authors' trainer, Levanter.
    "wsd-s": Cooldown("inverse", 0.1, 0.1),
    # arXiv 2408.13359, sections 3 and 5.1: exponentially to 0 over the last tenth.
    "power": Cooldown("exponential", 0.1, 0.0),
}
"""The schedules that cool down, with the defaults of their papers."""

DECAYING: tuple[ScheduleName, ...] = ("cosine", "linear", "rewarm", *COOLDOWNS)
"""The schedules that come down at all."""
POWER_A, POWER_B = 4.0, -0.51
"""The power scheduler's a and b, from the end of section 4 of arXiv 2408.13359."""


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule over a run; call it with the number of finished optimizer steps."""

    name: ScheduleName
    total_steps: int
    """Optimizer steps of the whole run."""
    warmup_steps: int = 0
    """Optimizer steps of linear warmup; step 0 has multiplier 0, as in LitGPT, and ``min_lr_ratio`` under rewarm."""
    min_lr_ratio: float = 0.0
    """Where decays end, as a ratio to ``base_lr``."""
    cooldowns: tuple[tuple[int, int], ...] = ()
    """(first, end) optimizer steps of each cooldown, in order: the last has multiplier ``min_lr_ratio`` at its end."""
    cooldown_shape: CooldownShape = "linear"
    base_lr: float = 1.0
    """This and what follows is for ``power``, whose multiplier depends on it; others leave it alone."""
    global_batch_size: int = 1
    """Sequences per optimizer step: beta of arXiv 2408.13359, which counted sequences of 4,096 tokens."""
    tokens_per_step: int = 1
    power_a: float = POWER_A
    power_b: float = POWER_B

    def __post_init__(self) -> None:
        # A record gives lists.
        object.__setattr__(self, "cooldowns", tuple((first, end) for first, end in self.cooldowns))

    def __call__(self, step: int) -> float:
        """The multiplier of the update that comes after ``step`` finished ones."""
        if self.name in ("cosine", "linear", "rewarm"):
            return self._without_plateau(step)
        if step < self.warmup_steps and self.name != "constant":
            return step / self.warmup_steps * self._plateau(self.warmup_steps)
        for first, end in self.cooldowns:
            if first <= step < end or step >= end == self.total_steps:
                level = self._plateau(first)
                # Power's plateau may have fallen below the ratio already: a cooldown never rises.
                progress = min(1.0, (step - first) / (end - first))
                return cooled(level, min(level, self.min_lr_ratio), progress, self.cooldown_shape)
        return self._plateau(step)

    @property
    def milestones(self) -> frozenset[int]:
        """Steps whose checkpoint is worth keeping: of wsd-s where a cooldown ends, of others where it begins.

        From these a run may be lengthened.
        """
        which = 1 if self.name == "wsd-s" else 0
        return frozenset(cooldown[which] for cooldown in self.cooldowns) - {0, self.total_steps}

    @property
    def words(self) -> str:
        """The schedule in words, for output and errors."""
        parts: list[str] = [self.name]
        if self.name != "constant" and self.warmup_steps:
            parts.append(f"{self.warmup_steps:,} warmup steps")
        if self.name == "power":
            parts.append(f"a {self.power_a:g}, b {self.power_b:g}")
        if self.cooldowns:
            spans = " and ".join(f"{first:,} to {end:,}" for first, end in self.cooldowns)
            parts.append(f"{self.cooldown_shape} to {self.min_lr_ratio:g} in steps {spans}")
        elif self.name in DECAYING:
            parts.append(f"to {self.min_lr_ratio:g} in {self.total_steps:,} steps")
        return ", ".join(parts)

    def first_difference(self, other: "Schedule", steps: int) -> int | None:
        """The first of the steps 0 … ``steps`` - 1 whose multiplier is another one in ``other``; None for none."""
        if self == other:
            return None
        differ = (s for s in range(steps) if not math.isclose(self(s), other(s), rel_tol=1e-9, abs_tol=1e-12))
        return next(differ, None)

    def _plateau(self, step: int) -> float:
        """Between warmup and cooldown: 1, or eq. (7) of arXiv 2408.13359 over ``base_lr``, which is its eta_max."""
        if self.name != "power" or step == 0:
            return 1.0
        tokens = step * self.tokens_per_step
        return min(1.0, self.global_batch_size * self.power_a * tokens**self.power_b / self.base_lr)

    def _without_plateau(self, step: int) -> float:
        """Down from the end of the warmup on."""
        span = 1.0 - self.min_lr_ratio
        if step < self.warmup_steps:
            risen = step / self.warmup_steps
            # Re-warming (arXiv 2403.08763) goes up from where the last cosine ended.
            return self.min_lr_ratio + span * risen if self.name == "rewarm" else risen
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        left = 1.0 - progress if self.name == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.min_lr_ratio + span * left


def default_min_lr_ratio(name: ScheduleName) -> float:
    """Where a schedule's decay ends unless the user says otherwise."""
    return COOLDOWNS[name].min_lr_ratio if name in COOLDOWNS else 0.1


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


def make_schedule(
    name: ScheduleName,
    total_steps: int,
    warmup_steps: int = 0,
    *,
    min_lr_ratio: float | None = None,
    cooldown_shape: CooldownShape | None = None,
    cooldown_steps: int | None = None,
    cooldown_fraction: float | None = None,
    cooldown_ends: Sequence[int] = (),
    base_lr: float = 1.0,
    global_batch_size: int = 1,
    tokens_per_step: int = 1,
    power_a: float | None = None,
    power_b: float | None = None,
) -> Schedule:
    """The schedule of a run; None stands for the schedule's own default, and what it has no use for is left aside.

    Raises:
        UserError: A cooldown does not fit.
    """
    ratio = default_min_lr_ratio(name) if min_lr_ratio is None else min_lr_ratio
    schedule = Schedule(name, total_steps, warmup_steps, ratio)
    if name in COOLDOWNS:
        placed = place_cooldowns(name, total_steps, warmup_steps, cooldown_steps, cooldown_fraction, cooldown_ends)
        schedule = replace(schedule, cooldowns=placed, cooldown_shape=cooldown_shape or COOLDOWNS[name].shape)
    if name == "power":
        schedule = replace(
            schedule,
            base_lr=base_lr,
            global_batch_size=global_batch_size,
            tokens_per_step=tokens_per_step,
            power_a=power_a or POWER_A,
            power_b=power_b or POWER_B,
        )
    return schedule


def place_cooldowns(
    name: ScheduleName,
    total_steps: int,
    warmup_steps: int,
    steps: int | None,
    fraction: float | None,
    ends: Sequence[int],
) -> tuple[tuple[int, int], ...]:
    """(first, end) optimizer steps of each cooldown.

    A cooldown's place depends on no later one, so a wsd-s run that is lengthened has its old ones where they were.

    Arguments:
        name: The schedule, one of ``COOLDOWNS``.
        total_steps: Optimizer steps of the run, where the last cooldown ends.
        warmup_steps: Optimizer steps before which none may begin.
        steps: Length of each; None for ``fraction``.
        fraction: Length over the steps since the end of the one before; None for the schedule's default.
        ends: Where those before the last end, increasing.

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
        length = steps or max(1, round((fraction or COOLDOWNS[name].fraction) * (end - before)))
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
