"""litgpt warmstart_coord_check: does muP, with and without a warmstart, keep activations' size over width?"""

from dataclasses import replace
from pathlib import Path

from litgpt.data import DataModule

from litgpt_warmstart.commands.study import as_list
from litgpt_warmstart.edge import check_seeds, command, options
from litgpt_warmstart.errors import UserError, check_above_zero
from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.run.optimizer import mups
from litgpt_warmstart.run.resolve import read_base, resolve, resolve_models, resolve_parametrization
from litgpt_warmstart.run.spec import RunArgs, TrainArgs

DEFAULT_BLOCK_SIZE = 256
MOST_SEEDS = 1000


@command
@options("growth", without=("moments",))
def setup(
    base: Path | None = None,
    target: str | None = None,
    widths: list[int] | str | None = None,
    depths: list[int] | str | None = None,
    scales: list[str] | str | None = None,
    parametrizations: list[str] | str | None = None,
    shrink: list[float] | str = "0.2,0.4,0.6,0.8,1.0",
    growth: Growth = Growth(),
    lr: float | None = None,
    optimizer: str | dict = "Adam",
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
    """Measure how activations go with width, or depth, under SP, muP, CompleteP and warmstarts (arXiv 2203.03466, D.1).

    Trains each size for a few steps on one batch, prints the log-log slope of each layer's mean absolute
    activation against width or depth, and writes coord_check.csv (``mup.coord_check.plot_coord_data`` draws that over
    width), slopes.csv and coord_check.png: figures 3 and 7 of arXiv 2411.07340.

    Arguments:
        base: A small trained checkpoint, as in ``warmstart``, which the warmstarts start from. Learning rate, muP base,
            data and kind of model are its own.
        target: Instead of ``base``, for SP and muP alone: the narrowest model, where the learning rate was tuned: 5M,
            10M, 22M, 35M, 70M, a LitGPT name, or the path of a model_config.yaml.
        widths: n_embd of each model, narrowest first, such as ``48,96,192,384``: heads as large as the base's and more
            of them, the MLP in proportion. Default: 1, 2, 4 and 8 times the base's.
        depths: Instead of ``widths``, n_layer of each model, shallowest first, such as ``2,4,8``: as wide as the base,
            and as deep or deeper. Of the blocks the first and the last are told.
        scales: Instead of ``widths``, models by name or config file, narrowest first, such as ``5M,22M,70M``.
        parametrizations: What to measure: from scratch those of ``warmstart_scratch``, such as ``sp`` (standard, with
            one learning rate for all sizes) and ``mup``, and ``warmstart``, grown from the base. Default:
            ``sp``, ``mup`` and, with ``base``, ``warmstart``; over ``depths`` ``completep`` in the place of ``mup``,
            which it is over width.
        shrink: lambda_shrink of the warmstarts, each in [0, 1].
        lr: Learning rate at the muP base. Default: that of the base's record, else the paper's for ``target``.
        optimizer: As in ``warmstart``. ``lr`` goes before its own. Adam has torch's betas here, as in ``mup``.
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
    from litgpt_warmstart.study import coord_check

    check_above_zero(dict(steps=steps, num_seeds=num_seeds, batch_size=batch_size, block_size=block_size))
    if num_seeds > MOST_SEEDS:
        raise UserError(f"--num_seeds {num_seeds:,} is above {MOST_SEEDS:,}")
    check_seeds("seed", seed, seed + num_seeds - 1)
    if base is not None and target is not None:
        raise UserError("--base and --target exclude each other: the base's own shapes are the narrowest ones")
    start = read_base(base) if base is not None else None
    config, tuned = resolve_models(target, start, None, None, data)
    growths = [replace(growth, shrink=each) for each in as_list(shrink, float, "--shrink")]
    asked = as_list(parametrizations, str, "--parametrizations") if parametrizations else None
    over = "width" if depths is None else "depth"
    ways = coord_check.ways(asked, growths, start is not None, over)
    given = [f"--{name}" for name, it in dict(widths=widths, depths=depths, scales=scales).items() if it is not None]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} exclude each other: leave {'one' if len(given) == 2 else 'two'} out")
    width_list = as_list(widths, int, "--widths") if widths is not None else None
    scale_list = as_list(scales, str, "--scales") if scales is not None else None
    if depths is not None:
        configs = coord_check.deepened(config, as_list(depths, int, "--depths"))
    else:
        configs = coord_check.models(config, width_list, scale_list)
    longest = min(each.block_size for each in configs)
    block_size = min(DEFAULT_BLOCK_SIZE, longest) if block_size is None else block_size
    if block_size > longest:
        raise UserError(f"--block_size {block_size} is above the models' {longest}")

    # The first step of a run at the base's scale; only its learning rate, data and batch are used.
    train = TrainArgs(
        global_batch_size=batch_size,
        micro_batch_size=batch_size,
        max_tokens=batch_size * block_size,
        max_seq_length=block_size,
    )
    args = RunArgs(lr=lr, data=data, train=train, optimizer=mups(optimizer), tokenizer_dir=tokenizer_dir)
    spec = resolve("warmstart_coord_check", target, start, None, out_dir, args, {})
    seeds = tuple(range(seed, seed + num_seeds))
    grown = any(way.growth for way in ways)
    source = coord_check.source_of(start, configs, growth, seeds) if start and grown else None
    carried_by, _ = resolve_parametrization(None, configs[-1], tuned)
    check = coord_check.CoordCheck(
        configs, tuned.config, ways, spec.base_lr, steps, seeds, source, carried_by, over, spec.optimizer
    )
    coord_check.check_out_dir(spec.out_dir, overwrite)
    if start is None and parametrizations is None:
        print("Without --base there is no warmstart to measure: runs from scratch alone")
    by_width = scale_list is None and depths is None
    how = {name: value for name, value in growth.options.items() if name != "moments"}  # nothing carries them here
    arguments = dict(
        base=start and str(start.path), target=target,
        widths=[each.n_embd for each in configs] if by_width else None,
        depths=None if depths is None else [each.n_layer for each in configs],
        scales=scale_list, parametrizations=list(dict.fromkeys(way.parametrization for way in ways)),
        **how | {"shrink": [each.shrink_of("hidden") for each in growths]}, lr=spec.base_lr,
        optimizer=spec.optimizer.plain, steps=steps,
        num_seeds=num_seeds, seed=seed, data=spec.hyperparameters["data"], batch_size=batch_size,
        block_size=block_size, tokenizer_dir=spec.hyperparameters["tokenizer_dir"], out_dir=str(spec.out_dir),
    )  # fmt: skip
    coord_check.conduct(check, spec, arguments)
