"""Coordinate check: do activations keep their size as width, or depth, grows (arXiv 2203.03466, appendix D.1)?

A few optimizer steps at each of several sizes, on one batch. Under muP every layer's mean absolute activation (L1)
tends to a constant over width, under CompleteP over depth, too; under standard parametrization (SP), with one learning
rate for all sizes, whatever the updates reach grows. Figures 3 and 7 of arXiv 2411.07340 ask the same of warmstarted
models. ``mup.coord_check`` measures.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas
import torch
import yaml
from litgpt.config import Config
from mup.coord_check import _get_coord_data

from litgpt_warmstart.data.loaders import next_batches
from litgpt_warmstart.data.plan import plan_data
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import write_whole
from litgpt_warmstart.method.growth import OPERATORS, Growth, check_growable
from litgpt_warmstart.method.model import MuGPT
from litgpt_warmstart.method.parametrization import DEFAULT, PARAMETRIZATIONS, ParametrizationName, build_optimizer
from litgpt_warmstart.method.scales import LARGEST_SIZE, resolve_config
from litgpt_warmstart.parsing import read_yaml
from litgpt_warmstart.report.figures import Figure, panels
from litgpt_warmstart.report.layers import LAST_BLOCK, layer_name
from litgpt_warmstart.report.page import Section, Table, as_text, write_csv, writing
from litgpt_warmstart.report.runs import Found
from litgpt_warmstart.run import build
from litgpt_warmstart.run.checkpoint import HYPERPARAMETERS, RECORD, Checkpoint, Header, read_checkpoint
from litgpt_warmstart.run.folder import check_writable
from litgpt_warmstart.run.optimizer import ChosenOptimizer, mups, recorded_optimizer, resolve_optimizer
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.resolve import used_seed
from litgpt_warmstart.run.spec import RunSpec
from litgpt_warmstart.run.tuning import is_out_of_memory
from litgpt_warmstart.study.folder import check_results, read_table, section_of
from litgpt_warmstart.study.slopes import (
    LIMITS,
    MAX_SLOPE,
    Over,
    at_the_end,
    fit_slopes,
    grown_over,
    named,
    table,
    way_name,
)

WARMSTART = "warmstart"
RESULTS, SLOPES, PICTURE = "coord_check.csv", "slopes.csv", "coord_check.png"
DEFAULT_MULTIPLES = (1, 2, 4, 8)
"""Widths of the models, in widths of the narrowest one."""
FIELDS = {"width": "n_embd", "depth": "n_layer"}
"""What may grow over the models of a check, and LitGPT's name of it."""
LARGEST = {"width": LARGEST_SIZE, "depth": 1024}


@dataclass(frozen=True)
class Way:
    """One way to start training a width."""

    parametrization: str
    """A name in the table, or ``warmstart``."""
    growth: Growth | None = None
    """Of a warmstart."""

    @property
    def shrink(self) -> float:
        """For tables; NaN where nothing is grown."""
        return self.growth.shrink_of("hidden") if self.growth else math.nan


@dataclass(frozen=True)
class CoordCheck:
    """Everything that decides a coordinate check, but for the batch."""

    configs: tuple[Config, ...]
    """The models, smallest first, before muP's attention scale."""
    mup_base: Config
    """Where the learning rate was tuned; what is its own base takes each model's own shapes instead."""
    ways: tuple[Way, ...]
    base_lr: float
    steps: int
    """Forward passes, with an update after each; the last one is what slopes are taken from."""
    seeds: tuple[int, ...]
    source: Checkpoint | None = None
    """The base of the warmstarts; None where no way is one."""
    carried_by: ParametrizationName = DEFAULT
    """What warmstarts are trained under."""
    over: Over = "width"
    """What grows over the models."""
    optimizer: ChosenOptimizer = field(default_factory=lambda: resolve_optimizer(mups("Adam")))

    def size(self, config: Config) -> int:
        """Of what grows."""
        return getattr(config, FIELDS[self.over])

    def parametrization(self, way: Way) -> ParametrizationName:
        """What a way trains under."""
        return self.carried_by if way.growth else way.parametrization


def ways(names: Sequence[str] | None, growths: Sequence[Growth], based: bool, over: Over = "width") -> tuple[Way, ...]:
    """The ways with these names, all that can be where none are given; each parametrization, then each growth."""
    known = (*PARAMETRIZATIONS, WARMSTART)
    kept = [name for name, table in PARAMETRIZATIONS.items() if over == "width" or table.depth or table.is_own_base]
    for name in names or ():
        if name in PARAMETRIZATIONS and name not in kept:
            raise UserError(f"--parametrizations {name} carries nothing over --depths: choose from {', '.join(kept)}")
    if over == "width":  # where those that carry over depth, too, are as those that do not
        kept = [name for name in kept if PARAMETRIZATIONS[name].depth is None]
    names = names or [*kept, *([WARMSTART] if based else [])]
    for name in names:
        if name not in known:
            raise UserError(f"--parametrizations has no {name!r}: choose from {', '.join(known)}")
    if WARMSTART in names and not based:
        raise UserError("--parametrizations warmstart needs --base, the trained checkpoint to start from")
    found = [Way(name) for name in PARAMETRIZATIONS if name in names]
    return (*found, *(Way(WARMSTART, each) for each in growths if WARMSTART in names))


def models(config: Config, widths: Sequence[int] | None, scales: Sequence[str] | None) -> tuple[Config, ...]:
    """The models with these widths or, by name or config file, of these scales, narrowest first.

    Without both they have :data:`DEFAULT_MULTIPLES` of the width of ``config``, which each of them must be grown from.
    """
    option, given, configs = "widths", list(widths or (config.n_embd * multiple for multiple in DEFAULT_MULTIPLES)), []
    if scales is not None:
        configs = [resolve_config(name, config.padded_vocab_size, config.vocab_size) for name in scales]
        option, given = "scales", [each.n_embd for each in configs]
    check_sizes(option, "width", given, config)
    configs = configs or [widened(config, n_embd) for n_embd in given]
    for wider in configs:
        if wider.n_layer != config.n_layer:
            raise UserError(
                f"--{option}: {config.name!r} has n_layer {config.n_layer}, {wider.name!r} has {wider.n_layer}: over"
                " width all have the same"
            )
        check_growable(config, wider)
    return tuple(configs)


def check_sizes(option: str, over: Over, given: Sequence[int], config: Config) -> None:
    """Raise a UserError for fewer than two sizes, or some that do not grow, or begin below a model's."""
    name, own = FIELDS[over], getattr(config, FIELDS[over])
    if len(given) < 2:
        raise UserError(f"--{option} has {len(given)} of the two {over}s or more that are compared")
    if any(larger <= smaller for smaller, larger in pairwise(given)):
        raise UserError(f"--{option} must grow from each to the next, got {name} {', '.join(map(str, given))}")
    if given[0] < own:
        raise UserError(f"--{option} begins with {name} {given[0]}, below the {own} of {config.name!r}: leave that out")
    if given[-1] > LARGEST[over]:
        raise UserError(f"--{option} ends with {name} {given[-1]}: no model is that large")


def deepened(config: Config, depths: Sequence[int]) -> tuple[Config, ...]:
    """The same model with these numbers of layers, shallowest first."""
    check_sizes("depths", "depth", depths, config)
    return tuple(replace(config, name=f"{config.name}-{depth}-layers", n_layer=depth) for depth in depths)


def widened(config: Config, n_embd: int) -> Config:
    """The same model with another n_embd: as many more heads and MLP channels, each head as large as before."""
    counts = {name: getattr(config, name) for name in ("n_head", "n_query_groups", "intermediate_size")}
    step = config.n_embd // math.gcd(config.n_embd, *counts.values())
    if n_embd % step or n_embd <= 0:
        raise UserError(
            f"width {n_embd} of --widths is no multiple of {step}, by which {config.name!r} grows whole heads of"
            f" {config.head_size}: change it, or give --scales"
        )
    counts = {name: count * n_embd // config.n_embd for name, count in counts.items()}
    return replace(config, name=f"{config.name}-{n_embd}", n_embd=n_embd, **counts)


def source_of(start: Header, configs: Sequence[Config], growth: Growth, seeds: Sequence[int]) -> Checkpoint:
    """A base, read, which can be grown into the models and was initialized with none of the seeds."""
    used = used_seed(start, configs[0])
    if used in seeds:
        raise UserError(
            f"--seed {seeds[0]} with --num_seeds {len(seeds)} includes {used}, which the base was initialized with:"
            " take another"
        )
    for config in configs:
        check_growable(start.config, config, growth_into(config, start, growth))
        possible, reason = growth.aligned(start.config, config)
        if reason:
            print(f"{config.name}: alignment {possible} instead of {growth.alignment} ({reason})")
    return read_checkpoint(start.path)


def growth_into(config: Config, start: Header, growth: Growth) -> Growth:
    """How a base becomes a model; of its own depth, which operators that grow it refuse, by padding."""
    if config.n_layer == start.config.n_layer and OPERATORS[growth.operator].deepens:
        return replace(growth, operator="pad")
    return growth


def check_out_dir(out_dir: Path, overwrite: bool) -> None:
    """Raise a UserError for a folder that cannot be written, or holds something of a user's or an earlier check."""
    check_writable(out_dir)
    check_results(out_dir / RESULTS, ("t", "width"), SLOPES, PICTURE, HYPERPARAMETERS)
    if (out_dir / RESULTS).exists() and not overwrite:
        held = f"--out_dir {str(out_dir)!r} holds a coordinate check"
        raise UserError(f"{held}: pass --overwrite true, or another folder")


def conduct(check: CoordCheck, spec: RunSpec, arguments: Mapping[str, Any]) -> None:
    """Measure, print slopes and write them.

    Args:
        check: What to measure.
        spec: A run at the base's scale, for its folder, and its first batch after everything in ``spec.seen``.
        arguments: The command's, for hyperparameters.yaml.
    """
    length = max(spec.block_size, *(use.block_size or 0 for use in spec.seen[-1:]), 0)
    plan = plan_data(replace(spec, block_size=length))  # what is unread is known in the base's blocks
    for warning in plan.warnings:
        print(f"Warning: {warning}")
    batch = next(next_batches(plan.train_loader(0, None), torch.device("cpu")))
    inputs, targets = (tokens[:, : spec.block_size] for tokens in batch)
    name, seeds = spec.config.name, f"{len(check.seeds)} seed{'s' * (len(check.seeds) > 1)}"
    tuned = f"lr {check.base_lr:g} at n_embd {check.mup_base.n_embd}"
    sizes = ", ".join(str(check.size(config)) for config in check.configs)
    grown = FIELDS[check.over]
    if check.over == "depth":
        tuned += f" and n_layer {check.mup_base.n_layer}"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    print(
        f"{name}, {grown} {sizes}; {tuned}; {check.optimizer}; {check.steps} steps on"
        f" {' x '.join(map(str, inputs.shape))} tokens, {plan.describe()}; {seeds}; {device}"
    )
    coordinates = measure_coordinates(check, inputs, targets)
    slopes = fit_slopes(coordinates)
    print(f"\nLog-log slope of mean |activation| against {grown} at step {check.steps}")
    print(as_text(table(slopes)))
    print(f"* grows: above {MAX_SLOPE:g}; {LIMITS[check.over]}")
    with writing("--out_dir", spec.out_dir):
        spec.out_dir.mkdir(parents=True, exist_ok=True)
        save(coordinates, slopes, f"{name}: {check.optimizer.name}, {tuned}, mean of {seeds}", spec.out_dir)
        write_whole(spec.out_dir / HYPERPARAMETERS, yaml.safe_dump(arguments, sort_keys=False, allow_unicode=True))
    print(f"Wrote {RESULTS}, {SLOPES} and {PICTURE} to {str(spec.out_dir)!r}")


def build_model(check: CoordCheck, way: Way, config: Config, seed: int) -> MuGPT:
    """One of a check's models as training would start with it, on the CPU, with base shapes."""
    name = check.parametrization(way)
    mup_base = config if PARAMETRIZATIONS[name].is_own_base else check.mup_base
    growth = growth_into(config, check.source, way.growth) if check.source and way.growth else None
    return build.build_model(config, mup_base, seed, growth, check.source, name)


def measure_coordinates(check: CoordCheck, inputs: torch.Tensor, targets: torch.Tensor) -> pandas.DataFrame:
    """Train every width in every way for a few steps on one batch, by mup's ``coord_check``.

    In fp32, on the GPU where there is one, without clipping.

    Args:
        check: What to measure.
        inputs: Tokens, int64, shape (B, T).
        targets: The tokens that follow, shape (B, T).

    Returns:
        A row for each layer, width or depth, forward pass ``t`` (from 1, which is before the first update), seed and
        way, with ``l1``, the mean absolute output over batch, tokens and channels. The first columns are named as
        ``mup.coord_check.plot_coord_data`` takes them. Over depth the first and the last block are there alone.
    """
    frames = []
    for way in check.ways:
        started = time.perf_counter()
        optimizer = partial(
            build_optimizer, cls=check.optimizer.cls, arguments=check.optimizer.arguments(fused=False),
            base_lr=check.base_lr, parametrization=check.parametrization(way),
        )  # fmt: skip
        for seed in check.seeds:
            models = {check.size(c): lambda c=c: build_model(check, way, c, seed) for c in check.configs}  # noqa: B023
            try:
                frame = _get_coord_data(  # get_coord_data, which takes no optimizer of ours: it knows mup's table alone
                    models,
                    [(inputs, targets.flatten())],
                    optimizer,
                    nsteps=check.steps,
                    nseeds=1,
                    flatten_output=True,
                    cuda=torch.cuda.is_available(),
                    filter_module_by_name=lambda name: layer_name(name, "activation") is not None,
                    show_progress=False,
                )
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                raise UserError(
                    "out of GPU memory: lower --batch_size, --block_size or the largest of the models"
                ) from error
            named: Any = frame[["t", "width", "module", "l1"]]
            if check.over == "depth":
                named = at_the_ends(named.rename(columns={"width": "depth"}))
                named.insert(1, "width", check.configs[0].n_embd)
            frames.append(named.assign(parametrization=way.parametrization, shrink=way.shrink, seed=seed))
        label, models = way_name(way.parametrization, way.shrink), f"{len(check.seeds)} x {len(check.configs)} models"
        print(f"{label}: {models}, {time.perf_counter() - started:.0f} s")
    return pandas.concat(frames, ignore_index=True)


def at_the_ends(coordinates: Any) -> pandas.DataFrame:
    """The rows of what models of every depth have: of the blocks the first one and, by this name, the last."""
    blocks = coordinates["module"].str.extract(r"^transformer\.h\.(\d+)", expand=False)
    last = coordinates[blocks.astype(float) == coordinates["depth"] - 1]
    names = last["module"].str.replace(r"h\.\d+", f"h.{LAST_BLOCK}", regex=True)
    return pandas.concat([coordinates[blocks.isna() | (blocks == "0")], last.assign(module=names)])


def picture(coordinates: pandas.DataFrame, title: str, name: str = "coordinates") -> Figure:
    """Mean |activation| against size at the last step, a panel for each way, a mean over seeds."""
    over = grown_over(coordinates)
    means: Any = named(at_the_end(coordinates)).groupby(["way", "layer", over], sort=False)["l1"].mean()
    series: dict[str, dict[str, pandas.Series]] = {}
    for (way, layer), values in means.groupby(level=["way", "layer"], sort=False):
        series.setdefault(way, {})[layer] = values.droplevel(["way", "layer"])
    return panels(name, title, series, "mean |activation|", f"{over} ({FIELDS[over]})", log=True)


def save(coordinates: pandas.DataFrame, slopes: pandas.DataFrame, title: str, out_dir: Path) -> None:
    """Write the coordinates, by which the folder is known as a check's, the slopes and the picture, each whole.

    An earlier check's go first: beside the new coordinates they would be taken for theirs.
    """
    for name in (SLOPES, PICTURE, HYPERPARAMETERS):
        (out_dir / name).unlink(missing_ok=True)
    write_csv(out_dir / RESULTS, coordinates)
    write_csv(out_dir / SLOPES, slopes)
    write_whole(out_dir / PICTURE, picture(coordinates, title).png)


def section(found: Found) -> Section | None:
    """Mean |activation| over width, and its log-log slopes, for each folder of a coordinate check."""
    sentence = (
        "How each layer's mean absolute activation goes with width, or depth, after a few steps on one batch: L1 ~"
        f" n_embd^slope, or n_layer^slope. A slope above {MAX_SLOPE:g} is growth, as standard parametrization (SP) has"
        " it; over width under muP, and over both under CompleteP, it is 0 or less."
    )

    def part(name: str, folder: Path, number: int) -> Section:
        coordinates = read_table(folder / RESULTS)
        coordinates = coordinates.astype({"t": int, grown_over(coordinates): int, "l1": float})
        slopes = read_table(folder / SLOPES)
        title = setting(read_yaml(folder / HYPERPARAMETERS), int(max(coordinates["t"])))
        shown = Table(f"coordinate_slopes_{number}", f"Slopes. {title}", slopes, table(slopes))
        return Section(name, title, figures=[picture(coordinates, title, f"coordinates-{number}")], tables=[shown])

    return section_of("Coordinate checks", sentence, found.results[RESULTS], part)


def setting(arguments: Mapping[str, Any], step: int) -> str:
    """Steps, and tokens per parameter of the narrowest model where its record is still there to tell."""
    tokens = (step - 1) * arguments["batch_size"] * arguments["block_size"]
    words = f"step {step}, lr {arguments['lr']:g}, {arguments['num_seeds']} seeds; {tokens:,} tokens trained on"
    if "optimizer" in arguments:  # an older version's check has Adam
        words = f"{recorded_optimizer(arguments['optimizer']).name}, {words}"
    if arguments["base"] and (record := Path(arguments["base"]) / RECORD).is_file():
        return words + f", {tokens / Record.load(record).parameters:.2g} tokens per parameter of the base"
    return words + ", next to 0 tokens per parameter"
