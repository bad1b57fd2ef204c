"""litgpt warmstart_coord_check: does muP, with and without a warmstart, keep activations' size over width?"""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
import yaml
from litgpt.config import Config
from litgpt.data import DataModule

from litgpt_warmstart.commands.study import as_list, check_results
from litgpt_warmstart.edge import check_seeds, checked, flat
from litgpt_warmstart.errors import UserError, told_in_one_line
from litgpt_warmstart.files import write_whole
from litgpt_warmstart.method.growth import Alignment, Growth
from litgpt_warmstart.method.scales import LARGEST_SIZE, resolve_config
from litgpt_warmstart.run.checkpoint import HYPERPARAMETERS, Header, read_checkpoint
from litgpt_warmstart.run.models import read_base, resolve_models, used_seed
from litgpt_warmstart.run.resolve import resolve
from litgpt_warmstart.run.spec import TrainArgs

DEFAULT_MULTIPLES = (1, 2, 4, 8)
DEFAULT_BLOCK_SIZE = 256
MOST_SEEDS = 1000


@checked
@flat("growth")
def setup(
    base: Path | None = None,
    target: str | None = None,
    widths: list[int] | str | None = None,
    scales: list[str] | str | None = None,
    parametrizations: list[str] | str | None = None,
    shrink: list[float] | str = "0.2,0.4,0.6,0.8,1.0",
    growth: Growth = Growth(),
    lr: float | None = None,
    steps: int = 4,
    num_seeds: int = 5,
    seed: int = 0,
    data: DataModule | None = None,
    batch_size: int = 4,
    block_size: int | None = None,
    tokenizer_dir: Path | None = None,
    out_dir: Path = Path("out/warmstart_coord_check"),
    overwrite: bool = False,
) -> None:
    """Measure how activations go with width under SP, muP, and warmstarted muP (arXiv 2203.03466, appendix D.1).

    Trains each width for a few steps of Adam on one batch, prints the log-log slope of each layer's mean absolute
    activation against width, and writes coord_check.csv (``mup.coord_check.plot_coord_data`` draws it), slopes.csv and
    coord_check.png: figures 3 and 7 of arXiv 2411.07340.

    Arguments:
        base: Folder of a small trained checkpoint, which the warmstarts start from. Learning rate, muP base, data and
            kind of model are its own.
        target: Instead of ``base``, for SP and muP alone: the narrowest model, where the learning rate was tuned: 5M,
            10M, 22M, 35M, 70M, a LitGPT name, or the path of a model_config.yaml.
        widths: n_embd of each model, narrowest first, such as ``48,96,192,384``: heads as large as the base's and more
            of them, the MLP in proportion. Default: 1, 2, 4 and 8 times the base's.
        scales: Instead of ``widths``, models by name or config file, narrowest first, such as ``5M,22M,70M``.
        parametrizations: What to measure: ``sp`` (standard, with one learning rate for all widths), ``mup`` (from
            scratch), ``warmstart`` (muP grown from the base). Default: all three, without ``base`` the first two.
        shrink: lambda_shrink of the warmstarts, each in [0, 1].
        lr: Learning rate at the muP base. Default: that of the base's record, else the paper's for ``target``.
        steps: Forward passes, with an update after each; slopes are of the last one. A small ``lr`` takes more of them
            to show what grows.
        num_seeds: How many initializations, or perturbations, to average over.
        seed: The first of these seeds; the others follow it.
        data: Where the batch comes from, as in ``warmstart``: the first blocks that the base has not read. Default: the
            base's, and ``SlimPajama6B`` where there is none.
        batch_size: Sequences of the batch.
        block_size: Tokens per sequence. Default: 256, or the model's block size where that is less.
        tokenizer_dir: Optional path to the tokenizer dir that was used for preprocessing the dataset. Only some data
            modules require this. Default: the base's.
        out_dir: The folder to write.
        overwrite: Replace a coordinate check that ``out_dir`` already holds.
    """
    with told_in_one_line("litgpt warmstart_coord_check"):
        from litgpt_warmstart.study import coord_check

        for option, value in (("steps", steps), ("num_seeds", num_seeds), ("batch_size", batch_size)):
            _check_positive(option, value)
        if num_seeds > MOST_SEEDS:
            raise UserError(f"--num_seeds {num_seeds:,} is above {MOST_SEEDS:,}")
        check_seeds("seed", seed, seed + num_seeds - 1)
        if base is not None and target is not None:
            raise UserError("--base and --target exclude each other: the base's own shapes are the narrowest ones")
        start = read_base(base) if base is not None else None
        config, tuned = resolve_models(target, start, None, None, data)
        shrinks = as_list(shrink, float, "--shrink")
        arms = _arms(parametrizations, shrinks, start, growth)
        configs = _configs(config, widths, scales)
        block_size = block_size if block_size is not None else min(DEFAULT_BLOCK_SIZE, *(c.block_size for c in configs))
        _check_positive("block_size", block_size)
        if block_size > min(c.block_size for c in configs):
            raise UserError(f"--block_size {block_size} is above the models' {min(c.block_size for c in configs)}")
        warm = any(arm.parametrization == "warmstart" for arm in arms)
        if warm:
            _check_seeds(start, configs[0], seed, num_seeds)

        # The first step of a run at the base's scale; only its learning rate, data and batch are used.
        train = TrainArgs(global_batch_size=batch_size, micro_batch_size=batch_size, max_tokens=batch_size * block_size,
                          max_seq_length=block_size)  # fmt: skip
        spec = resolve(
            "warmstart_coord_check", target, start, None, "mup", Path(out_dir), {}, lr=lr, data=data, train=train,
            tokenizer_dir=tokenizer_dir,
        )  # fmt: skip
        _check_out_dir(spec.out_dir, overwrite)
        check = coord_check.CoordCheck(
            configs=configs,
            mup_base=tuned.config,
            arms=arms,
            base_lr=spec.base_lr,
            steps=steps,
            seeds=tuple(range(seed, seed + num_seeds)),
            source=read_checkpoint(start.path) if warm else None,
            growth=growth,
        )
        if warm:
            _tell_alignment(check.source.config, configs, growth.alignment)
        inputs, targets, described = coord_check.read_batch(spec)
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        print(
            f"{config.name}, n_embd {', '.join(str(c.n_embd) for c in configs)}; lr {spec.base_lr:g} at n_embd"
            f" {tuned.config.n_embd}; {steps} steps on {batch_size} x {block_size} tokens, {described};"
            f" {num_seeds} seed{'s' * (num_seeds > 1)}; {device}"
        )
        if start is None and parametrizations is None:
            print("Without --base there is no warmstart to measure: SP and muP alone")
        coordinates = coord_check.measure(check, inputs, targets, print)
        slopes = coord_check.fit_slopes(coordinates)
        print(f"\nLog-log slope of mean |activation| against n_embd at step {steps}\n{coord_check.table(slopes)}")
        print(f"* grows: above {coord_check.MAX_SLOPE:g}; wide models have 0 or less under muP, 1 under SP")
        arguments = dict(
            base=start and str(start.path), target=target, widths=None if scales else [c.n_embd for c in configs],
            scales=as_list(scales, str, "--scales") if scales else None,
            parametrizations=list(dict.fromkeys(arm.parametrization for arm in arms)),
            **growth.options | {"shrink": shrinks}, lr=spec.base_lr, steps=steps, num_seeds=num_seeds, seed=seed,
            data=spec.hyperparameters["data"], batch_size=batch_size, block_size=block_size,
            tokenizer_dir=spec.hyperparameters["tokenizer_dir"], out_dir=str(spec.out_dir),
        )  # fmt: skip
        title = f"{config.name}: Adam, lr {spec.base_lr:g} at n_embd {tuned.config.n_embd}, mean of {num_seeds} seeds"
        try:
            spec.out_dir.mkdir(parents=True, exist_ok=True)
            coord_check.save(coordinates, slopes, title, spec.out_dir)
            write_whole(spec.out_dir / HYPERPARAMETERS, yaml.safe_dump(arguments, sort_keys=False, allow_unicode=True))
        except OSError as error:
            raise UserError(f"cannot write --out_dir {str(out_dir)!r}: {error.strerror}: choose another") from error
        print(f"Wrote {coord_check.FILE_NAME}, {coord_check.SLOPES} and {coord_check.PICTURE} to {str(spec.out_dir)!r}")


def _check_positive(option: str, value: int) -> None:
    if value < 1:
        raise UserError(f"--{option} must be above 0, got {value}")


def _arms(parametrizations: Any, shrinks: list[float], start: Header | None, growth: Growth) -> tuple:
    """The arms to measure.

    Raises:
        UserError: One is unknown, needs a base, or would have no weights.
    """
    from litgpt_warmstart.study.coord_check import Arm, ArmName

    known = get_args(ArmName)
    names = as_list(parametrizations, str, "--parametrizations") if parametrizations else known if start else known[:2]
    for name in names:
        if name not in known:
            raise UserError(f"--parametrizations has no {name!r}: choose from {', '.join(known)}")
    if "warmstart" in names and start is None:
        raise UserError("--parametrizations warmstart needs --base, the trained checkpoint to start from")
    for shrink in shrinks:
        replace(growth, shrink=shrink)  # its checks
    if not shrinks and "warmstart" in names:
        raise UserError("--shrink is empty: give at least one value, or leave warmstart out of --parametrizations")
    arms = [Arm(name) for name in known[:2] if name in names]
    return (*arms, *(Arm("warmstart", s) for s in dict.fromkeys(shrinks) if "warmstart" in names))


def _configs(config: Config, widths: Any, scales: Any) -> tuple[Config, ...]:
    """The models, narrowest first.

    Raises:
        UserError: Fewer than two, not in order, or one that the narrowest cannot grow into.
    """
    from litgpt_warmstart.method.growth import check_growable
    from litgpt_warmstart.study.coord_check import widened

    if widths is not None and scales is not None:
        raise UserError("--widths and --scales exclude each other: leave one out")
    if scales is not None:
        option = "scales"
        named = as_list(scales, str, f"--{option}")
        configs = [resolve_config(name, config.padded_vocab_size, config.vocab_size) for name in named]
        given = [c.n_embd for c in configs]
    else:
        option = "widths"
        given = (
            as_list(widths, int, f"--{option}")
            if widths is not None
            else [config.n_embd * m for m in DEFAULT_MULTIPLES]
        )
        configs = []
    if len(given) < 2:
        raise UserError(f"--{option} has {len(given)} of the two widths or more that a slope needs")
    if any(a >= b for a, b in zip(given, given[1:], strict=False)):
        raise UserError(f"--{option} must grow from each to the next, got n_embd {', '.join(map(str, given))}")
    if given[0] < config.n_embd:
        raise UserError(
            f"--{option} begins with n_embd {given[0]}, below the {config.n_embd} of {config.name!r}: leave that out"
        )
    if given[-1] > LARGEST_SIZE:
        raise UserError(f"--{option} ends with n_embd {given[-1]}: no model is that large")
    configs = configs or [widened(config, n_embd) for n_embd in given]
    for wider in configs:
        check_growable(config, wider)
    return tuple(configs)


def _check_seeds(start: Header, narrowest: Config, seed: int, num_seeds: int) -> None:
    """Raise a UserError where a perturbation would repeat the numbers that the base was initialized with."""
    used = used_seed(start, narrowest)
    if used in range(seed, seed + num_seeds):
        raise UserError(
            f"--seed {seed} with --num_seeds {num_seeds} includes {used}, which the base was initialized with: take"
            " another"
        )


def _check_out_dir(out_dir: Path, overwrite: bool) -> None:
    from litgpt_warmstart.run.resume import check_writable
    from litgpt_warmstart.study.coord_check import FILE_NAME, PICTURE, SLOPES

    if (out_dir / FILE_NAME).exists() and not overwrite:
        raise UserError(
            f"--out_dir {str(out_dir)!r} holds a coordinate check: pass --overwrite true, or another folder"
        )
    check_writable(out_dir)
    check_results(out_dir / FILE_NAME, ("t", "width"), SLOPES, PICTURE, HYPERPARAMETERS)


def _tell_alignment(source: Config, configs: tuple[Config, ...], alignment: Alignment) -> None:
    """Print where heads cannot be kept.

    Raises:
        UserError: Attention's rows do not fit into one of the models.
    """
    from litgpt_warmstart.method.growth import resolve_alignment

    for config in configs:
        used, reason = resolve_alignment(source, config, alignment)
        if reason:
            print(f"{config.name}: alignment {used} instead of {alignment} ({reason})")
