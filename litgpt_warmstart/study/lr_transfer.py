"""Learning rates over width: does the best one stay where it is, as muTransfer has it (arXiv 2203.03466, figure 1)?

Every scale is trained from scratch on the same tokens with the same learning rates, which are given at the first one,
the muP base. Under standard parametrization nothing is carried: each scale has the rate as it is.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import write_whole
from litgpt_warmstart.method.model import parameter_count
from litgpt_warmstart.method.parametrization import DEFAULT, PARAMETRIZATIONS
from litgpt_warmstart.method.scales import short_name
from litgpt_warmstart.report.figures import Figure, Scan, scans
from litgpt_warmstart.report.page import Section, Table, as_text, write_csv
from litgpt_warmstart.report.runs import Found
from litgpt_warmstart.report.statistics import estimate
from litgpt_warmstart.run.spec import RunSpec, TrainArgs
from litgpt_warmstart.study.coord_check import models
from litgpt_warmstart.study.folder import check_results, read_table, section_of
from litgpt_warmstart.study.grid_search import results
from litgpt_warmstart.study.outcomes import OUTCOME, Outcome, Study, StudyRun, read_outcome

RESULTS, OPTIMA, PICTURE = "lr_transfer.csv", "optima.csv", "lr_transfer.png"
COLUMNS = (
    "parametrization", "scale", "n_embd", "parameters", "lr", "seed",
    "status", "first_val_loss", "val_loss", "steps", "tokens", "seconds", "run",
)  # fmt: skip
RUNS = "runs"
"""Folder of a scan's runs."""
ANY = "any"
"""The parametrization of the base's runs: every multiplier is 1 there, so that all are one."""
MOST_MOVED = 2.0
"""The factor within which an optimum is said to stay."""


def plan(
    make: Callable[..., RunSpec],
    scales: Sequence[str],
    parametrizations: Sequence[str],
    lrs: Sequence[float],
    seeds: Sequence[int],
    train: TrainArgs,
    out_dir: Path,
) -> Study:
    """The runs of a scan, which ``make`` resolves: seed by seed, narrow scales first.

    Raises:
        UserError: A parametrization is unknown or named twice, there are no two scales, one is not wider than the one
            before or of another kind, or ``out_dir`` holds something else.
    """
    for name in parametrizations:
        if name not in PARAMETRIZATIONS:
            raise UserError(f"--parametrizations has no {name!r}: choose from {', '.join(PARAMETRIZATIONS)}")
        if parametrizations.count(name) > 1:
            raise UserError(f"--parametrizations has {name} twice: leave one out")
    check_results(out_dir / RESULTS, COLUMNS[:3], OPTIMA, PICTURE)
    base = make(target=scales[0], out_dir=out_dir, lr=lrs[0], train=train, parametrization=DEFAULT)
    configs = models(base.config, None, scales)
    names = [short_name(config.name) for config in configs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--scales has two models called {twice!r}: give one another name")
    same = replace(train, global_batch_size=base.global_batch_size, max_seq_length=base.block_size)

    def planned(number: int, parametrization: str, lr: float, seed: int) -> StudyRun:
        scale, config = names[number], configs[number]
        way = "" if parametrization == ANY else f"-{parametrization}"
        name = f"{scale}{way}-lr-{lr!r}-seed-{seed}"
        used = DEFAULT if parametrization == ANY else parametrization
        mup_base = scales[0] if number and not PARAMETRIZATIONS[used].is_own_base else None
        spec = make(
            target=scales[number], out_dir=out_dir / RUNS / name, lr=lr, seed=seed, train=same,
            parametrization=used, mup_base=mup_base,
        )  # fmt: skip
        if spec.mup_base_dir is not None:  # whose own base, and tokens read, would be taken
            raise UserError(f"--scales {scales[0]} is a checkpoint's folder: give its model_config.yaml")
        factors = dict(
            parametrization=parametrization, scale=scale, n_embd=config.n_embd, parameters=parameter_count(config),
            lr=lr, seed=seed,
        )  # fmt: skip
        return StudyRun(name, spec, factors)

    ways = [(0, ANY), *((number, name) for number in range(1, len(scales)) for name in parametrizations)]
    runs = [planned(*way, lr, seed) for seed, way, lr in itertools.product(seeds, ways, lrs)]
    for row in earlier(out_dir, ()).itertuples():
        if row.parametrization != ANY:
            continue
        if row.scale != names[0]:
            raise UserError(
                f"{str(out_dir)!r} holds learning rates given at {row.scale}, now at {names[0]}: choose another"
                " --out_dir"
            )
        read_outcome(planned(0, ANY, float(row.lr), int(row.seed)))  # which tells of another budget, data or batch
    print(
        f"Learning rates over width at {', '.join(names)}: {len(lrs)} learning rates x {len(seeds)} seeds,"
        f" {runs[0].spec.max_tokens:,} tokens each; {len(runs)} runs"
    )
    return Study(out_dir, runs, partial(conclude, out_dir, runs))


def earlier(out_dir: Path, runs: Sequence[StudyRun]) -> Any:
    """Rows of an earlier scan in this folder, over other scales, parametrizations, learning rates or seeds.

    A run whose folder is gone is no more of it.
    """
    path = out_dir / RESULTS
    rows = read_table(path) if path.is_file() else pandas.DataFrame(columns=COLUMNS)
    ours = {run.name for run in runs}
    kept = [name not in ours and (out_dir / RUNS / name / OUTCOME).is_file() for name in rows["run"]]
    return rows[np.array(kept, dtype=bool)]


def conclude(out_dir: Path, runs: Sequence[StudyRun], outcomes: Mapping[str, Outcome]) -> None:
    """Write a scan's tables and picture, and print what came out."""
    rows: Any = pandas.concat([earlier(out_dir, runs), results(runs, outcomes)])
    numbers = dict(n_embd=int, lr=float, seed=int)
    rows = rows[list(COLUMNS)].astype(numbers).sort_values(["n_embd", "parametrization", "lr", "seed"])
    write_csv(out_dir / RESULTS, rows)
    found = curves(rows)
    write_csv(out_dir / OPTIMA, optima(found))
    title = setting(found)
    write_whole(out_dir / PICTURE, picture(found, title).png)
    print(f"\n{title}\n\n{as_text(table(found))}\n")
    print(*verdicts(found), f"Wrote {RESULTS}, {OPTIMA} and {PICTURE} to {str(out_dir)!r}", sep="\n")


@dataclass(frozen=True)
class Optimum:
    """Where a loss over learning rates is least."""

    lr: float
    """NaN where every rate diverged."""
    val_loss: float
    low: float
    high: float
    """A loss with one minimum has it between these; they are ``lr`` itself where a parabola tells it."""
    place: str = ""
    """Why no parabola does."""

    @property
    def is_told(self) -> bool:
        return not self.place

    def moved_from(self, base: "Optimum") -> tuple[float, float]:
        """The factor from another optimum to this one: the least and the most that it can be."""
        return self.low / base.high, self.high / base.low if base.low else math.inf


def optimum(losses: pandas.Series) -> Optimum:
    """The least of a parabola, in log learning rate, through the lowest loss and its neighbours.

    Args:
        losses: By learning rate, ascending; what diverged is infinite.
    """
    lrs, values = losses.index.to_numpy(dtype=float), losses.to_numpy(dtype=float)
    best = int(values.argmin())
    lr, least = float(lrs[best]), float(values[best])
    if math.isinf(least):
        return Optimum(math.nan, math.nan, 0.0, math.inf, "every rate diverged")
    low, high = (0.0, *lrs)[best], (*lrs, math.inf)[best + 1]
    if best in (0, len(lrs) - 1):
        return Optimum(lr, least, low, high, f"at the edge, the {'largest' if best else 'smallest'} of --lrs")
    near = slice(best - 1, best + 2)
    if not np.isfinite(values[near]).all():
        return Optimum(lr, least, low, high, "beside a rate that diverged")
    place, least = vertex(np.log(lrs[near]), values[near])
    lr = math.exp(place)
    return Optimum(lr, least, lr, lr)


def vertex(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Where a parabola through three points, the middle one the lowest, is least, and what it is there."""
    before, after = np.diff(y) / np.diff(x)
    curvature = (after - before) / (x[2] - x[0])
    if curvature == 0:
        return float(x[1]), float(y[1])
    place = (x[0] + x[1] - before / curvature) / 2
    return float(place), float(y[0] + (place - x[0]) * (before + curvature * (place - x[1])))


@dataclass(frozen=True)
class Curve:
    """Losses over learning rates of one scale under one parametrization."""

    parametrization: str
    scale: str
    n_embd: int
    parameters: int
    tokens: int
    by_seed: pandas.DataFrame
    """Last validation losses, a row a learning rate, a column a seed: infinite where it diverged, NaN if not run."""

    @property
    def label(self) -> str:
        return PARAMETRIZATIONS[self.parametrization].label

    @property
    def mean(self) -> Any:
        """Over seeds, by learning rate."""
        return self.by_seed.mean(axis=1)

    @property
    def std(self) -> Any:
        """Over seeds, by learning rate; NaN where one diverged."""
        return self.by_seed.where(np.isfinite(self.by_seed)).std(axis=1, skipna=False)

    @property
    def optimum(self) -> Optimum:
        """Of the mean."""
        return optimum(self.mean)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval over seeds of the optimum, by those of each seed's own losses; NaN where one has none."""
        own = [optimum(losses.dropna()) for _, losses in self.by_seed.items()]
        if len(own) < 2 or not all(each.is_told for each in (*own, self.optimum)):
            return math.nan, math.nan
        logs = estimate([math.log(each.lr) for each in own])
        by = math.exp(logs.high - logs.mean)
        return self.optimum.lr / by, self.optimum.lr * by


def curves(rows: Any) -> list[list[Curve]]:
    """The curves of a scan by parametrization, the base's first; ``rows`` are those of lr_transfer.csv."""
    kinds = dict(n_embd=int, parameters=int, lr=float, seed=int, val_loss=float, tokens=int)
    typed = rows.astype(kinds).sort_values("n_embd", kind="stable")
    typed["val_loss"] = typed["val_loss"].where(typed["status"] == "finished", math.inf)
    found = []
    for name in typed["parametrization"].unique():
        if name == ANY:
            continue
        of_it = typed[typed["parametrization"].isin((name, ANY))]
        found.append([])
        for scale, group in of_it.groupby("scale", sort=False):
            losses = group.pivot(index="lr", columns="seed", values="val_loss")
            n_embd, parameters, tokens = (int(group[column].max()) for column in ("n_embd", "parameters", "tokens"))
            found[-1].append(Curve(name, scale, n_embd, parameters, tokens, losses))
    if not found:
        raise ValueError("it has the base's runs alone")
    return found


def optima(found: Sequence[Sequence[Curve]]) -> pandas.DataFrame:
    """A row for each curve, as optima.csv has it; the mean losses by learning rate come last."""
    rows = []
    for base, curve in ((lines[0], curve) for lines in found for curve in lines):
        best, (low, high) = curve.optimum, curve.interval
        least, most = best.moved_from(base.optimum)
        row = {
            "parametrization": curve.parametrization, "scale": curve.scale, "n_embd": curve.n_embd,
            "tokens_per_param": curve.tokens / curve.parameters, "seeds": len(curve.by_seed.columns),
            "optimum": best.lr, "optimum_low": low, "optimum_high": high, "place": best.place,
            "val_loss": best.val_loss, "factor_least": least, "factor_most": most,
        }  # fmt: skip
        rows.append(row | {lr: loss if math.isfinite(loss) else "diverged" for lr, loss in curve.mean.items()})
    table: Any = pandas.DataFrame(rows)
    columns, lrs = [c for c in table if isinstance(c, str)], sorted(c for c in table if not isinstance(c, str))
    return table[[*columns, *lrs]].rename(columns={lr: f"val_loss_at_{lr!r}" for lr in lrs})


def table(found: Sequence[Sequence[Curve]]) -> pandas.DataFrame:
    """A row for each curve, as text: the mean losses by learning rate, the optimum, and how far it moved."""
    lrs = sorted({lr for lines in found for curve in lines for lr in curve.mean.index})
    rows = []
    for base, curve in ((lines[0], curve) for lines in found for curve in lines):
        best, (low, high) = curve.optimum, curve.interval
        lr = "" if math.isnan(best.lr) else f"{best.lr:.3g}"
        where = f"{low:.3g} to {high:.3g}" if math.isfinite(low) else best.place
        losses = curve.mean.reindex(lrs).map(lambda loss: "diverged" if math.isinf(loss) else f"{loss:.4f}")
        rows.append({
            "": f"{curve.label}, {curve.scale}", "tokens per param": f"{curve.tokens / curve.parameters:.3g}",
            **{f"lr {lr:g}": "-" if told == "nan" else told for lr, told in losses.items()},
            "optimum": f"{lr} ({where})".strip() if where else lr,
            "times the first": "-" if curve is base else moved(best.moved_from(base.optimum)),
        })  # fmt: skip
    return pandas.DataFrame(rows)


def moved(factor: tuple[float, float]) -> str:
    """A factor, from the least to the most that it can be, in words."""
    least, most = factor
    if least == most:
        return f"{least:.2f}"
    if math.isinf(most):
        return f"at least {least:.2f}" if least else "not told"
    return f"at most {most:.2f}" if not least else f"{least:.2f} to {most:.2f}"


def verdicts(found: Sequence[Sequence[Curve]]) -> list[str]:
    """Whether the optimum stays within :data:`MOST_MOVED` of the base's, a sentence a parametrization."""
    told = []
    for base, *others in found:
        factors = {curve.scale: curve.optimum.moved_from(base.optimum) for curve in others}
        most = MOST_MOVED * (1 + 1e-9)  # a factor of exactly that is within
        if any(high * most < 1 or low > most for low, high in factors.values()):
            verdict = f"the optimum moves by more than a factor of {MOST_MOVED:g}"
        elif all(low * most >= 1 and high <= most for low, high in factors.values()):
            verdict = f"the optimum stays within a factor of {MOST_MOVED:g}"
        else:
            open_at = [f"{c.optimum.place} at {c.scale}" for c in (base, *others) if not c.optimum.is_told]
            verdict = f"whether the optimum stays within a factor of {MOST_MOVED:g} is not told ({'; '.join(open_at)})"
        listed = ", ".join(f"{moved(factor)} at {scale}" for scale, factor in factors.items())
        told.append(f"{base.label}: {verdict}. Times that of {base.scale} it is {listed}.")
    return told


def setting(found: Sequence[Sequence[Curve]]) -> str:
    """What all curves share, in words."""
    base = found[0][0]
    seeds = sorted({len(curve.by_seed.columns) for lines in found for curve in lines})
    return (
        f"Last validation loss by learning rate at {base.scale}, {base.tokens:,} tokens each; mean of"
        f" {' or '.join(map(str, seeds))} seed{'s' * (seeds != [1])}"
    )


def picture(found: Sequence[Sequence[Curve]], title: str, name: str = "lr-transfer") -> Figure:
    """A panel for each parametrization, a line for each scale."""
    panels = {
        lines[0].label: [
            Scan(curve.scale, curve.mean, curve.std, best.lr, best.val_loss, best.is_told)
            for curve in lines
            for best in [curve.optimum]
        ]
        for lines in found
    }
    return scans(name, title, panels, f"learning rate at {found[0][0].scale}", MOST_MOVED)


def section(found: Found) -> Section | None:
    """Losses over learning rates by width, for each folder of a scan."""
    sentence = (
        "Last validation loss over learning rates, given at the narrowest model, the same tokens in every run. The"
        " optimum is the least of a parabola, in log learning rate, through the lowest mean and its neighbours; in"
        " parentheses its 95% interval over seeds. Bands are a standard deviation over seeds."
    )

    def part(name: str, folder: Path, number: int) -> Section:
        lines = curves(read_table(folder / RESULTS))
        title = setting(lines)
        shown = Table(f"learning_rates_{number}", title, optima(lines), table(lines))
        figures = [picture(lines, title, f"lr-transfer-{number}")]
        return Section(name, title, answers=verdicts(lines), figures=figures, tables=[shown])

    return section_of("Learning rates over width", sentence, found.results[RESULTS], part)
