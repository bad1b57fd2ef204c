"""Coordinate check: do activations keep their size as width grows (arXiv 2203.03466, appendix D.1)?

A few optimizer steps at each of several widths, on one batch. Under muP every layer's mean absolute activation (L1)
tends to a constant; under standard parametrization (SP), with one learning rate for all widths, whatever the updates
reach grows. Figures 3 and 7 of arXiv 2411.07340 ask the same of warmstarted models. ``mup.coord_check`` measures.

L1 ~ n_embd^slope. In the limit of width the slopes are 0 under muP (below 0 where a layer only averages: logits start
as n_embd^-1/2, and a base's weights, padded with zeros, thin out) and 1 under SP, where Adam moves every entry of a
matrix alike and n_embd of them add up. Exponents come in halves, so a failure has a slope of 1/2 or more, while noise
and finite width make of 0 what was at most 0.22 in muP and warmstarts (5 seeds, widths 48 to 384, three updates at lr
0.01; 0.34 with 3 seeds to 192), in attention, where SP's blocks and logits had 0.8 to 1.8. So above 0.4 a layer grows.
"""

import math
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from litgpt.config import Config
from mup.coord_check import get_coord_data

from litgpt_warmstart.data.loaders import next_batches
from litgpt_warmstart.data.plan import plan_data
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method import growth, parametrization
from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.method.model import MuGPT
from litgpt_warmstart.report.tables import write_csv, write_picture
from litgpt_warmstart.run.checkpoint import HYPERPARAMETERS, Checkpoint
from litgpt_warmstart.run.spec import RunSpec

ArmName = Literal["sp", "mup", "warmstart"]

FILE_NAME, SLOPES, PICTURE = "coord_check.csv", "slopes.csv", "coord_check.png"
MAX_SLOPE = 0.4
"""A slope above it is growth."""

_ENDS = {"transformer.wte": "embedding", "transformer.ln_f": "ln_f", "lm_head": "lm_head"}
_IN_BLOCK = re.compile(r"transformer\.h\.(\d+)(?:\.(attn|mlp))?")


@dataclass(frozen=True)
class Arm:
    """One way to start training a width."""

    parametrization: ArmName
    shrink: float | None = None
    """lambda_shrink of a warmstart; None for the others."""

    @property
    def label(self) -> str:
        """For tables and pictures."""
        return {"sp": "SP", "mup": "muP"}.get(self.parametrization) or f"shrink {self.shrink:g}"


@dataclass(frozen=True)
class CoordCheck:
    """Everything that decides a coordinate check, but for the batch."""

    configs: tuple[Config, ...]
    """The models, narrowest first, before muP's attention scale."""
    mup_base: Config
    """Where the learning rate was tuned. SP takes each model's own shapes instead."""
    arms: tuple[Arm, ...]
    base_lr: float
    steps: int
    """Forward passes, with an update after each; the last one is what slopes are taken from."""
    seeds: tuple[int, ...]
    source: Checkpoint | None = None
    """The base of the warmstarts; None where no arm is one."""
    growth: Growth = Growth()
    """How the warmstarts are grown; each arm has its own shrink."""


@dataclass(frozen=True)
class Coordinate:
    """One measurement; the first four fields are named as mup names them, for ``mup.coord_check.plot_coord_data``."""

    t: int
    """The forward pass, from 1; 1 is before the first update."""
    width: int
    """n_embd."""
    module: str
    """Name of the module whose output it is."""
    l1: float
    """Mean absolute value of the output over batch, tokens and channels."""
    parametrization: ArmName
    shrink: float | None
    seed: int

    @property
    def arm(self) -> Arm:
        return Arm(self.parametrization, self.shrink)


@dataclass(frozen=True)
class Slope:
    """How a layer's L1 goes with width: L1 ~ width^slope."""

    module: str
    parametrization: ArmName
    shrink: float | None
    slope: float
    """Mean over seeds of the least-squares slope of log L1 against log width; NaN where an L1 is not finite."""
    standard_error: float
    """Of that mean; NaN for one seed."""
    verdict: Literal["ok", "grows", "diverges"]

    @property
    def arm(self) -> Arm:
        return Arm(self.parametrization, self.shrink)


def read_batch(spec: RunSpec) -> tuple[torch.Tensor, torch.Tensor, str]:
    """The first batch that a run would read, after everything in ``spec.seen``.

    Returns:
        Inputs and targets, int64, shape (B, T) each, and what they are in a few words.

    Raises:
        UserError: The data is missing, too short, or needs another vocabulary.
    """
    length = max(spec.block_size, *(use.block_size or 0 for use in spec.seen[-1:]), 0)
    plan = plan_data(replace(spec.reading, block_size=length))  # what is unread is known in the base's blocks
    for warning in plan.warnings:
        print(f"Warning: {warning}")
    inputs, targets = next(next_batches(plan.train_loader(0, None), torch.device("cpu")))
    return inputs[:, : spec.block_size], targets[:, : spec.block_size], plan.describe()


def widened(config: Config, n_embd: int) -> Config:
    """The same model with another n_embd: as many more heads and MLP channels, each head as large as before.

    Raises:
        UserError: Heads or channels would not come out whole.
    """
    counts = {name: getattr(config, name) for name in ("n_head", "n_query_groups", "intermediate_size")}
    step = config.n_embd // math.gcd(config.n_embd, *counts.values())
    if n_embd % step or n_embd <= 0:
        raise UserError(
            f"width {n_embd} of --widths is no multiple of {step}, by which {config.name!r} grows whole heads of"
            f" {config.head_size}: change it, or give --scales"
        )
    counts = {name: count * n_embd // config.n_embd for name, count in counts.items()}
    return replace(config, name=f"{config.name}-{n_embd}", n_embd=n_embd, **counts)


def build_model(check: CoordCheck, arm: Arm, config: Config, seed: int) -> MuGPT:
    """A model as training would start with it, on the CPU, with base shapes.

    Args:
        check: Gives muP's base and the source of a warmstart.
        arm: How it starts.
        config: One of ``check.configs``.
        seed: Of the initialization or perturbation.
    """
    mup_base = config if arm.parametrization == "sp" else check.mup_base
    config = parametrization.mup_config(config, mup_base)
    model = MuGPT(config, parametrization.width_mult(config, mup_base))
    parametrization.set_base_shapes(model, mup_base)
    if arm.parametrization != "warmstart":
        parametrization.load_weights(model, parametrization.initial_weights(model, mup_base, seed))
        return model
    grown = growth.grow(
        check.source.weights_under(parametrization.folding(check.source.config, mup_base)),
        parametrization.initial_weights(model, mup_base, seed, check.growth.perturb),
        check.source.config,
        config,
        replace(check.growth, shrink=arm.shrink),
    )
    parametrization.load_weights(model, grown)
    return model


def measure(
    check: CoordCheck,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Coordinate]:
    """Train every width of every arm for a few steps of Adam on one batch, by ``mup.coord_check.get_coord_data``.

    In fp32, on the GPU where there is one. Adam is mup's MuAdam with torch's betas, without weight decay or clipping.

    Args:
        check: What to measure.
        inputs: Tokens, int64, shape (B, T).
        targets: The tokens that follow, shape (B, T).
        tell: Called with a line as each arm is done.

    Raises:
        UserError: The GPU's memory does not hold a width.
    """
    found = []
    for arm in check.arms:
        started = time.perf_counter()
        for seed in check.seeds:
            models = {c.n_embd: lambda c=c: build_model(check, arm, c, seed) for c in check.configs}  # noqa: B023
            try:
                frame = get_coord_data(
                    models,
                    [(inputs, targets.flatten())],
                    optimizer="adam",  # mup's adamw gives SP a weight decay that muP does not get
                    lr=check.base_lr,
                    mup=arm.parametrization != "sp",
                    nsteps=check.steps,
                    nseeds=1,
                    flatten_output=True,
                    cuda=torch.cuda.is_available(),
                    filter_module_by_name=lambda name: name in _ENDS or bool(_IN_BLOCK.fullmatch(name)),
                    show_progress=False,
                )
            except torch.OutOfMemoryError as error:
                raise UserError(
                    "out of GPU memory: lower --batch_size, --block_size or the largest of --widths or --scales"
                ) from error
            found += [
                Coordinate(r["t"], r["width"], r["module"], r["l1"], arm.parametrization, arm.shrink, seed)
                for r in frame.to_dict("records")
            ]
        tell(f"{arm.label}: {len(check.seeds)} x {len(check.configs)} models, {time.perf_counter() - started:.0f} s")
    return found


def fit_slope(widths: list[float], values: list[float]) -> float:
    """Least-squares slope of log value against log width: 0 for a layer that is off (0 at every width), NaN where a
    value is not finite or a layer is off at some widths only."""
    if not any(values):
        return 0.0
    if not all(0 < value < math.inf for value in values):
        return math.nan
    x, y = [math.log(width) for width in widths], [math.log(value) for value in values]
    centre = sum(x) / len(x)
    return sum((a - centre) * b for a, b in zip(x, y, strict=True)) / sum((a - centre) ** 2 for a in x)


def fit_slopes(coordinates: list[Coordinate]) -> list[Slope]:
    """Slope and verdict of every layer and arm at the last step, in the order of measuring."""
    last = max(c.t for c in coordinates)
    curves: dict[tuple[str, Arm], dict[int, list[Coordinate]]] = {}
    for c in coordinates:
        if c.t == last:
            curves.setdefault((c.module, c.arm), {}).setdefault(c.seed, []).append(c)
    found = []
    for (module, arm), by_seed in curves.items():
        slopes = [fit_slope([c.width for c in curve], [c.l1 for c in curve]) for curve in by_seed.values()]
        slope, error = sum(slopes) / len(slopes), math.nan
        if len(slopes) > 1:
            error = math.sqrt(sum((s - slope) ** 2 for s in slopes) / (len(slopes) - 1) / len(slopes))
        found.append(Slope(module, arm.parametrization, arm.shrink, slope, error, verdict(slope)))
    return found


def verdict(slope: float) -> Literal["ok", "grows", "diverges"]:
    """Whether activations with this slope grow with width; shrinking is no failure."""
    if math.isnan(slope):
        return "diverges"
    return "grows" if slope > MAX_SLOPE else "ok"


def worst(slopes: list[Slope], arm: Arm) -> str:
    """An arm's verdict: that of its worst layer."""
    verdicts = {s.verdict for s in slopes if s.arm == arm}
    return next(v for v in ("diverges", "grows", "ok") if v in verdicts)


def layer(module: str) -> str:
    """A module's name for people: ``transformer.h.3.attn`` is ``block 3 attn``."""
    inside = _IN_BLOCK.fullmatch(module)
    return _ENDS[module] if inside is None else " ".join(filter(None, ("block", *inside.groups())))


def table(slopes: list[Slope]) -> str:
    """Slopes, a line for each layer and a column for each arm, with a star where activations grow."""
    arms, modules = list(dict.fromkeys(s.arm for s in slopes)), list(dict.fromkeys(s.module for s in slopes))
    cells = {(s.module, s.arm): s for s in slopes}
    mark = {"ok": " ", "grows": "*", "diverges": "*"}
    lines = [f"{'layer':<13}" + "".join(f"{arm.label:>12}" for arm in arms)]
    for module in modules:
        row = [cells[module, arm] for arm in arms]
        lines.append(f"{layer(module):<13}" + "".join(f"{s.slope:>+11.2f}{mark[s.verdict]}" for s in row))
    lines.append(f"{'verdict':<13}" + "".join(f"{worst(slopes, arm):>11} " for arm in arms))
    return "\n".join(line.rstrip() for line in lines)


def save(coordinates: list[Coordinate], slopes: list[Slope], title: str, out_dir: Path) -> None:
    """Write the coordinates, by which the folder is known as a check's, the slopes and the picture, each whole.

    An earlier check's go first: beside the new coordinates they would be taken for theirs.
    """
    for name in (SLOPES, PICTURE, HYPERPARAMETERS):
        (out_dir / name).unlink(missing_ok=True)
    write_csv(out_dir / FILE_NAME, [asdict(coordinate) for coordinate in coordinates])
    write_csv(out_dir / SLOPES, [asdict(slope) for slope in slopes])
    plot(coordinates, title, out_dir / PICTURE)


def plot(coordinates: list[Coordinate], title: str, path: Path) -> None:
    """Draw L1 against width, a column for each arm, before the first update and at the last step, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    logs: dict[tuple[Arm, int, str], dict[int, list[float]]] = {}
    for c in coordinates:
        value = math.log(c.l1) if 0 < c.l1 < math.inf else math.nan
        logs.setdefault((c.arm, c.t, c.module), {}).setdefault(c.width, []).append(value)
    arms, steps = list(dict.fromkeys(c.arm for c in coordinates)), sorted({1, max(c.t for c in coordinates)})
    widths = sorted({c.width for c in coordinates})
    blocks = 1 + max(int(m[1]) for c in coordinates if (m := _IN_BLOCK.fullmatch(c.module)))
    viridis = plt.get_cmap("viridis")
    colormap = ListedColormap([viridis(0.9 * b / max(1, blocks - 1)) for b in range(blocks)])  # not its faint end
    kinds = {"": ("-", "o", "block output"), "attn": ("--", "^", "attention"), "mlp": (":", "s", "MLP")}
    ends = {"embedding": ("#000000", "v"), "ln_f": ("#999999", "D"), "lm_head": ("#D55E00", "P")}

    size = (2.1 * len(arms) + 1.9, 2.3 * len(steps) + 0.9)
    figure, grid = plt.subplots(
        len(steps), len(arms), figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for (arm, t, module), by_width in logs.items():
        if t not in steps:
            continue
        inside = _IN_BLOCK.fullmatch(module)
        if inside:
            line, marker, _ = kinds[inside[2] or ""]
            style = dict(color=colormap(int(inside[1])), linestyle=line, marker=marker, linewidth=1.1, markersize=2.8)
        else:
            color, marker = ends[_ENDS[module]]
            style = dict(color=color, linestyle="-", marker=marker, linewidth=1.6, markersize=4)
        means = [math.exp(sum(by_width[w]) / len(by_width[w])) for w in widths]
        grid[steps.index(t), arms.index(arm)].plot(widths, means, **style)
    for axes in grid.flat:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(FixedLocator(widths))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.tick_params(labelsize=7)
        axes.grid(color="0.92", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    for axes, arm in zip(grid[0], arms, strict=True):
        axes.set_title(arm.label, fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("width (n_embd)", fontsize=8)
    for axes, t in zip(grid[:, 0], steps, strict=True):
        when = "before any update" if t == 1 else f"after {t - 1} update{'s' * (t > 2)}"
        axes.set_ylabel(f"mean |activation|\n{when}", fontsize=8)
    handles = [
        Line2D([], [], color="0.3", linestyle=k[0], marker=k[1], markersize=4, label=k[2]) for k in kinds.values()
    ]
    handles += [Line2D([], [], color=c, marker=m, markersize=5, label=name) for name, (c, m) in ends.items()]
    scale = plt.cm.ScalarMappable(BoundaryNorm([b - 0.5 for b in range(blocks + 1)], blocks), colormap)
    bar = figure.colorbar(scale, ax=grid, ticks=range(blocks), aspect=25, pad=0.01)
    bar.set_label("block", fontsize=8)
    bar.ax.tick_params(labelsize=7, length=0)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=9)
    write_picture(figure, path, dpi=150)
    plt.close(figure)
