"""From what a user has typed to a run's specification: what was left out comes from the base's record or Table 1."""

import inspect
import math
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config
from litgpt.data import DataModule
from litgpt.utils import extend_checkpoint_dir, init_out_dir

from litgpt_warmstart.data import PreparedText, SlimPajama6B
from litgpt_warmstart.data.recorded import recorded_data
from litgpt_warmstart.edge import LARGEST_INT
from litgpt_warmstart.errors import NotYet, UserError, check_above_zero
from litgpt_warmstart.method.growth import Growth, check_growable
from litgpt_warmstart.method.model import parameter_count
from litgpt_warmstart.method.parametrization import (
    DEFAULT,
    DEFAULT_OVER_DEPTH,
    PARAMETRIZATIONS,
    ParametrizationName,
    carry_alike,
    mup_config,
)
from litgpt_warmstart.method.scales import SCALES, Scale, Sizes, find_scale, resolve_config
from litgpt_warmstart.method.schedule import Schedule
from litgpt_warmstart.run.checkpoint import WEIGHTS, Header, read_header
from litgpt_warmstart.run.devices import count_devices
from litgpt_warmstart.run.hugging_face import is_hugging_face, litgpt_folder
from litgpt_warmstart.run.missing import missing
from litgpt_warmstart.run.moments import check_moments
from litgpt_warmstart.run.optimizer import ChosenOptimizer, resolve_optimizer
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.spec import Precision, RunArgs, RunSpec, TrainArgs


@dataclass(frozen=True)
class Tuned:
    """Where the learning rate was tuned."""

    config: Config
    """muP's base shapes."""
    header: Header | None = None
    """The checkpoint that says so; None for a scale or a config."""

    @property
    def record(self) -> Record | None:
        """What that checkpoint was trained with; None too for one that this package did not write."""
        return self.header.record if self.header else None

    @property
    def settings(self) -> Record | Scale | None:
        """What tells learning rate and batch size: a checkpoint's own record, whatever its name, else Table 1's row."""
        return self.header.record if self.header else find_scale(self.config.name)

    @property
    def carried_by(self) -> ParametrizationName | None:
        """What carries the learning rate from there over width, as a record tells; None where that carries nothing."""
        name = self.record.parametrization if self.record else None
        return name if name and not PARAMETRIZATIONS[name].is_own_base else None


def resolve(
    command: str,
    target: str | None,
    start: Header | None,
    growth: Growth | None,
    out_dir: Path,
    args: RunArgs,
    own_arguments: dict[str, Any],
) -> RunSpec:
    """Fill in what was left out, and check it.

    Args:
        command: The command's name.
        target: What ``--target`` says; None for the shapes of ``start``.
        start: Checkpoint that the weights come from, grown or as they are; None from scratch.
        growth: How ``start`` becomes the target; None for its weights as they are.
        out_dir: Folder of the run.
        args: What the user has typed.
        own_arguments: The command's other arguments, for hyperparameters.yaml.

    Raises:
        UserError: An argument is wrong, or something needed is known from nowhere.
    """
    args.check()
    if args.compile == "reduce-overhead" and not torch.cuda.is_available():  # it would be taken and do nothing
        raise UserError(
            "--compile reduce-overhead replays CUDA graphs, and there is no CUDA device: pass --compile true"
        )
    devices = count_devices(args.devices)
    optimizer = resolve_optimizer(args.optimizer)
    config, tuned = resolve_models(target, start, growth, args.mup_base, args.data)
    parametrization, tuned = resolve_parametrization(args.parametrization, config, tuned, args.mup_base)
    scale_eps = _resolve_scale_eps(args.scale_eps, parametrization, optimizer)
    config = mup_config(config, tuned.config, parametrization)
    if growth and start:
        check_seed(start, config, growth, args.seed)
        if growth.carries_moments:
            check_moments(start, optimizer)

    record = start.record if start and start.record else tuned.record
    settings = tuned.settings
    given_lr = optimizer.lr if args.lr is None else args.lr
    base_lr = given_lr if given_lr is not None else settings.base_lr if settings else None
    batch = args.train.global_batch_size or (settings.global_batch_size if settings else None)
    has_data = args.data is not None or start is None or (record and record.data_uses)
    if base_lr is None or batch is None or not has_data:
        raise _unknown(base_lr, batch, tuned, None if has_data else start)
    check_above_zero(dict(lr=base_lr))
    data = args.data if args.data is not None else _recorded_data(record)
    global_batch_size, micro_batch_size = _resolve_batch(args.train, batch, devices * args.num_nodes)
    block_size = args.train.max_seq_length or config.block_size
    if block_size > config.block_size:
        raise UserError(f"--train.max_seq_length {block_size} is above the model's {config.block_size}")
    max_steps = _resolve_steps(args, config, global_batch_size, block_size)
    val_interval = args.eval.interval or math.ceil(max_steps / 10)
    precision = args.precision or _default_precision()
    if precision == "16-mixed" and optimizer.init_args.get("fused"):
        raise UserError("--precision 16-mixed cannot clip gradients under a fused optimizer: leave fused out")
    named_by = start or tuned.header
    tokenizer_dir = named_by.path if named_by and named_by.tokenizer else None  # the one it was saved with
    if args.tokenizer_dir:
        tokenizer_dir = extend_checkpoint_dir(Path(args.tokenizer_dir))
    out_dir = init_out_dir(out_dir)
    filled_in = replace(
        args,
        lr=base_lr,
        parametrization=parametrization,
        scale_eps=scale_eps,
        precision=precision,
        data=data,
        train=replace(args.train, global_batch_size=global_batch_size),
        eval=replace(args.eval, interval=val_interval),
        optimizer=optimizer.plain,
        tokenizer_dir=tokenizer_dir,
    )
    return RunSpec(
        command=command,
        args=filled_in,
        own=own_arguments,
        config=config,
        mup_base_config=tuned.config,
        parametrization=parametrization,
        scale_eps=scale_eps,
        base_lr=base_lr,
        schedule=Schedule.of(
            args.schedule,
            args.train,
            max_steps,
            base_lr=base_lr,
            global_batch_size=global_batch_size,
            tokens_per_step=global_batch_size * block_size,
        ),  # fmt: skip
        data=data,
        optimizer=optimizer,
        precision=precision,
        compile=args.compile,
        out_dir=out_dir,
        max_steps=max_steps,
        global_batch_size=global_batch_size,
        micro_batch_size=micro_batch_size,
        block_size=block_size,
        num_classes=Sizes.of(config).padded_vocab_size,
        val_interval=val_interval,
        start_dir=start.path if start else None,
        growth=growth,
        mup_base_dir=tuned.header.path if tuned.header else None,
        devices=devices,
        seen=record.data_uses if record else (),
        tokenizer_dir=tokenizer_dir,
        tokens_per_param=args.tokens_per_param,
        seed=args.seed,
    )


def resolve_parametrization(
    asked: ParametrizationName | None, config: Config, tuned: Tuned, mup_base: str | None = None
) -> tuple[ParametrizationName, Tuned]:
    """What carries the learning rate to a model, by default what it was tuned under, and where it was tuned.

    Raises:
        UserError: There is no such parametrization, it has no muP base, or another one carried the rate.
    """
    if asked is not None and asked not in PARAMETRIZATIONS:
        raise UserError(f"--parametrization {asked!r} is none of {', '.join(PARAMETRIZATIONS)}")
    name = asked or tuned.carried_by or DEFAULT
    if asked is None and PARAMETRIZATIONS[name].depth is None and config.n_layer != tuned.config.n_layer:
        name = DEFAULT_OVER_DEPTH
    if PARAMETRIZATIONS[name].is_own_base:
        if mup_base is not None:
            raise UserError(f"--mup_base has no meaning with --parametrization {name}: leave one of them out")
        return name, Tuned(config, tuned.header)
    before = tuned.carried_by
    if before and tuned.header and not (
        before == name or carry_alike(before, name, tuned.header.config, tuned.config)
    ):  # fmt: skip
        told = f"--parametrization {name} would go on from a learning rate tuned under {before}"
        raise UserError(f"{told}: pass --parametrization {before}")
    return name, tuned


def _resolve_scale_eps(asked: bool | None, parametrization: str, optimizer: ChosenOptimizer) -> bool:
    """Whether Adam's eps follows the gradients; a UserError where it cannot."""
    table = PARAMETRIZATIONS[parametrization]
    has_eps = "eps" in inspect.signature(optimizer.cls).parameters
    if asked and table.is_own_base:
        raise UserError(f"--scale_eps has no meaning with --parametrization {parametrization}: leave one of them out")
    if asked and not has_eps:
        raise UserError(f"--scale_eps has no meaning with --optimizer {optimizer.class_path}, which has no eps")
    return asked if asked is not None else table.scales_eps and has_eps


def _unknown(base_lr: float | None, batch: int | None, tuned: Tuned, without_data: Header | None) -> NotYet:
    """All that neither the user, nor a record, nor the paper says, in one line; data where a base has no record."""
    told = []
    asked = {"learning rate": ("--lr", base_lr), "batch size": ("--train.global_batch_size", batch)}
    if missing := {what: option for what, (option, known) in asked.items() if known is None}:
        scales = ", ".join(s.short_name for s in SCALES if s.base_lr)
        told.append(
            f"no {' and no '.join(missing)} {'are' if len(missing) > 1 else 'is'} known for {tuned.config.name!r}: pass"
            f" {' and '.join(missing.values())}, or --mup_base with one of {scales} or with a checkpoint trained by"
            " this package"
        )
    if without_data:
        told.append(
            f"no data: {str(without_data.path)!r} has no record of its own; pass --data, e.g. --data PreparedText with"
            " --data.text_dir and --data.tokenizer, its tokenizer's folder"
        )
    return NotYet("; ".join(told))


def _resolve_batch(train: TrainArgs, batch: int, num_devices: int) -> tuple[int, int]:
    """Sequences of an optimizer step and of a micro-batch."""
    if batch % num_devices:
        raise UserError(
            f"--train.global_batch_size {batch} cannot be split over {num_devices} devices: choose a multiple of"
            f" {num_devices}, or other --devices"
        )
    return batch, train.micro_batch_size or default_micro_batch(batch // num_devices)


def default_micro_batch(device_batch_size: int) -> int:
    """Without a trial: the largest up to 4 that divides a device's batch."""
    return next(size for size in (4, 3, 2, 1) if device_batch_size % size == 0)


def _resolve_steps(args: RunArgs, config: Config, global_batch_size: int, block_size: int) -> int:
    parameters = parameter_count(config)
    if args.tokens_per_param * parameters > LARGEST_INT:
        raise UserError("--tokens_per_param comes to more tokens than there are: lower it")
    tokens = args.train.max_tokens or int(args.tokens_per_param * parameters)
    steps = tokens // (global_batch_size * block_size)
    if steps == 0:
        raise UserError(
            f"a budget of {tokens:,} tokens is less than one step of {global_batch_size} x {block_size:,}: raise"
            " --tokens_per_param or --train.max_tokens, or lower --train.global_batch_size"
        )
    return min(steps, args.train.max_steps or steps)


def _default_precision() -> Precision:
    """bf16-mixed, or 16-mixed on a GPU whose bf16 is emulated; 32-true on a CPU, where bf16 is mostly slower."""
    if not torch.cuda.is_available():
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def _recorded_data(record: Record | None) -> DataModule:
    """The DataModule that these weights were last trained on; the paper's where there are none."""
    if record and record.data_uses:
        return recorded_data(record.data_uses[-1])
    default = SlimPajama6B()
    try:
        _ = default.vocab_size
    except UserError as error:
        raise NotYet(
            f"without --data the data is SlimPajama-6B, to be had by litgpt warmstart_prepare_data, but {error}; --data"
            " StdlibText needs no network"
        ) from error
    return default


def read_base(base: Path | str | None, option: str = "--base") -> Header:
    """The checkpoint that an option names: a LitGPT folder, or a model of Hugging Face's, see :func:`litgpt_folder`.

    Raises:
        UserError: It is left out, no checkpoint, or one of its files has changed since it was saved.
    """
    if base is None:
        raise missing(option.removeprefix("--"))
    try:
        folder = litgpt_folder(Path(base), option)
    except OSError as error:
        raise UserError(f"{option} {str(base)!r} is unreadable: {error.strerror}: give another folder") from error
    header = read_header(folder, option)
    header.check_files()
    return header


SHAPE = ("n_layer", "n_embd", "n_head", "head_size", "intermediate_size", "padded_vocab_size")


def resolve_models(
    target: str | None, start: Header | None, growth: Growth | None, mup_base: str | None, data: DataModule | None
) -> tuple[Config, Tuned]:
    """The target's config, before muP's attention scale, and where the learning rate was tuned.

    Raises:
        UserError: No target, one that ``start`` cannot become, or an unknown muP base.
    """
    tuned = _read_tuned(mup_base)
    told_by = start.config if start else data if isinstance(data, PreparedText) else tuned and tuned.config
    if target is not None:
        config = resolve_config(target, **_vocabulary(told_by))
    elif start and not growth:
        config = start.config
    else:
        raise missing("target")
    if start and growth:
        check_growable(start.config, config, growth)
    elif start:
        for name in SHAPE:
            has, asked = getattr(start.config, name), getattr(config, name)
            if has != asked:
                raise UserError(
                    f"--initial_checkpoint_dir {str(start.path)!r} has {name} {has}, --target {target} has {asked}:"
                    " leave --target out"
                )
        config = start.config
    if tuned is None and mup_base is not None:
        named = resolve_config(mup_base, **_vocabulary(config))
        tuned = Tuned(named)
        if start and start.record:
            was = start.mup_base_config
            if all(getattr(named, name) == getattr(was, name) for name in (*SHAPE, "n_query_groups")):
                tuned = Tuned(was, start)
    elif tuned is None:
        tuned = Tuned(start.mup_base_config, start) if start else Tuned(config)
    return config, tuned


def check_seed(start: Header, target: Config, growth: Growth, seed: int) -> None:
    """Raise a UserError where the perturbation would be the numbers that the base was initialized with."""
    if growth.shrink and growth.perturb and seed == used_seed(start, target):
        raise UserError(
            f"--seed {seed} is the base's own: at the base's own size it would draw its initialization again as the"
            " perturbation: give another --seed"
        )


def used_seed(start: Header, target: Config) -> int | None:
    """The seed that a base of the target's size was initialized with; None where it is not known, or another size."""
    if start.record is None or not draw_alike(start.config, target):
        return None
    return start.record.growth.seed if start.record.growth else start.record.training.get("seed")


def draw_alike(one: Config, other: Config) -> bool:
    """Whether two models of one seed are initialized, or perturbed, with the same numbers."""
    return all(getattr(one, name) == getattr(other, name) for name in ("n_embd", "intermediate_size", "n_layer"))


def _vocabulary(told_by: Config | PreparedText | None) -> dict[str, int | None]:
    return {name: getattr(told_by, name) for name in ("padded_vocab_size", "vocab_size")} if told_by else {}


def _read_tuned(mup_base: str | None) -> Tuned | None:
    """The tuned shapes and record of a checkpoint folder given as ``--mup_base``; None for anything else."""
    if mup_base is None:
        return None
    with suppress(OSError):  # of which read_base tells
        folder = extend_checkpoint_dir(Path(mup_base))
        if not (folder / WEIGHTS).is_file() and not is_hugging_face(folder):
            return None
    header = read_base(mup_base, "--mup_base")
    return Tuned(header.mup_base_config, header)
