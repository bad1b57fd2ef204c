"""From a command's arguments to a run specification: what the user left out comes from the base's record or Table 1."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from litgpt.args import LogArgs
from litgpt.data import DataModule
from litgpt.types import LoggerChoice
from litgpt.utils import extend_checkpoint_dir, init_out_dir, num_parameters

from litgpt_warmstart.data import SlimPajama6B
from litgpt_warmstart.data.recorded import recorded_data
from litgpt_warmstart.data.use import class_path, init_args
from litgpt_warmstart.edge import LARGEST_INT
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.method.loss import LossChoice
from litgpt_warmstart.method.parametrization import ParametrizationName
from litgpt_warmstart.method.scales import SCALES
from litgpt_warmstart.method.schedule import Schedule, ScheduleName, make_schedule
from litgpt_warmstart.run.checkpoint import Header
from litgpt_warmstart.run.micro_batch import default_size
from litgpt_warmstart.run.models import Tuned, check_seed, resolve_models
from litgpt_warmstart.run.optimizer import ChosenOptimizer, resolve_optimizer
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.spec import CompileMode, EvalArgs, RunSpec, TrainArgs


def resolve(
    command: str,
    target: str | None,
    start: Header | None,
    growth: Growth | None,
    parametrization: ParametrizationName,
    out_dir: Path,
    own_arguments: dict[str, Any],
    *,
    tokens_per_param: float = 20.0,
    lr: float | None = None,
    schedule: ScheduleName = "constant",
    mup_base: str | None = None,
    precision: Literal["bf16-true", "bf16-mixed", "32-true", "16-mixed", None] = None,
    resume: bool | Literal["auto"] | Path = False,
    overwrite: bool = False,
    data: DataModule | None = None,
    train: TrainArgs = TrainArgs(),
    eval: EvalArgs = EvalArgs(),
    log: LogArgs = LogArgs(),
    optimizer: str | dict = "AdamW",
    devices: int | str = 1,
    num_nodes: int = 1,
    tokenizer_dir: Path | None = None,
    logger_name: LoggerChoice = "tensorboard",
    seed: int = 42,
    compile: bool | CompileMode = True,
    loss_impl: LossChoice = "auto",
    track: int | None = None,
) -> RunSpec:
    """Fill in what was left out and check it.

    Arguments:
        command: The command's name.
        target: What ``--target`` says; None for the shapes of ``start``.
        start: Checkpoint that the weights come from, grown or as they are; None from scratch.
        growth: How ``start`` becomes the target; None for its weights as they are.
        parametrization: muP or standard.
        out_dir: Folder of the run.
        own_arguments: The command's other arguments, for hyperparameters.yaml.
        tokens_per_param: Tokens to train on per parameter of the target.
        lr: Learning rate at the muP base; muP carries it to the target's width. Default: that of the base's record,
            else the paper's for the scale that is the muP base.
        schedule: How the learning rate moves over the run: ``wsd`` (warmup, stable, decay; arXiv 2405.18392), ``wsd-s``
            (several decays, 2410.05192), ``power`` (2408.13359), ``rewarm`` (2403.08763). muP's ratios between
            parameters stay.
        mup_base: Where the learning rate was tuned: a scale, a LitGPT name, a model_config.yaml, or a checkpoint
            folder, whose record then gives learning rate, batch size, data, and where its data ended. Default: what
            the base's record says, else the base's own shapes, else the target's.
        precision: The precision to use for training. Determines a compatible precision setting by default: bf16-mixed
            or 16-mixed on a GPU, 32-true on a CPU.
        resume: Path to a checkpoint directory to resume from in case training was interrupted, or ``True`` to resume
            from the newest checkpoint in ``out_dir`` that is whole. An error will be raised if no checkpoint is found.
            Passing ``'auto'`` will resume from it but not error if no checkpoint exists.
        overwrite: Replace a run that ``out_dir`` already holds; your own files there stay.
        data: Where tokens come from: ``SlimPajama6B``, ``PreparedText`` (any text from the Hub or a folder),
            ``StdlibText`` (embedded), or LitGPT's ``TextFiles``, ``LitData``, ``TinyLlama``, ``OpenWebText``,
            ``TinyStories``, ``MicroLlama``. Default: the base's, where that is prepared here, and ``SlimPajama6B``
            where there is no base.
        train: Training-related arguments. See ``litgpt_warmstart.run.spec.TrainArgs`` for details.
        eval: Evaluation-related arguments. See ``litgpt_warmstart.run.spec.EvalArgs`` for details.
        log: Logging-related arguments, for wandb and litlogger.
        optimizer: An Adam-like optimizer's name (such as "AdamW") or config. ``lr`` goes before its own.
        devices: How many devices to use; one for now.
        num_nodes: How many nodes the code is being run on; one for now.
        tokenizer_dir: Optional path to the tokenizer dir that was used for preprocessing the dataset. Only some data
            modules require this. Default: the base's.
        logger_name: The name of the logger to send metrics to; metrics.csv is written in any case.
        seed: The random seed of the initialization and the perturbation.
        compile: Whether to compile the model, or torch.compile's mode: ``reduce-overhead`` (CUDA graphs),
            ``max-autotune``, ``max-autotune-no-cudagraphs``. Without a compiler, training goes on without.
        loss_impl: Head and cross entropy: ``full`` (all logits at once), ``chunked`` (some at a time), or
            ``auto``: full in bf16 on hardware that has it, if they fit. A resumed run stays with its own.
        track: Number of optimizer steps between two recordings of the size of every layer's output and of every
            weight, in norms.csv; also before the first step and after the last. Default: none.

    Raises:
        UserError: An argument is wrong, or something needed is known from nowhere.
    """
    from litgpt_warmstart.method import parametrization as mup
    from litgpt_warmstart.method.model import MuGPT

    _check_devices(devices, num_nodes)
    train.check(schedule)
    eval.check()
    if not 0 < tokens_per_param < math.inf:
        raise UserError(f"--tokens_per_param must be above 0, got {tokens_per_param}")
    if track is not None and track <= 0:
        raise UserError(f"--track must be above 0, got {track}: leave it out to record nothing")
    is_own_base = mup.PARAMETRIZATIONS[parametrization].is_own_base
    if is_own_base and mup_base is not None:
        raise UserError(f"--mup_base has no meaning with --parametrization {parametrization}: leave one of them out")
    chosen = resolve_optimizer(optimizer)

    config, tuned = resolve_models(target, start, growth, mup_base, data)
    if is_own_base:
        tuned = Tuned(config, tuned.header)
    config = mup.mup_config(config, tuned.config, parametrization)
    if growth:
        check_seed(start, config, growth, seed)
    with torch.device("meta"):
        parameters = num_parameters(MuGPT(config))

    known = start.record if start and start.record else tuned.record
    data = data if data is not None else _recorded_data(known, start)
    if hasattr(data, "prompt_style"):
        raise UserError(
            f"--data {type(data).__name__} is for instruction tuning: take one for pretraining, e.g. TextFiles"
        )
    base_lr = resolve_lr(lr, chosen, tuned)
    if not 0 < base_lr < math.inf:
        raise UserError(f"--lr must be above 0, got {base_lr}")
    find_micro_batch = train.micro_batch_size is None
    train = _resolve_batch(train, tuned)
    if train.max_seq_length and train.max_seq_length > config.block_size:
        raise UserError(f"--train.max_seq_length {train.max_seq_length} is above the model's {config.block_size}")
    block_size = train.max_seq_length or config.block_size
    max_steps = _resolve_steps(train, tokens_per_param * parameters, block_size)
    eval = replace(eval, interval=eval.interval or math.ceil(max_steps / 10))
    tokenizer_dir = extend_checkpoint_dir(Path(tokenizer_dir)) if tokenizer_dir else _recorded_tokenizer(start, tuned)
    precision = precision or _default_precision()
    if precision == "16-mixed" and chosen.init_args.get("fused"):
        raise UserError("--precision 16-mixed cannot clip gradients under a fused optimizer: leave fused out")
    out_dir = init_out_dir(out_dir)

    shared = dict(
        tokens_per_param=tokens_per_param, lr=base_lr, schedule=schedule, mup_base=mup_base, precision=precision,
        data={"class_path": class_path(data), "init_args": init_args(data)}, train=asdict(train), eval=asdict(eval),
        log=asdict(log), optimizer=chosen.plain, devices=devices, num_nodes=num_nodes,
        tokenizer_dir=tokenizer_dir and str(tokenizer_dir), logger_name=logger_name, seed=seed, compile=compile,
        loss_impl=loss_impl, track=track,
    )  # fmt: skip
    return RunSpec(
        command=command,
        config=config,
        mup_base_config=tuned.config,
        parametrization=parametrization,
        base_lr=base_lr,
        schedule=_resolve_schedule(schedule, train, max_steps, base_lr, block_size),
        data=data,
        train=train,
        eval=eval,
        log=log,
        optimizer=chosen,
        precision=precision,
        out_dir=out_dir,
        max_steps=max_steps,
        block_size=block_size,
        source_dir=start.path if start and growth else None,
        growth=growth,
        initial_checkpoint_dir=start.path if start and not growth else None,
        mup_base_dir=tuned.header.path if tuned.header else None,
        tokens_per_param=tokens_per_param,
        seen=known.data_uses if known else (),
        resume=resume,
        overwrite=overwrite,
        track=track,
        tokenizer_dir=tokenizer_dir,
        logger_name=logger_name,
        seed=seed,
        loss_impl=loss_impl,
        find_micro_batch=find_micro_batch,
        compile=compile,
        hyperparameters={**own_arguments, "out_dir": str(out_dir), **shared},
    )


def resolve_lr(lr: float | None, optimizer: ChosenOptimizer, tuned: Tuned) -> float:
    """The flag's learning rate, else the optimizer's own, the record's, or the paper's for the muP base.

    Raises:
        UserError: It is known from nowhere.
    """
    if lr is not None:
        return lr
    if optimizer.lr is not None:
        return optimizer.lr
    if tuned.record and tuned.record.base_lr is not None:
        return tuned.record.base_lr
    scale = tuned.table_row
    if scale and scale.base_lr is not None:
        return scale.base_lr
    known = ", ".join(s.short_name for s in SCALES if s.base_lr)
    raise UserError(
        f"no learning rate is known for {tuned.config.name!r}: pass --lr, or --mup_base with one of {known} or with a"
        " checkpoint trained by this package"
    )


def _recorded_tokenizer(start: Header | None, tuned: Tuned) -> Path | None:
    """The folder of the base's tokenizer, which must be the one that it was saved with."""
    header = start or tuned.header
    return header.tokenizer_dir if header and header.tokenizer else None


def _default_precision() -> str:
    """bf16-mixed, or 16-mixed on a GPU whose bf16 is emulated; 32-true on a CPU, where bf16 is mostly slower."""
    if not torch.cuda.is_available():
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def _resolve_batch(train: TrainArgs, tuned: Tuned) -> TrainArgs:
    scale = tuned.table_row
    batch = (
        train.global_batch_size
        or (tuned.record.global_batch_size if tuned.record else None)
        or (scale.global_batch_size if scale else None)
    )
    if batch is None:
        raise UserError(f"no batch size is known for {tuned.config.name!r}: pass --train.global_batch_size")
    micro = train.micro_batch_size or default_size(batch)
    if batch % micro:
        raise UserError(
            f"--train.global_batch_size {batch} is no multiple of --train.micro_batch_size {micro}: change one of them"
        )
    return replace(train, global_batch_size=batch, micro_batch_size=micro)


def _resolve_steps(train: TrainArgs, default_tokens: float, block_size: int) -> int:
    if default_tokens > LARGEST_INT:
        raise UserError("--tokens_per_param comes to more tokens than there are: lower it")
    tokens = train.max_tokens or int(default_tokens)
    steps = tokens // (train.global_batch_size * block_size)
    if steps == 0:
        raise UserError(
            f"a budget of {tokens:,} tokens is less than one step of {train.global_batch_size} x {block_size:,}: raise"
            " --tokens_per_param or --train.max_tokens, or lower --train.global_batch_size"
        )
    return min(steps, train.max_steps or steps)


def _resolve_schedule(
    name: ScheduleName, train: TrainArgs, max_steps: int, base_lr: float, block_size: int
) -> Schedule:
    warmup = train.lr_warmup_steps or math.ceil((train.lr_warmup_fraction or 0) * max_steps)
    if warmup > max_steps:
        raise UserError(f"a warmup of {warmup:,} steps is longer than the run of {max_steps:,}: shorten it")
    return make_schedule(
        name,
        max_steps,
        warmup,
        min_lr_ratio=train.min_lr,
        cooldown_shape=train.cooldown_shape,
        cooldown_steps=train.cooldown_steps,
        cooldown_fraction=train.cooldown_fraction,
        cooldown_ends=train.cooldown_ends or (),
        base_lr=base_lr,
        global_batch_size=train.global_batch_size,
        tokens_per_step=train.global_batch_size * block_size,
        power_a=train.power_a,
        power_b=train.power_b,
    )


def _recorded_data(record: Record | None, start: Header | None) -> DataModule:
    """The DataModule that these weights were last trained on; the paper's where there are none."""
    use = record.latest_data if record else None
    if use is not None:
        return recorded_data(use)
    if start is not None:
        raise UserError(
            f"no data: {str(start.path)!r} has no record of its own; pass --data, e.g. --data PreparedText with"
            " --data.text_dir and --data.tokenizer, its tokenizer's folder"
        )
    default = SlimPajama6B()
    try:
        _ = default.vocab_size
    except UserError as error:
        raise UserError(
            f"without --data the data is SlimPajama-6B, to be had by litgpt warmstart_prepare_data, but {error}; --data"
            " StdlibText needs no network"
        ) from error
    return default


def _check_devices(devices: int | str, num_nodes: int) -> None:
    available = (
        torch.cuda.device_count() if str(devices) in ("auto", "-1") else int(devices) if str(devices).isdigit() else 0
    )
    if available > 1 or num_nodes != 1 or (available == 0 and str(devices) not in ("auto", "-1")):
        raise UserError(
            f"--devices {devices} --num_nodes {num_nodes}: one device on one node is supported; pass --devices 1"
        )
