"""Step -> learning-rate multiplier: one class a schedule, which names the options that it has a use for.

The multiplier is applied to every parameter group's own ``base_lr * lr_scale``, so muP's ratios between groups hold
under each schedule (arXiv 2203.03466). A new schedule is a class here, and what it lets the user choose a field of
:class:`ScheduleOptions`: ``--schedule`` and ``--train`` have them from here.
"""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.cooldowns import CooldownShape, cooled, place_cooldowns
from litgpt_warmstart.parsing import parse

Warmup = Literal["none", "optional", "needed"]
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
        if isinstance(self.cooldown_ends, str | int):
            words = str(self.cooldown_ends).strip("[]").split(",")
            if all(word.strip().isdigit() for word in words):
                self.cooldown_ends = [int(word) for word in words]

    def check_schedule(self, name: str) -> None:
        """Raise a UserError for what cannot be, or would do nothing with the schedule of this name."""
        schedule = SCHEDULES[name]
        if self.min_lr is not None and not 0 <= self.min_lr <= 1:
            raise UserError(f"--train.min_lr is a ratio to the learning rate and must lie in [0, 1], got {self.min_lr}")
        for what in ("lr_warmup", "cooldown"):
            steps, fraction = f"{what}_steps", f"{what}_fraction"
            if getattr(self, steps) and getattr(self, fraction):
                raise UserError(f"--train.{steps} and --train.{fraction} exclude each other: choose one")
        if (self.lr_warmup_steps or 0) < 0 or not 0 <= (self.lr_warmup_fraction or 0) <= 1:
            raise UserError("--train.lr_warmup_steps must not be negative, --train.lr_warmup_fraction lie in [0, 1]")
        warms_up = bool(self.lr_warmup_steps or self.lr_warmup_fraction)
        if schedule.warmup == "none" and warms_up:
            raise UserError(f"--schedule {name} has no warmup: use --schedule warmup, or leave the warmup length out")
        if schedule.warmup == "needed" and not warms_up:
            raise UserError(f"--schedule {name} needs --train.lr_warmup_steps or --train.lr_warmup_fraction")
        for option, takers in takers_of_options().items():
            if getattr(self, option) is not None and name not in takers:
                raise UserError(
                    f"--train.{option} has no meaning with --schedule {name}: leave it out, or use --schedule"
                    f" {' or '.join(takers)}"
                )
        if self.cooldown_fraction is not None and self.cooldown_fraction > 1:
            raise UserError(f"--train.cooldown_fraction must lie in (0, 1], got {self.cooldown_fraction}")
        if self.power_b is not None and self.power_b >= 0:
            raise UserError(f"--train.power_b must be below 0, got {self.power_b}")
        ends = self.cooldown_ends or []
        if not isinstance(ends, list):
            raise UserError(f"--train.cooldown_ends {ends}: give steps with commas between them, e.g. 1000,2000")
        if any(later <= earlier for earlier, later in zip([0, *ends], ends, strict=False)):
            raise UserError(f"--train.cooldown_ends must be above 0 and increase, got {ends}")
        if issubclass(schedule, Cooling):
            min_lr = schedule.default_min_lr if self.min_lr is None else self.min_lr
            if (self.cooldown_shape or schedule.default_shape) == "inverse" and min_lr == 0:
                raise UserError("--train.cooldown_shape inverse never reaches 0: set --train.min_lr above 0, e.g. 0.1")

    def for_schedule(self: Options, name: str) -> Options:
        """The same without what a schedule has no use for: one set of options for runs with several schedules."""
        unused: dict[str, Any] = {option: None for option, takers in takers_of_options().items() if name not in takers}
        if SCHEDULES[name].warmup == "none":
            unused |= dict(lr_warmup_steps=None, lr_warmup_fraction=None)
        return replace(self, **unused)


@dataclass(frozen=True)
class RunFigures:
    """What a schedule may know of the run."""

    total_steps: int
    """Optimizer steps of the whole run."""
    base_lr: float = 1.0
    global_batch_size: int = 1
    """Sequences per optimizer step."""
    tokens_per_step: int = 1


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule over a run; call it with the number of finished optimizer steps."""

    name: ClassVar[str] = ""
    """As typed; a class without one is no schedule of its own."""
    warmup: ClassVar[Warmup] = "optional"
    takes: ClassVar[tuple[str, ...]] = ()
    """The other options of :class:`ScheduleOptions` that it has a use for."""

    total_steps: int
    """Optimizer steps of the whole run."""
    warmup_steps: int = 0
    """Optimizer steps of linear warmup; step 0 has multiplier 0, as in LitGPT, and ``min_lr_ratio`` under rewarm."""

    @classmethod
    def of(cls, options: ScheduleOptions, run: RunFigures) -> Self:
        """The schedule of a run under a user's options.

        Raises:
            UserError: Something does not fit into the run.
        """
        warmup = options.lr_warmup_steps or math.ceil((options.lr_warmup_fraction or 0) * run.total_steps)
        if warmup > run.total_steps:
            raise UserError(f"a warmup of {warmup:,} steps is longer than the run of {run.total_steps:,}: shorten it")
        return cls(total_steps=run.total_steps, warmup_steps=warmup)

    def __call__(self, step: int) -> float:
        """The multiplier of the update that comes after ``step`` finished ones."""
        if step < self.warmup_steps:
            return self.risen(step / self.warmup_steps)
        return self.after_warmup(step)

    def risen(self, share: float) -> float:
        """The multiplier when a share of the warmup is done."""
        return share * self.plateau(self.warmup_steps)

    def after_warmup(self, step: int) -> float:
        """The multiplier from the end of the warmup on."""
        return self.plateau(step)

    def plateau(self, step: int) -> float:
        """The multiplier while the rate neither warms up nor cools down."""
        return 1.0

    @property
    def milestones(self) -> frozenset[int]:
        """Steps whose checkpoint is worth keeping: a run may be lengthened from them."""
        return frozenset()

    @property
    def plain(self) -> dict[str, Any]:
        """Name and fields, as records have them."""
        return {"name": self.name, **asdict(self)}

    @property
    def words(self) -> str:
        """The schedule in words, for output and errors."""
        warmup = [f"{self.warmup_steps:,} warmup steps"] if self.warmup_steps else []
        return ", ".join([self.name, *warmup, *self.more_words()])

    def more_words(self) -> list[str]:
        """What else there is to say of it."""
        return []

    def first_difference(self, other: "Schedule", steps: int) -> int | None:
        """The first of the steps 0 … ``steps`` - 1 whose multiplier is another one in ``other``; None for none."""
        if self == other:
            return None
        differ = (s for s in range(steps) if not math.isclose(self(s), other(s), rel_tol=1e-9, abs_tol=1e-12))
        return next(differ, None)


@dataclass(frozen=True)
class Constant(Schedule):
    """The base learning rate throughout."""

    name = "constant"
    warmup = "none"


@dataclass(frozen=True)
class LinearWarmup(Schedule):
    """Up to the base learning rate, and then constant."""

    name = "warmup"
    warmup = "needed"


@dataclass(frozen=True)
class Cosine(Schedule):
    """Down along half a cosine from the end of the warmup on, as LitGPT's."""

    name = "cosine"
    takes = ("min_lr",)

    min_lr_ratio: float = 0.1
    """Where the decay ends, as a ratio to ``base_lr``."""

    @classmethod
    def of(cls, options: ScheduleOptions, run: RunFigures) -> Self:
        schedule = super().of(options, run)
        return schedule if options.min_lr is None else replace(schedule, min_lr_ratio=options.min_lr)

    def risen(self, share: float) -> float:
        return share

    def after_warmup(self, step: int) -> float:
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        return self.min_lr_ratio + (1.0 - self.min_lr_ratio) * self.left(progress)

    def left(self, progress: float) -> float:
        """How much of the way down is left."""
        return 0.5 * (1.0 + math.cos(math.pi * progress))

    def more_words(self) -> list[str]:
        return [f"to {self.min_lr_ratio:g} in {self.total_steps:,} steps"]


@dataclass(frozen=True)
class Linear(Cosine):
    """Down along a line from the end of the warmup on."""

    name = "linear"

    def left(self, progress: float) -> float:
        return 1.0 - progress


@dataclass(frozen=True)
class Rewarm(Cosine):
    """Re-warming (arXiv 2403.08763): up from where the last cosine ended, and down there again."""

    name = "rewarm"
    warmup = "needed"

    def risen(self, share: float) -> float:
        return self.min_lr_ratio + (1.0 - self.min_lr_ratio) * share


@dataclass(frozen=True)
class Cooling(Schedule):
    """A plateau, and cooldowns."""

    takes = ("min_lr", "cooldown_shape", "cooldown_steps", "cooldown_fraction")
    default_shape: ClassVar[CooldownShape] = "linear"
    default_fraction: ClassVar[float] = 0.1
    """Of the run's optimizer steps; where there are several cooldowns, of those since the end of the one before."""
    default_min_lr: ClassVar[float] = 0.0

    min_lr_ratio: float = 0.0
    """Where a cooldown ends, as a ratio to ``base_lr``."""
    cooldowns: tuple[tuple[int, int], ...] = ()
    """(first, end) optimizer steps of each cooldown, in order: the last has multiplier ``min_lr_ratio`` at its end."""
    cooldown_shape: CooldownShape = "linear"

    def __post_init__(self) -> None:
        # A record gives lists.
        object.__setattr__(self, "cooldowns", tuple((first, end) for first, end in self.cooldowns))
        if any(first >= end for first, end in self.cooldowns):
            raise UserError("a cooldown ends before it begins")

    @classmethod
    def of(cls, options: ScheduleOptions, run: RunFigures) -> Self:
        schedule = super().of(options, run)
        ends = options.cooldown_ends if isinstance(options.cooldown_ends, list) else []
        fraction = options.cooldown_fraction or cls.default_fraction
        return replace(
            schedule,
            min_lr_ratio=cls.default_min_lr if options.min_lr is None else options.min_lr,
            cooldowns=place_cooldowns(run.total_steps, schedule.warmup_steps, options.cooldown_steps, fraction, ends),
            cooldown_shape=options.cooldown_shape or cls.default_shape,
        )

    def after_warmup(self, step: int) -> float:
        for first, end in self.cooldowns:
            if first <= step < end or step >= end == self.total_steps:
                level = self.plateau(first)
                # Power's plateau may have fallen below the ratio already: a cooldown never rises.
                progress = min(1.0, (step - first) / (end - first))
                return cooled(level, min(level, self.min_lr_ratio), progress, self.cooldown_shape)
        return self.plateau(step)

    @property
    def milestones(self) -> frozenset[int]:
        return frozenset(first for first, _ in self.cooldowns) - {0, self.total_steps}

    def more_words(self) -> list[str]:
        spans = " and ".join(f"{first:,} to {end:,}" for first, end in self.cooldowns)
        return [f"{self.cooldown_shape} to {self.min_lr_ratio:g} in steps {spans}"]


@dataclass(frozen=True)
class Wsd(Cooling):
    """Warmup, stable, decay. arXiv 2405.18392, section 3.2: 1-sqrt beats linear; beyond 20% nothing more is gained."""

    name = "wsd"
    default_shape = "1-sqrt"
    default_fraction = 0.2


@dataclass(frozen=True)
class WsdS(Cooling):
    """Several decays, each from the plateau (arXiv 2410.05192); a fraction of each stretch, as in its authors' trainer.

    A run goes on from where a cooldown has ended.
    """

    name = "wsd-s"
    takes = (*Cooling.takes, "cooldown_ends")
    default_shape = "inverse"
    default_min_lr = 0.1

    @property
    def milestones(self) -> frozenset[int]:
        return frozenset(end for _, end in self.cooldowns) - {0, self.total_steps}


@dataclass(frozen=True)
class Power(Cooling):
    """Eq. (7) of arXiv 2408.13359, then exponentially to 0 over the last tenth (sections 3 and 5.1)."""

    name = "power"
    takes = (*Cooling.takes, "power_a", "power_b")
    default_shape = "exponential"

    base_lr: float = 1.0
    global_batch_size: int = 1
    """Sequences per optimizer step: beta of the paper, which counted sequences of 4,096 tokens."""
    tokens_per_step: int = 1
    power_a: float = 4.0
    """This and b are from the end of the paper's section 4."""
    power_b: float = -0.51

    @classmethod
    def of(cls, options: ScheduleOptions, run: RunFigures) -> Self:
        asked = {"power_a": options.power_a, "power_b": options.power_b}
        known = {name: getattr(run, name) for name in ("base_lr", "global_batch_size", "tokens_per_step")}
        given = {name: value for name, value in asked.items() if value is not None}
        return replace(super().of(options, run), **known, **given)

    def plateau(self, step: int) -> float:
        """The paper's eta over ``base_lr``, which is its eta_max."""
        if step == 0:
            return 1.0
        tokens = step * self.tokens_per_step
        return min(1.0, self.global_batch_size * self.power_a * tokens**self.power_b / self.base_lr)

    def more_words(self) -> list[str]:
        return [f"a {self.power_a:g}, b {self.power_b:g}", *super().more_words()]


SCHEDULES: dict[str, type[Schedule]] = {
    cls.name: cls for cls in (Constant, LinearWarmup, Cosine, Linear, Wsd, WsdS, Power, Rewarm)
}
if TYPE_CHECKING:
    ScheduleName = str
else:
    ScheduleName = Literal[*SCHEDULES]


def takers_of_options() -> dict[str, list[str]]:
    """The schedules that take each option, but for the warmup's."""
    options = [field.name for field in fields(ScheduleOptions) if not field.name.startswith("lr_warmup")]
    return {option: [name for name, cls in SCHEDULES.items() if option in cls.takes] for option in options}


def recorded_schedule(content: dict[str, Any]) -> Schedule:
    """The schedule that a record tells of; version 0.1 told what it had no use for, too.

    Raises:
        UserError: There is no such schedule, or a field is of another type.
    """
    name = content.get("name")
    if name not in SCHEDULES:
        raise UserError(f"no schedule {name!r}")
    cls = SCHEDULES[name]
    return parse(cls, {field.name: content[field.name] for field in fields(cls) if field.name in content})
