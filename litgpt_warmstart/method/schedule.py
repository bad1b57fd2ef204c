"""Step -> learning-rate multiplier: up along a warmup, along a plateau, and down in one cooldown or more.

The multiplier is applied to every parameter group's own ``base_lr * lr_scale``, so muP's ratios between groups hold
under each schedule (arXiv 2203.03466). A new schedule is an entry of :data:`SCHEDULES`, and what it lets the user
choose a field of :class:`ScheduleOptions`: ``--schedule`` and ``--train`` have them from here.
"""

import math
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from litgpt_warmstart.errors import UserError, check_above_zero
from litgpt_warmstart.parsing import parse

CooldownShape = Literal["linear", "1-sqrt", "inverse", "exponential"]
WARMUP = ("lr_warmup_steps", "lr_warmup_fraction")
COOLDOWN = (*WARMUP, "min_lr", "cooldown_shape", "cooldown_steps", "cooldown_fraction")
Options = TypeVar("Options", bound="ScheduleOptions")


@dataclass
class ScheduleOptions:
    """What a user may say of how the learning rate moves; each schedule takes some of it."""

    lr_warmup_steps: int | None = None
    """Number of optimizer steps with learning rate warmup active, for every schedule but ``constant``"""
    lr_warmup_fraction: float | None = None
    """The fraction of the run's optimizer steps to use for learning rate warmup"""
    min_lr: float | None = None
    """Where the learning rate comes down to, as a ratio to the base learning rate; also where ``rewarm`` begins.
    Default: 0.1, and 0 for ``wsd`` and ``power``"""
    cooldown_shape: CooldownShape | None = None
    """How ``wsd``, ``wsd-s`` and ``power`` cool down: ``linear``, ``1-sqrt`` (arXiv 2405.18392), ``inverse``
    (2410.05192: 1/lr rises linearly) or ``exponential``. Default: 1-sqrt, inverse, exponential, as in their papers"""
    cooldown_steps: int | None = None
    """Number of optimizer steps of each cooldown"""
    cooldown_fraction: float | None = None
    """Length of the cooldown as a fraction of the run's optimizer steps, for ``wsd-s`` of those since the cooldown
    before. Default: 0.2 for ``wsd``, 0.1 for ``wsd-s`` and ``power``"""
    cooldown_ends: str | int | list[int] | None = None
    """Optimizer steps, with commas, at which cooldowns of ``wsd-s`` end, each followed by the full learning rate; one
    more ends with the run. To go on after a finished run, name its last step"""
    power_a: float | None = None
    """Amplitude a of ``power``: min(lr, batch size * a * tokens^b), the batch in sequences (arXiv 2408.13359, tuned
    with sequences of 4,096 tokens). Default: 4"""
    power_b: float | None = None
    """Exponent b of ``power``, below 0. Default: -0.51"""

    def __post_init__(self) -> None:
        self.lr_warmup_steps = self.lr_warmup_steps or None  # 0 asks for what ``constant`` does
        self.lr_warmup_fraction = self.lr_warmup_fraction or None
        if isinstance(self.cooldown_ends, str | int):
            try:
                self.cooldown_ends = [int(word) for word in str(self.cooldown_ends).strip("[]").split(",")]
            except ValueError:
                raise UserError(
                    f"--train.cooldown_ends {self.cooldown_ends}: give steps with commas between them, e.g. 1000,2000"
                ) from None

    def check_schedule(self, name: str) -> None:
        """Raise a UserError for what cannot be, or would do nothing with the schedule of this name."""
        for option in ("lr_warmup_fraction", "min_lr", "cooldown_fraction"):
            if not 0 <= (getattr(self, option) or 0) <= 1:
                raise UserError(f"--train.{option} must lie in [0, 1], got {getattr(self, option)}")
        if (self.lr_warmup_steps or 0) < 0:
            raise UserError(f"--train.lr_warmup_steps must not be negative, got {self.lr_warmup_steps}")
        if self.power_b is not None and not self.power_b < 0:  # 0 would make ``power`` constant
            raise UserError(f"--train.power_b must be below 0, got {self.power_b}")
        above_zero = ("cooldown_steps", "cooldown_fraction", "power_a")
        check_above_zero({f"train.{option}": getattr(self, option) for option in above_zero})
        for length in ("lr_warmup", "cooldown"):
            if getattr(self, f"{length}_steps") and getattr(self, f"{length}_fraction"):
                raise UserError(f"--train.{length}_steps and --train.{length}_fraction exclude each other: choose one")
        for option, takers in takers_of_options().items():
            if getattr(self, option) is not None and name not in takers:
                raise UserError(
                    f"--train.{option} has no meaning with --schedule {name}: leave it out, or use --schedule"
                    f" {' or '.join(takers)}"
                )
        ends: Any = self.cooldown_ends or ()
        if any(later <= earlier for earlier, later in zip((0, *ends), ends, strict=False)):
            raise UserError(f"--train.cooldown_ends must be above 0 and increase, got {ends}")
        if SCHEDULES[name].needs_warmup and not (self.lr_warmup_steps or self.lr_warmup_fraction):
            raise UserError(f"--schedule {name} needs --train.lr_warmup_steps or --train.lr_warmup_fraction")

    def for_schedule(self: Options, name: str) -> Options:
        """The same without what a schedule has no use for: one set of options for runs with several schedules."""
        unused: dict[str, Any] = {option: None for option, takers in takers_of_options().items() if name not in takers}
        return replace(self, **unused)


@dataclass(frozen=True)
class Kind:
    """What one schedule has and the others have not."""

    takes: tuple[str, ...] = WARMUP
    """The options of :class:`ScheduleOptions` that it has a use for."""
    needs_warmup: bool = False
    shape: str | None = None
    """How it comes down, see :func:`cooled`: by default, or always, and then from the end of the warmup on."""
    min_lr: float = 0.0
    """Where it comes down to by default, as a ratio to the base learning rate."""
    fraction: float = 0.1
    """Of the run's optimizer steps that its cooldown takes by default."""


SCHEDULES = {
    "constant": Kind(takes=()),
    "warmup": Kind(needs_warmup=True),  # then constant
    "cosine": Kind((*WARMUP, "min_lr"), shape="cosine", min_lr=0.1),  # LitGPT's
    "linear": Kind((*WARMUP, "min_lr"), shape="linear", min_lr=0.1),
    # Warmup, stable, decay. arXiv 2405.18392, section 3.2: 1-sqrt beats linear; beyond 20% nothing more is gained.
    "wsd": Kind(COOLDOWN, shape="1-sqrt", fraction=0.2),
    # Several decays, each from the plateau (arXiv 2410.05192); a fraction of each stretch, as in its authors' trainer.
    "wsd-s": Kind((*COOLDOWN, "cooldown_ends"), shape="inverse", min_lr=0.1),
    # Eq. (7) of arXiv 2408.13359, then exponentially to 0 over the last tenth (sections 3 and 5.1).
    "power": Kind((*COOLDOWN, "power_a", "power_b"), shape="exponential"),
    # Re-warming (arXiv 2403.08763): up from where the last cosine ended, and down there again.
    "rewarm": Kind((*WARMUP, "min_lr"), needs_warmup=True, shape="cosine", min_lr=0.1),
}
if TYPE_CHECKING:
    ScheduleName = str
else:
    ScheduleName = Literal[*SCHEDULES]


@dataclass
class ScheduleChoice:
    """Which schedule a run has; a field of what a user says of it."""

    schedule: ScheduleName = "constant"
    """How the learning rate moves over the run: ``wsd`` (warmup, stable, decay; arXiv 2405.18392), ``wsd-s`` (several
    decays, 2410.05192), ``power`` (2408.13359), ``rewarm`` (2403.08763). muP's ratios between parameters stay"""


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule over a run; call it with the number of finished optimizer steps."""

    name: ScheduleName
    total_steps: int
    """Optimizer steps of the whole run."""
    warmup_steps: int = 0
    """Optimizer steps of linear warmup; step 0 has multiplier 0, as in LitGPT, and ``min_lr_ratio`` under rewarm."""
    min_lr_ratio: float = 0.0
    """Where it comes down to, as a ratio to ``base_lr``."""
    cooldowns: tuple[tuple[int, int], ...] = ()
    """(first, end) optimizer steps of each, in order: the last has multiplier ``min_lr_ratio`` at its end."""
    cooldown_shape: CooldownShape = "linear"
    base_lr: float = 1.0
    global_batch_size: int = 1
    """Sequences per optimizer step: beta of power's paper, which counted sequences of 4,096 tokens."""
    tokens_per_step: int = 1
    power_a: float = 4.0
    """This and b are from the end of the paper's section 4."""
    power_b: float = -0.51

    def __post_init__(self) -> None:
        if any(first >= end for first, end in self.cooldowns):
            raise UserError("a cooldown ends before it begins")

    @classmethod
    def of(cls, name: ScheduleName, options: ScheduleOptions, total_steps: int, **figures: float) -> Self:
        """The schedule of a run under a user's options.

        Args:
            name: As typed.
            options: Checked by :meth:`ScheduleOptions.check_schedule`.
            total_steps: Optimizer steps of the whole run.
            figures: Of the run, by their names here: ``base_lr``, ``global_batch_size``, ``tokens_per_step``.

        Raises:
            UserError: Something does not fit into the run.
        """
        kind = SCHEDULES[name]
        warmup = options.lr_warmup_steps or math.ceil((options.lr_warmup_fraction or 0) * total_steps)
        if warmup > total_steps:
            raise UserError(f"a warmup of {warmup:,} steps is longer than the run of {total_steps:,}: shorten it")
        known: dict[str, Any] = {key: value for key, value in vars(options).items() if value is not None} | figures
        known["min_lr_ratio"] = kind.min_lr if options.min_lr is None else options.min_lr
        if "cooldown_shape" in kind.takes:
            known["cooldown_shape"] = options.cooldown_shape or kind.shape
            if known["cooldown_shape"] == "inverse" and known["min_lr_ratio"] == 0:
                raise UserError("--train.cooldown_shape inverse never reaches 0: set --train.min_lr above 0, e.g. 0.1")
            known["cooldowns"] = place_cooldowns(total_steps, warmup, options, kind.fraction)
        known |= {"total_steps": total_steps, "warmup_steps": warmup}
        return cls(name, **{field: known[field] for field in used_fields(name) if field in known})

    def __call__(self, step: int) -> float:
        """The multiplier of the update that comes after ``step`` finished ones."""
        if step < self.warmup_steps:
            start = self.min_lr_ratio if self.name == "rewarm" else 0.0
            return start + (self.plateau(self.warmup_steps) - start) * (step / self.warmup_steps)
        shape, spans = self.descent
        for first, end in spans:
            if first <= step < end or step >= end == self.total_steps:
                level = self.plateau(first)
                # Power's plateau may have fallen below the ratio already: a cooldown never rises.
                progress = min(1.0, (step - first) / max(1, end - first))
                return cooled(level, min(level, self.min_lr_ratio), progress, shape)
        return self.plateau(step)

    def plateau(self, step: int) -> float:
        """The multiplier while the rate neither warms up nor cools down; power's is its paper's eta over eta_max."""
        if self.name != "power" or step == 0:
            return 1.0
        tokens = step * self.tokens_per_step
        return min(1.0, self.global_batch_size * self.power_a * tokens**self.power_b / self.base_lr)

    @property
    def descent(self) -> tuple[str, tuple[tuple[int, int], ...]]:
        """How it comes down, and the (first, end) optimizer steps over which it does."""
        kind = SCHEDULES[self.name]
        if kind.shape is None or "cooldown_shape" in kind.takes:
            return self.cooldown_shape, self.cooldowns
        return kind.shape, ((self.warmup_steps, self.total_steps),)

    @property
    def milestones(self) -> frozenset[int]:
        """Steps whose checkpoint is worth keeping: a run may be lengthened from them, wsd-s's from its cooled ends."""
        return frozenset(span[self.name == "wsd-s"] for span in self.cooldowns) - {0, self.total_steps}

    @property
    def plain(self) -> dict[str, Any]:
        """Name and fields, as records have them."""
        return {"name": self.name} | {field: getattr(self, field) for field in used_fields(self.name)}

    @property
    def words(self) -> str:
        """The schedule in words, for output and errors."""
        words = [self.name]
        if self.warmup_steps:
            words.append(f"{self.warmup_steps:,} warmup steps")
        shape, spans = self.descent
        if spans:
            steps = " and ".join(f"{first:,} to {end:,}" for first, end in spans)
            words.append(f"{shape} to {self.min_lr_ratio:g} in steps {steps}".removeprefix(f"{self.name} "))
        if self.name == "power":
            words.append(f"a {self.power_a:g}, b {self.power_b:g}")
        return ", ".join(words)

    def first_difference(self, other: "Schedule", steps: int) -> int | None:
        """The first of the steps 0 … ``steps`` - 1 whose multiplier is another one in ``other``; None for none."""
        if self == other:
            return None
        differ = (s for s in range(steps) if not math.isclose(self(s), other(s), rel_tol=1e-9, abs_tol=1e-12))
        return next(differ, None)


def takers_of_options() -> dict[str, list[str]]:
    """The schedules that take each option."""
    options = [field.name for field in fields(ScheduleOptions)]
    return {option: [name for name, kind in SCHEDULES.items() if option in kind.takes] for option in options}


def used_fields(name: ScheduleName) -> tuple[str, ...]:
    """The fields of a :class:`Schedule` that one of this name has a use for."""
    of_option = {
        "min_lr": ("min_lr_ratio",),
        "cooldown_shape": ("cooldowns", "cooldown_shape"),
        "power_a": ("base_lr", "global_batch_size", "tokens_per_step", "power_a", "power_b"),
    }
    more = (of_option.get(option, ()) for option in SCHEDULES[name].takes)
    return ("total_steps", "warmup_steps", *chain.from_iterable(more))


def recorded_schedule(content: dict[str, Any]) -> Schedule:
    """The schedule that a record tells of; version 0.1 told what it had no use for, too.

    Raises:
        UserError: There is no such schedule, or a field is of another type.
    """
    name = content.get("name")
    if name not in SCHEDULES:
        raise UserError(f"no schedule {name!r}")
    return parse(Schedule, {field: content[field] for field in ("name", *used_fields(name)) if field in content})


def cooled(start: float, end: float, progress: float, shape: str) -> float:
    """From ``start`` to ``end`` as ``progress`` goes from 0 to 1.

    ``cosine`` is half of one; ``1-sqrt`` is arXiv 2405.18392's; ``inverse`` interpolates between the inverses of the
    two ends (arXiv 2410.05192), so ``end`` must be above 0; ``exponential`` is exp(-progress), shifted and scaled to
    meet both ends, as the power scheduler decays to 0 (arXiv 2408.13359).
    """
    if shape == "inverse":
        return 1.0 / ((1.0 - progress) / start + progress / end)
    left = {
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        "linear": 1.0 - progress,
        "1-sqrt": 1.0 - math.sqrt(progress),
        "exponential": (math.exp(-progress) - math.exp(-1.0)) / (1.0 - math.exp(-1.0)),
    }[shape]
    return end + (start - end) * left


def place_cooldowns(
    total_steps: int, warmup_steps: int, options: ScheduleOptions, fraction: float
) -> tuple[tuple[int, int], ...]:
    """(first, end) optimizer steps of each cooldown; none depends on a later one, so a lengthened run keeps its own.

    The last one ends with the run; each takes the steps that were asked for, or a fraction, by default ``fraction``, of
    those since the end of the one before.

    Raises:
        UserError: One does not fit.
    """
    cooldowns: list[tuple[int, int]] = []
    ends: Any = options.cooldown_ends or ()  # a list by now
    if ends and ends[-1] > total_steps:
        raise UserError(
            f"--train.cooldown_ends {ends[-1]:,} is beyond the run of {total_steps:,} steps: leave it out, or raise"
            " --train.max_tokens"
        )
    before = 0
    for end in dict.fromkeys((*ends, total_steps)):  # the last may be named, too
        length = options.cooldown_steps or max(1, round((options.cooldown_fraction or fraction) * (end - before)))
        earliest = max(before, warmup_steps)
        if end - length < earliest:
            raise UserError(
                f"a cooldown of {length:,} steps to step {end:,} does not fit after step {earliest:,}, where the warmup"
                " or another cooldown ends: lower --train.cooldown_steps or --train.cooldown_fraction, or train longer"
            )
        cooldowns.append((end - length, end))
        before = end
    return tuple(cooldowns)
