"""Arguments as dataclasses, with the checks that need no files, and the frozen specification of a run."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import litgpt.args
from litgpt.config import Config
from litgpt.data import DataModule

from litgpt_warmstart.data.blocks import BlockDataModule
from litgpt_warmstart.data.ranges import ORDER_SEED
from litgpt_warmstart.data.reading import Reading
from litgpt_warmstart.data.use import DataUse, class_path, data_arguments, init_args
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.method.loss import LossChoice
from litgpt_warmstart.method.parametrization import ParametrizationName
from litgpt_warmstart.method.schedule import (
    COOLDOWNS,
    DECAYING,
    CooldownShape,
    Schedule,
    ScheduleName,
    default_min_lr_ratio,
)
from litgpt_warmstart.run.checkpoint import weights_sha256
from litgpt_warmstart.run.identity import NO_CLIPPING, plain
from litgpt_warmstart.run.optimizer import ChosenOptimizer

CompileMode = Literal["reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


COOLING = tuple(COOLDOWNS)
DECAY_OPTIONS: dict[str, tuple[ScheduleName, ...]] = {
    "min_lr": DECAYING, "cooldown_shape": COOLING, "cooldown_steps": COOLING, "cooldown_fraction": COOLING,
    "cooldown_ends": ("wsd-s",), "power_a": ("power",), "power_b": ("power",),
}  # fmt: skip
"""Training arguments that only some schedules have a use for."""


@dataclass
class TrainArgs(litgpt.args.TrainArgs):
    """Training-related arguments, as in ``litgpt pretrain``"""

    save_interval: int | None = 1000
    """Number of optimizer steps between saving checkpoints; one more is saved where a cooldown begins, of ``wsd-s``
    where it ends. null saves none but the last"""
    log_interval: int = 1
    """Number of optimizer steps between logging calls: rows of metrics.csv and the logger's; where the output is no
    terminal, which has a progress bar, some 20 of them are printed"""
    global_batch_size: int | None = None
    """Number of sequences per optimizer step. Default: what the base was tuned with, else the paper's for its scale"""
    micro_batch_size: int | None = None
    """Number of sequences per forward and backward pass, a divisor of the global batch. Default: the fastest that fits,
    found by trying where the run is long enough, else the largest up to 4. A resumed run stays with its own"""
    lr_warmup_steps: int | None = None
    """Number of optimizer steps with learning rate warmup active, for every schedule but ``constant``"""
    lr_warmup_fraction: float | None = None
    """The fraction of the run's optimizer steps to use for learning rate warmup"""
    epochs: int | None = None
    """Not supported: a warmstart repeats no token"""
    max_tokens: int | None = None
    """Total number of tokens to train on, cut to whole optimizer steps. Goes before ``tokens_per_param``"""
    max_steps: int | None = None
    """Limits the number of optimizer steps to run"""
    max_time: float | None = None
    """Limits the number of seconds to train for"""
    max_seq_length: int | None = None
    """Limits the length of samples, in tokens"""
    tie_embeddings: bool | None = None
    """Not supported: muP needs a readout of its own"""
    max_norm: float | None = 1.0
    """Clip gradients to this total norm; null turns it off"""
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
        """Leaves LitGPT's checks to :meth:`check`, which tells in one line."""
        if isinstance(self.cooldown_ends, str | int):
            words = str(self.cooldown_ends).strip("[]").split(",")
            if all(word.strip().isdigit() for word in words):
                self.cooldown_ends = [int(word) for word in words]

    def check(self, schedule: ScheduleName) -> None:
        """Raise a UserError for what this trainer refuses or what would do nothing."""
        if self.epochs is not None:
            raise UserError("--train.epochs is not supported: a run reads each token once; set --train.max_tokens")
        if self.tie_embeddings:
            raise UserError("--train.tie_embeddings is not supported: muP scales the embedding and the readout apart")
        for name in ("save_interval", "log_interval", "global_batch_size", "micro_batch_size", "max_tokens",
                     "max_steps", "max_time", "max_seq_length", "max_norm", "cooldown_steps", "cooldown_fraction",
                     "power_a"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value > 0:  # nor NaN
                raise UserError(f"--train.{name} must be above 0, got {value}")
        if self.min_lr is not None and not 0 <= self.min_lr <= 1:
            raise UserError(f"--train.min_lr is a ratio to the learning rate and must lie in [0, 1], got {self.min_lr}")
        if self.lr_warmup_steps and self.lr_warmup_fraction:
            raise UserError("--train.lr_warmup_steps and --train.lr_warmup_fraction exclude each other: choose one")
        if (self.lr_warmup_steps or 0) < 0 or not 0 <= (self.lr_warmup_fraction or 0) <= 1:
            raise UserError("--train.lr_warmup_steps must not be negative, --train.lr_warmup_fraction lie in [0, 1]")
        warms_up = bool(self.lr_warmup_steps or self.lr_warmup_fraction)
        if schedule == "constant" and warms_up:
            raise UserError("--schedule constant has no warmup: use --schedule warmup, or leave the warmup length out")
        if schedule in ("warmup", "rewarm") and not warms_up:
            raise UserError(f"--schedule {schedule} needs --train.lr_warmup_steps or --train.lr_warmup_fraction")
        self._check_decay(schedule)

    def for_schedule(self, schedule: ScheduleName) -> "TrainArgs":
        """The same without what the schedule has no use for: one set of arguments for runs with several schedules."""
        unused = {name: None for name, schedules in DECAY_OPTIONS.items() if schedule not in schedules}
        if schedule == "constant":
            unused |= dict(lr_warmup_steps=None, lr_warmup_fraction=None)
        return replace(self, **unused)

    def _check_decay(self, schedule: ScheduleName) -> None:
        """Raise a UserError for a decay that the schedule does not have, or that cannot be."""
        for name, schedules in DECAY_OPTIONS.items():
            if getattr(self, name) is not None and schedule not in schedules:
                raise UserError(
                    f"--train.{name} has no meaning with --schedule {schedule}: leave it out, or use --schedule"
                    f" {' or '.join(schedules)}"
                )
        if self.cooldown_steps and self.cooldown_fraction:
            raise UserError("--train.cooldown_steps and --train.cooldown_fraction exclude each other: choose one")
        if self.cooldown_fraction is not None and self.cooldown_fraction > 1:
            raise UserError(f"--train.cooldown_fraction must lie in (0, 1], got {self.cooldown_fraction}")
        if self.power_b is not None and self.power_b >= 0:
            raise UserError(f"--train.power_b must be below 0, got {self.power_b}")
        ends = self.cooldown_ends or []
        if not isinstance(ends, list):
            raise UserError(f"--train.cooldown_ends {ends}: give steps with commas between them, e.g. 1000,2000")
        if any(b <= a for a, b in zip([0, *ends], ends, strict=False)):
            raise UserError(f"--train.cooldown_ends must be above 0 and increase, got {ends}")
        min_lr = default_min_lr_ratio(schedule) if self.min_lr is None else self.min_lr
        if schedule in COOLDOWNS and (self.cooldown_shape or COOLDOWNS[schedule].shape) == "inverse" and min_lr == 0:
            raise UserError("--train.cooldown_shape inverse never reaches 0: set --train.min_lr above 0, e.g. 0.1")


@dataclass
class EvalArgs(litgpt.args.EvalArgs):
    """Evaluation-related arguments, as in ``litgpt pretrain``"""

    interval: int | None = None
    """Number of optimizer steps between validations. Default: a tenth of the run, rounded up"""
    max_new_tokens: int | None = None
    """Not supported: pretraining generates no text while it runs"""
    max_iters: int = 100
    """Number of validation blocks (sequences), whatever the micro-batch; fewer where the data has fewer"""
    initial_validation: bool = True
    """Whether to validate before the first step"""
    final_validation: bool = True
    """Whether to validate after the last step"""
    evaluate_example: str | int = "first"
    """Not supported: for finetuning"""

    def check(self) -> None:
        """Raise a UserError for what this trainer refuses."""
        if self.max_new_tokens is not None:
            raise UserError("--eval.max_new_tokens is not supported: generate from the checkpoint instead")
        if self.evaluate_example != "first":
            raise UserError("--eval.evaluate_example is for finetuning: leave it out")
        for name in ("interval", "max_iters"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise UserError(f"--eval.{name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides a run; ``fit`` reads this and its state, nothing else."""

    command: str
    """The command that makes the run, as typed: ``warmstart`` or ``warmstart_scratch``."""
    config: Config
    """The target."""
    mup_base_config: Config
    """Where the learning rate was tuned; the target's own config under standard parametrization."""
    parametrization: ParametrizationName
    base_lr: float
    schedule: Schedule
    data: DataModule
    train: TrainArgs
    eval: EvalArgs
    log: litgpt.args.LogArgs
    optimizer: ChosenOptimizer
    precision: str
    out_dir: Path
    max_steps: int
    """Optimizer steps of the whole run: the token budget in whole steps."""
    block_size: int
    """Tokens per sequence that count; a block stores one more."""
    source_dir: Path | None = None
    """Checkpoint folder that ``growth`` starts from."""
    growth: Growth | None = None
    initial_checkpoint_dir: Path | None = None
    """Weights to start from as they are; excludes ``growth``."""
    mup_base_dir: Path | None = None
    """Checkpoint folder that tells where the learning rate was tuned; None for a scale or a config."""
    tokens_per_param: float = 20.0
    """What the budget is meant to be per parameter, for telling what would fit."""
    seen: tuple[DataUse, ...] = ()
    """What must not be read again, oldest first."""
    resume: bool | Literal["auto"] | Path = False
    overwrite: bool = False
    track: int | None = None
    """Optimizer steps between two recordings of norms; None records nothing."""
    tokenizer_dir: Path | None = None
    logger_name: str = "tensorboard"
    seed: int = 42
    loss_impl: LossChoice = "auto"
    find_micro_batch: bool = False
    """Whether ``train.micro_batch_size`` is only a first guess."""
    compile: bool | CompileMode = True
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    """The command's arguments with every default filled in, for hyperparameters.yaml."""

    def __post_init__(self) -> None:
        batch, micro = self.train.global_batch_size, self.train.micro_batch_size
        if batch % micro:  # or another batch would be trained than recorded
            raise UserError(
                f"--train.global_batch_size {batch} is no multiple of --train.micro_batch_size {micro}: change one"
            )

    @property
    def accumulation_iters(self) -> int:
        """Micro-batches per optimizer step."""
        return self.train.global_batch_size // self.train.micro_batch_size

    @property
    def tokens_per_step(self) -> int:
        """Tokens that count per optimizer step."""
        return self.train.global_batch_size * self.block_size

    def identity(self) -> dict[str, Any]:
        """What decides the run's numbers, as plain values, the most telling first: the one definition of what a run is.

        Who compares runs names what they look at of it: see :mod:`litgpt_warmstart.run.identity`. What is not known
        yet, such as the fingerprint of data that is not prepared, is left out.
        """
        start, data = self.source_dir or self.initial_checkpoint_dir, self.data
        ours = isinstance(data, BlockDataModule)
        return plain(
            {
                "lr": self.base_lr,
                "train.global_batch_size": self.train.global_batch_size,
                "seed": self.seed,
                "parametrization": self.parametrization,
                "growth": self.growth.options if self.growth else {},
                "target": asdict(self.config),
                "mup_base": asdict(self.mup_base_config),
                "optimizer": self.optimizer.plain,
                "precision": self.precision,
                "train.max_seq_length": self.block_size,
                "train.max_norm": self.train.max_norm or NO_CLIPPING,
                "tokens": self.max_steps * self.tokens_per_step,
                "schedule": asdict(self.schedule),
                "eval": {"interval": self.eval.interval, "max_iters": self.eval.max_iters},
                "starts_from": weights_sha256(start) if start else None,
                "data": class_path(data) if not ours else data.fingerprint if data.is_prepared else None,
                "data.order_seed": (data.order_seed or ORDER_SEED) if ours else None,
                "data.init_args": None if ours else data_arguments(init_args(data)),
            }
        )

    @property
    def reading(self) -> Reading:
        """What the run asks of its data."""
        return Reading(
            data=self.data,
            block_size=self.block_size,
            micro_batch_size=self.train.micro_batch_size,
            global_batch_size=self.train.global_batch_size,
            max_steps=self.max_steps,
            num_classes=self.config.padded_vocab_size,
            seed=self.seed,
            seen=self.seen,
            tokenizer_dir=self.tokenizer_dir,
            tokens_per_param=self.tokens_per_param,
        )
