"""Arguments as dataclasses, with the checks that need no files, and the frozen specification of a run."""

import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import litgpt.args
from litgpt.args import LogArgs
from litgpt.config import Config
from litgpt.data import DataModule
from litgpt.types import LoggerChoice

from litgpt_warmstart.data.blocks import ORDER_SEED
from litgpt_warmstart.data.prepared_text import PreparedText
from litgpt_warmstart.data.use import Reading, class_path, data_arguments, init_args
from litgpt_warmstart.edge import inheriting_docs
from litgpt_warmstart.errors import UserError, check_above_zero
from litgpt_warmstart.method.flops import hoffmann_flops_per_token, matmul_flops_per_token
from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.method.loss import LossChoice, LossImpl
from litgpt_warmstart.method.parametrization import ParametrizationName
from litgpt_warmstart.method.schedule import Schedule, ScheduleChoice, ScheduleName, ScheduleOptions
from litgpt_warmstart.run.checkpoint import weights_sha256
from litgpt_warmstart.run.identity import NO_CLIPPING, plain
from litgpt_warmstart.run.optimizer import ChosenOptimizer

Precision = Literal["bf16-true", "bf16-mixed", "32-true", "16-mixed"]
CompileMode = Literal["reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
"""Modes of torch.compile that replay a step from CUDA graphs, where there is CUDA."""
Strategy = Literal["auto", "ddp", "fsdp"]
MIN_TRACKED_BLOCK = 8
"""Tokens; a model cannot show in fewer that it copies."""


@inheriting_docs
@dataclass
class TrainArgs(ScheduleOptions, litgpt.args.TrainArgs):
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
    """Number of sequences per forward and backward pass of a device, a divisor of its part of the global batch.
    Default: the fastest that fits, found by trying where the run is long enough, else by the model's size, on a CPU 4
    at most. A resumed run stays with its own"""
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

    def check(self, schedule: ScheduleName) -> None:
        """Raise a UserError for what this trainer refuses or what would do nothing."""
        if self.epochs is not None:
            raise UserError("--train.epochs is not supported: a run reads each token once; set --train.max_tokens")
        if self.tie_embeddings:
            raise UserError("--train.tie_embeddings is not supported: muP scales the embedding and the readout apart")
        check_above_zero({f"train.{name}": getattr(self, name) for name in (
            "save_interval", "log_interval", "global_batch_size", "micro_batch_size", "max_tokens", "max_steps",
            "max_time", "max_seq_length", "max_norm",
        )})  # fmt: skip
        self.check_schedule(schedule)


@dataclass
class EvalArgs(litgpt.args.EvalArgs):
    """Evaluation-related arguments, as in ``litgpt pretrain``"""

    interval: int | None = None
    """Number of optimizer steps between validations. Default: a tenth of the run, rounded up"""
    max_new_tokens: int | None = None
    """Number of tokens that follow ``sample``. Default: 32"""
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
        if self.evaluate_example != "first":
            raise UserError("--eval.evaluate_example is for finetuning: leave it out")
        names = ("interval", "max_iters", "max_new_tokens")
        check_above_zero({f"eval.{name}": getattr(self, name) for name in names})


@inheriting_docs
@dataclass
class RunArgs(ScheduleChoice):
    """What a user says of a run, whichever way its weights begin; every command that trains has these options."""

    tokens_per_param: float = 20.0
    """Tokens to train on per parameter of the target"""
    lr: float | None = None
    """Learning rate at the muP base; muP carries it to the target's width. Default: that of the base's record, else
    the paper's for the scale that is the muP base"""
    mup_base: str | None = None
    """Where the learning rate was tuned: a scale, a LitGPT name, a model_config.yaml, or a checkpoint folder, whose
    record then gives learning rate, batch size, data, and where its data ended. Default: what the base's record says,
    else the base's own shapes, else the target's"""
    parametrization: ParametrizationName | None = None
    """What carries the learning rate from the muP base: ``mup`` over width, ``completep`` (arXiv 2505.01618) over width
    and depth, ``sp`` (standard) over nothing. Default: what it was tuned under, and ``completep`` where the depth
    differs"""
    scale_eps: bool | None = None
    """Whether Adam's eps is divided as the parametrization's gradients are: by n_embd over the muP base's, and in the
    blocks, under ``completep``, by n_layer over it, too. Default: under ``completep``"""
    precision: Literal["bf16-true", "bf16-mixed", "32-true", "16-mixed", None] = None
    """The precision to use for training. Determines a compatible precision setting by default: bf16-mixed or 16-mixed
    on a GPU, 32-true on a CPU"""
    resume: bool | Literal["auto"] | Path = False
    """Path to a checkpoint directory to resume from in case training was interrupted, or ``True`` to resume from the
    newest checkpoint in ``out_dir`` that is whole. An error will be raised if no checkpoint is found. Passing
    ``'auto'`` will resume from it but not error if no checkpoint exists"""
    overwrite: bool = False
    """Replace a run that ``out_dir`` already holds; your own files there stay"""
    data: DataModule | None = None
    """Where tokens come from, among others: ``SlimPajama6B``, ``PreparedText`` (any text from the Hub or a folder),
    ``StdlibText`` (embedded), or LitGPT's ``TextFiles``, ``LitData``, ``TinyLlama``, ``OpenWebText``, ``TinyStories``,
    ``MicroLlama``. Default: the base's, where that is prepared here, and ``SlimPajama6B`` where there is no base"""
    train: TrainArgs = field(default_factory=TrainArgs)
    """Training-related arguments. See ``litgpt_warmstart.run.spec.TrainArgs`` for details"""
    eval: EvalArgs = field(default_factory=EvalArgs)
    """Evaluation-related arguments. See ``litgpt_warmstart.run.spec.EvalArgs`` for details"""
    log: LogArgs = field(default_factory=LogArgs)
    """Logging-related arguments, for wandb and litlogger"""
    optimizer: str | dict = "AdamW"
    """An Adam-like optimizer's name (such as "AdamW") or config, or ``Muon``, which has AdamW for all but the blocks'
    matrices. ``lr`` goes before its own"""
    devices: int | str = 1
    """How many devices of each node to use, "auto" for all. On a machine without CUDA, processes, a core each"""
    num_nodes: int = 1
    """How many nodes the code is being run on, each with as many devices"""
    strategy: Strategy = "auto"
    """How several devices share a run: ``ddp`` (each holds all of the model), ``fsdp`` (each a part of every weight,
    gradient and moment), or ``auto``: ddp where a device holds all of them, else fsdp"""
    tokenizer_dir: Path | None = None
    """Optional path to the tokenizer dir that was used for preprocessing the dataset. Only some data modules require
    this. Default: the base's"""
    logger_name: LoggerChoice = "tensorboard"
    """The name of the logger to send metrics to; metrics.csv is written in any case"""
    seed: int = 42
    """The random seed of the initialization and the perturbation"""
    compile: bool | CompileMode = True
    """Whether to compile the model, or torch.compile's mode: ``reduce-overhead`` (CUDA graphs, for a GPU alone),
    ``max-autotune``, ``max-autotune-no-cudagraphs``. Without a compiler, training goes on without"""
    loss_impl: LossChoice = "auto"
    """Head and cross entropy: ``full`` (all logits at once), ``chunked`` (some at a time), or ``auto``: chunked
    where it can be taken, and on a GPU full where that was tried and is faster. A resumed run stays with its own"""
    keep_memory: bool = True
    """Whether a run on a CPU keeps memory that is given back for its next buffers: faster, and up to a third more"""
    track: int | None = None
    """Number of optimizer steps between two recordings of the size of every layer's output and of every weight, and of
    how well tokens are copied, in norms.csv; also before the first step and after the last. Default: none"""
    sample: str | None = None
    """A prompt: at each validation the likeliest tokens after it are printed. Training's numbers stay the same"""
    keep_last: int | None = None
    """Number of ``step-*/`` folders that stay: when a new one is whole, older ones of this run are removed, but for
    those where a cooldown begins or has ended, and any with a file of yours inside. Default: all"""

    def check(self) -> None:
        """Raise a UserError for what cannot be, whatever the model."""
        if self.resume and self.overwrite:
            raise UserError("--resume goes on with the run that --overwrite would replace: leave one of them out")
        self.train.check(self.schedule)
        self.eval.check()
        names = ("tokens_per_param", "track", "num_nodes", "keep_last")
        check_above_zero({name: getattr(self, name) for name in names})
        if self.eval.max_new_tokens is not None and self.sample is None:
            raise UserError("--eval.max_new_tokens is for --sample: give a prompt, or leave it out")
        if self.keep_last is not None and self.train.save_interval is None:
            raise UserError("--keep_last has nothing to remove with --train.save_interval null: leave one of them out")
        if hasattr(self.data, "prompt_style"):
            raise UserError(
                f"--data {type(self.data).__name__} is for instruction tuning: take one for pretraining, e.g. TextFiles"
            )

    def written(self) -> dict[str, Any]:
        """The options as hyperparameters.yaml has them; how to begin is no part of what a run is."""
        told = {option.name: getattr(self, option.name) for option in fields(self)}
        del told["resume"], told["overwrite"]
        return told | {
            "data": self.data and {"class_path": class_path(self.data), "init_args": init_args(self.data)},
            "train": asdict(self.train),
            "eval": asdict(self.eval),
            "log": asdict(self.log),
            "tokenizer_dir": self.tokenizer_dir and str(self.tokenizer_dir),
        }


@dataclass(frozen=True, kw_only=True)
class RunSpec(Reading):
    """Everything that decides a run, what it reads first of all; ``fit`` reads this and its state, nothing else."""

    command: str
    """The command that makes the run, as typed: ``warmstart`` or ``warmstart_scratch``."""
    args: RunArgs
    """As typed, and what was left out filled in; the micro-batch and the way of the loss once the device was asked."""
    own: dict[str, Any]
    """The command's other arguments, for hyperparameters.yaml."""
    config: Config
    """The target."""
    mup_base_config: Config
    """Where the learning rate was tuned; the target's own config under standard parametrization."""
    parametrization: ParametrizationName
    scale_eps: bool
    base_lr: float
    schedule: Schedule
    optimizer: ChosenOptimizer
    precision: Precision
    compile: bool | CompileMode
    out_dir: Path
    val_interval: int
    """Optimizer steps between two validations."""
    start_dir: Path | None = None
    """Checkpoint folder that the weights come from: grown, or without a growth as they are; None from scratch."""
    growth: Growth | None = None
    mup_base_dir: Path | None = None
    """Checkpoint folder that tells where the learning rate was tuned; None for a scale or a config."""
    save_at: tuple[int, ...] = ()
    """Optimizer steps after which a checkpoint is saved whatever the interval: other runs go on from there."""
    devices: int = 1
    """Of each node; no part of what a run is: its losses do not depend on them."""

    def __post_init__(self) -> None:
        if self.global_batch_size % (self.micro_batch_size * self.num_devices):
            on = f" on {self.num_devices} devices" if self.num_devices > 1 else ""  # another batch would be trained
            raise UserError(
                f"--train.global_batch_size {self.global_batch_size} is no multiple of --train.micro_batch_size"
                f" {self.micro_batch_size}{on}: change one of them"
            )
        if self.args.track and self.block_size < MIN_TRACKED_BLOCK:
            raise UserError(
                f"--track has an induction score, which needs sequences of {MIN_TRACKED_BLOCK} tokens, and these have"
                f" {self.block_size}: raise --train.max_seq_length, or leave --track out"
            )

    @property
    def num_devices(self) -> int:
        """Of all nodes; each has a process of its own."""
        return self.devices * self.args.num_nodes

    @property
    def device_batch_size(self) -> int:
        """Sequences of an optimizer step that a device takes."""
        return self.global_batch_size // self.num_devices

    @property
    def on_one_device(self) -> "RunSpec":
        """A run that does what each device does of this one."""
        return replace(self, global_batch_size=self.device_batch_size, **self._devices(1))

    def on_devices(self, devices: int) -> "RunSpec":
        """The same run on so many devices of one node."""
        micro_batch_size = self.micro_batch_size
        if self.args.train.micro_batch_size is None:
            micro_batch_size = math.gcd(micro_batch_size, self.global_batch_size // devices)
        return replace(self, micro_batch_size=micro_batch_size, **self._devices(devices))

    def _devices(self, devices: int) -> dict[str, Any]:
        return {"args": replace(self.args, devices=devices, num_nodes=1), "devices": devices}

    @property
    def accumulation_iters(self) -> int:
        """Micro-batches of a device per optimizer step."""
        return self.device_batch_size // self.micro_batch_size

    @property
    def loss(self) -> LossImpl:
        """How the loss is taken."""
        if self.args.loss_impl == "auto":
            raise ValueError("the device has not been asked yet: see litgpt_warmstart.run.tuning.tuned")
        return self.args.loss_impl

    def flops(self, tokens: int) -> dict[str, Any]:
        """What training on so many tokens takes, by both counts, as records and rows of metrics.csv have it."""
        per_token = {"matmul_flops": matmul_flops_per_token, "hoffmann_flops": hoffmann_flops_per_token}
        return {name: tokens * count(self.config, self.block_size) for name, count in per_token.items()}

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The command's arguments with every default filled in, for hyperparameters.yaml."""
        return {**self.own, "out_dir": str(self.out_dir), **self.args.written()}

    def identity(self) -> dict[str, Any]:
        """What decides the run's numbers, as plain values, the most telling first: the one definition of what a run is.

        What is not known yet, such as the fingerprint of data that is not prepared, is left out.
        """
        data = self.data
        ours = isinstance(data, PreparedText)
        return plain(
            {
                "lr": self.base_lr,
                "train.global_batch_size": self.global_batch_size,
                "seed": self.seed,
                "parametrization": self.parametrization,
                "scale_eps": self.scale_eps,
                "growth": self.growth.options if self.growth else {},
                "target": asdict(self.config),
                "mup_base": asdict(self.mup_base_config),
                "optimizer": self.optimizer.plain,
                "precision": self.precision,
                "train.max_seq_length": self.block_size,
                "train.max_norm": self.args.train.max_norm or NO_CLIPPING,
                "tokens": self.max_tokens,
                "schedule": self.schedule.plain,
                "eval": {"interval": self.val_interval, "max_iters": self.args.eval.max_iters},
                "starts_from": weights_sha256(self.start_dir) if self.start_dir else None,
                "data": class_path(data) if not ours else data.fingerprint if data.is_prepared else None,
                "data.order_seed": (data.order_seed or ORDER_SEED) if ours else None,
                "data.init_args": None if ours else data_arguments(init_args(data)),
            }
        )
