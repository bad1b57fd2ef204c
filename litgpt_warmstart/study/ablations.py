"""Ablations: arms over how weights are grown and how the target is trained (figures 2 and 9 of arXiv 2411.07340).

Every arm has its run from scratch beside it: the same base and target, budget, schedule, weight decay and seed.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas
from litgpt.config import Config
from litgpt.utils import extend_checkpoint_dir

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import write_whole
from litgpt_warmstart.method.growth import Growth, check_growable
from litgpt_warmstart.method.scales import resolve_config
from litgpt_warmstart.method.schedule import SCHEDULES, ScheduleName
from litgpt_warmstart.report.figures import dots
from litgpt_warmstart.report.page import as_text, write_csv
from litgpt_warmstart.report.runs import curve
from litgpt_warmstart.report.statistics import estimate, losses_at, tokens_to_last_loss, tokens_to_reach
from litgpt_warmstart.run.checkpoint import RECORD
from litgpt_warmstart.run.metrics import FILE_NAME, read_metrics
from litgpt_warmstart.run.optimizer import OURS, named
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.resolve import read_base
from litgpt_warmstart.run.spec import RunSpec, TrainArgs
from litgpt_warmstart.study.folder import check_results
from litgpt_warmstart.study.outcomes import Outcome, Study, StudyRun, warmstarted
from litgpt_warmstart.study.outcomes import results as outcomes_of


@dataclass(frozen=True)
class Arm:
    """One way to grow and train the target, for all seeds."""

    base: str
    """A scale that is trained first, or a checkpoint folder."""
    target: str
    growth: Growth = Growth()
    """How the base becomes the target; shrink 0 is the run from scratch."""
    tokens_per_param: float = 20.0
    schedule: ScheduleName = "constant"
    weight_decay: float = 0.0
    optimizer: str | dict[str, Any] | None = field(default=None, hash=False)
    """Its name or config; None for the command's."""
    beta2: float | None = None
    """The second of its betas; None for its own."""
    optimizer_args: tuple[tuple[str, Any], ...] = field(default=(), hash=False)
    """More of its arguments, names and values, which an arm has as ``optimizer.NAME``."""

    def __post_init__(self) -> None:
        if self.beta2 is not None and not 0 < self.beta2 < 1:
            raise UserError(f"--arms: beta2 {self.beta2:g} must lie between 0 and 1")
        if self.schedule not in SCHEDULES:
            raise UserError(f"--arms: schedule {self.schedule!r} is none of {', '.join(SCHEDULES)}")
        if not 0 < self.tokens_per_param < math.inf or not 0 <= self.weight_decay < math.inf:
            raise UserError("--arms: tokens_per_param must be above 0, weight_decay not negative")

    @property
    def options(self) -> dict[str, Any]:
        """All that is varied, by name, those of the growth among them."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"base": own.pop("base"), "target": own.pop("target")} | own.pop("growth").options | own

    @property
    def cells(self) -> dict[str, Any]:
        """The options as a table has them: a mapping, which only shrink may be, as text."""
        return {name: as_cell(value) for name, value in self.options.items()}

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Arm":
        """The arm with these options, as YAML has them; what is left out is as by default."""
        own = {name.removeprefix(OF_OPTIMIZER): v for name, v in options.items() if name.startswith(OF_OPTIMIZER)}
        typed: dict[str, Any] = {"optimizer_args": tuple(own.items())}
        for name, value in options.items():
            if not name.startswith(OF_OPTIMIZER):
                kind = float if name == "beta2" else type(DEFAULTS[name])
                typed[name] = value if isinstance(value, dict) or name == "optimizer" else kind(value)
        growth = Growth(**{field.name: typed.pop(field.name) for field in fields(Growth) if field.name in typed})
        return cls(growth=growth if growth.shrink else growth.without_source, **typed)

    @property
    def scratch(self) -> "Arm":
        """The run from scratch to compare it with."""
        return replace(self, growth=Growth(shrink=0.0))

    @property
    def name(self) -> str:
        """What tells it from an arm with all defaults, short enough for a folder and an axis."""
        grown = "scratch" if self.growth.from_scratch else f"shrink-{self.growth.shrink_of('hidden'):g}"
        parts = [f"{short_name(self.base)}-{short_name(self.target)}", grown]
        plain = ("tokens_per_param", "schedule", "weight_decay")
        own = {name: getattr(self, name) for name in plain}
        told = self.growth.differences | {name: value for name, value in own.items() if value != DEFAULTS[name]}
        # perturb first, as the first landing had it, so that its folders are found
        for name, value in sorted(told.items(), key=lambda option: option[0] != "perturb"):
            parts.append(f"{name.replace(' ', '-')}-{value:g}" if isinstance(value, float) else f"{value}")
        return "-".join([*parts, *(word.replace(" ", "-") for word in self.optimizer_words)])

    @property
    def optimizer_words(self) -> list[str]:
        """What of its optimizer is not the command's, a few words each."""
        path, init_args = named(self.optimizer) if self.optimizer is not None else ("", {})
        told = init_args | ({"beta2": self.beta2} if self.beta2 is not None else {}) | dict(self.optimizer_args)
        return [path.rpartition(".")[2]] * bool(path) + [f"{name} {value}" for name, value in told.items()]

    def trained_with(self, optimizer: str | dict[str, Any]) -> str | dict[str, Any]:
        """The optimizer, given the command's. A UserError if that has a weight decay of its own."""
        path, init_args = named(optimizer if self.optimizer is None else self.optimizer)
        if "weight_decay" in init_args:
            raise UserError("--optimizer has a weight_decay of its own: vary weight_decay in --arms instead")
        more = dict(self.optimizer_args)
        if self.beta2 is not None:
            first = (more.get("betas") or init_args.get("betas") or OURS["betas"])[0]
            more["betas"] = [first, self.beta2]
        if self.weight_decay:
            more["weight_decay"] = self.weight_decay
        return {"class_path": path, "init_args": {**init_args, **more}} if more else self.optimizer or optimizer


OF_OPTIMIZER = "optimizer."
DEFAULTS = Arm("", "").options
"""What an arm has where nothing else is said."""
COLUMNS = ("status", "first_val_loss", "val_loss", "tokens", "matmul_flops", "hoffmann_flops")
"""Of the table, what an outcome tells."""


def short_name(model: str) -> str:
    """A scale, a config file's model, or the end of a checkpoint folder's path, as part of a file's name."""
    if Path(model).suffix in (".yaml", ".yml"):
        return resolve_config(model).name
    return "_".join(Path(model).parts[-2:])


def as_cell(value: Any) -> Any:
    """A value, or a mapping's in words: ``embedding 1, hidden 0.4``."""
    if isinstance(value, dict | tuple):
        value = dict(value)
        return ", ".join(f"{name} {v:g}" if isinstance(v, float) else f"{name} {v}" for name, v in value.items())
    return "" if value is None else value


def expand(arms: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]) -> list[Arm]:
    """All combinations of the lists in each of ``arms``, and the runs from scratch beside them, each once.

    Each of ``arms`` and ``defaults``, for what an arm leaves out, has options with a value or a list of values.
    """
    expanded: dict[Arm, None] = {}
    for arm in arms:
        if not isinstance(arm, Mapping):
            raise UserError(f"--arms: {arm!r} is no mapping such as {{shrink: [0.2, 0.4]}}")
        if unknown := sorted(name for name in arm if name not in DEFAULTS and not str(name).startswith(OF_OPTIMIZER)):
            raise UserError(f"--arms: no {unknown[0]!r} to vary: choose from {', '.join(DEFAULTS)}")
        values = {**defaults, **arm}
        lists = [value if isinstance(value, list | tuple) else [value] for value in values.values()]
        for combination in itertools.product(*lists):
            options = dict(zip(values, combination, strict=True))
            try:
                made = Arm.of(options)
            except (TypeError, ValueError) as error:
                raise UserError(f"--arms: {options}: {error}") from None
            expanded |= {made.scratch: None, made: None}
    if not expanded:
        raise UserError("--arms is empty: give at least one, e.g. [{shrink: [0.2, 0.4]}]")
    return list(expanded)


def labels(arms: Sequence[Arm]) -> tuple[str, list[str]]:
    """What all arms share, in words, and what tells each from the others."""
    words = dict(tokens_per_param="{:g} tokens per parameter", schedule="{}", weight_decay="weight decay {:g}")
    names = {"base", "target", *words}
    varied = {name for name in names if len({arm.options[name] for arm in arms}) > 1}
    optimizers = {tuple(arm.optimizer_words) for arm in arms}

    def named(arm: Arm, names: set[str]) -> list[str]:
        models = [f"{short_name(arm.base)} -> {short_name(arm.target)}"] * bool(names & {"base", "target"})
        return models + [form.format(arm.options[n]) for n, form in words.items() if n in names and arm.options[n]]

    own = [
        ["from scratch" if arm.growth.from_scratch else arm.growth.label, *named(arm, varied)]
        + arm.optimizer_words * (len(optimizers) > 1)
        for arm in arms
    ]
    shared = named(arms[0], names - varied) + arms[0].optimizer_words * (len(optimizers) == 1)
    return ", ".join(shared), [", ".join(parts) for parts in own]


def conclude(
    runs: Sequence[StudyRun], arms: Sequence[Arm], out_dir: Path, name: str, outcomes: Mapping[str, Outcome]
) -> None:
    """Write the table and the picture, and print what came of each arm."""
    rows = results(runs, outcomes)
    write_csv(out_dir / f"{name}.csv", rows)
    shared, names = labels(arms)
    losses = {
        arm: {
            "before the first step": seeds["first_val_loss"].dropna().tolist(),
            "at the end": seeds["val_loss"][seeds["status"] == "finished"].tolist(),
        }
        for arm, seeds in by_arm(rows, names)
    }
    write_whole(out_dir / f"{name}.png", dots("ablations", "", losses, shared).png)
    print(f"\n{shared}\n\n{as_text(table(rows, names))}")
    if not (compared := comparison(rows, names)).empty:
        print(f"\nLast val losses, seed by seed, with 95% intervals\n\n{as_text(compared)}")
    print(f"Wrote {name}.csv and {name}.png to {str(out_dir)!r}")


def plan(
    make: Callable[..., RunSpec],
    arms: Sequence[Arm],
    seeds: Sequence[int],
    bases: Mapping[str, Any],
    train: TrainArgs,
    optimizer: str | dict,
    out_dir: Path,
    name: str,
) -> Study:
    """All arms over seeds, runs from scratch among them, after the bases that are trained first.

    ``make`` resolves a run; ``bases`` are seed, tokens_per_param and schedule of bases that are trained.
    """
    check_results(out_dir / f"{name}.csv", ("base", "target"), f"{name}.png")

    def from_scratch(arm: Arm, folder: str, seed: int, tuned_at: str) -> RunSpec:
        return make(
            target=arm.target,
            out_dir=out_dir / "runs" / folder,
            mup_base=tuned_at,
            seed=seed,
            train=train.for_schedule(arm.schedule),
            tokens_per_param=arm.tokens_per_param,
            schedule=arm.schedule,
            optimizer=arm.trained_with(optimizer),
        )

    runs: list[StudyRun] = []
    sources: dict[str, tuple[Path, Config, str]] = {}  # checkpoint, model, and where its learning rate was tuned
    for model in dict.fromkeys(arm.base for arm in arms):
        if extend_checkpoint_dir(Path(model)).is_dir():
            header = read_base(Path(model))
            sources[model] = header.path, header.config, str(header.path)
            continue
        folder = f"base-{short_name(model)}"
        arm = Arm(model, model, tokens_per_param=bases["tokens_per_param"], schedule=bases["schedule"])
        spec = from_scratch(arm, folder, bases["seed"], model)
        sources[model] = spec.out_dir / "final", spec.config, model
        runs.append(StudyRun(folder, spec))
    trained = ""
    if runs:
        budget = f"{bases['tokens_per_param']:g} tokens per parameter"
        trained = f"; bases are trained on {budget} (--base_tokens_per_param)"
    for arm, seed in itertools.product(arms, seeds):
        source, config, tuned_at = sources[arm.base]
        folder = f"{arm.name}-seed-{seed}"
        spec = from_scratch(arm, folder, seed, tuned_at)
        if arm.growth.shrink:
            check_growable(config, spec.config, arm.growth)
            arm.growth.aligned(config, spec.config)
        if arm.growth.from_scratch:  # its --config file reads on after the base, too
            spec = replace(spec, args=replace(spec.args, mup_base=str(source)))
        else:
            spec = warmstarted(spec, source, arm.growth)
        after = tuple(run.name for run in runs if run.spec.out_dir / "final" == source)
        runs.append(StudyRun(folder, spec, arm.cells | {"seed": seed}, after, source))
    print(
        f"{len(arms)} arms, {sum(arm.growth.from_scratch for arm in arms)} of them from scratch, x {len(seeds)} seeds:"
        f" {len(runs)} runs in {str(out_dir)!r}{trained}"
    )
    return Study(out_dir, runs, partial(conclude, runs, arms, out_dir, name))


def results(runs: Sequence[StudyRun], outcomes: Mapping[str, Outcome]) -> pandas.DataFrame:
    """A row a run that trains an arm: what it was, and how it ended beside its run from scratch."""
    rows = outcomes_of(runs, outcomes, COLUMNS)
    ended = [run for run in runs if run.factors and outcomes[run.name].status == "finished"]
    curves = {run.name: curve(read_metrics(run.spec.out_dir / FILE_NAME), "val_loss") for run in ended}
    same = [name for name in DEFAULTS if name not in Growth().options] + ["seed"]
    scratch = rows[from_scratch(rows)].set_index(same)[["status", "val_loss", "run"]].add_prefix("scratch_")
    rows = rows.join(scratch, on=same)
    names, reached = list(zip(rows.pop("run"), rows.pop("scratch_run"), strict=True)), []
    for own, beside in names:
        both = own in curves and beside in curves and own != beside
        loss = curves[beside].iloc[-1] if both else math.nan
        reached.append(
            (tokens_to_reach(curves[own], loss), tokens_to_last_loss(curves[beside])) if both else (loss, loss)
        )
    rows[["tokens_to_scratch_val_loss", "scratch_tokens_to_scratch_val_loss"]] = reached
    at_compute = {run.name: loss_at_own_compute(run, curves[run.name]) for run in ended}
    own_names = [own for own, _ in names]
    return rows.assign(val_loss_at_scratch_flops=[at_compute.get(own, math.nan) for own in own_names], run=own_names)


def loss_at_own_compute(run: StudyRun, losses: pandas.Series) -> float:
    """A run's loss where its lineage has taken the Hoffmann FLOPs that its own whole budget would; NaN if never."""
    lineage = Record.load(run.spec.out_dir / "final" / RECORD).lineage
    before = sum(ancestor.hoffmann_flops or math.nan for ancestor in lineage)
    left = 1 - before / run.spec.flops(run.spec.max_tokens)["hoffmann_flops"]
    return float(losses_at(losses, [run.spec.max_tokens * left])[0])


def from_scratch(rows: pandas.DataFrame) -> Any:
    """Which of these rows are of runs from scratch."""
    growths = zip(*(rows[name] for name in Growth().options), strict=True)
    scratch = [not isinstance(options[0], str) and Growth(*options).from_scratch for options in growths]
    return pandas.Series(scratch, rows.index, dtype=bool)


def by_arm(rows: pandas.DataFrame, names: Sequence[str]) -> list[tuple[str, Any]]:
    """Each arm's name and its rows, a seed each."""
    groups = rows.groupby(list(DEFAULTS), sort=False, dropna=False)
    return [(name, seeds) for name, (_, seeds) in zip(names, groups, strict=True)]


def table(rows: pandas.DataFrame, names: Sequence[str]) -> pandas.DataFrame:
    """Losses and tokens of each arm as text: means and standard deviations over seeds."""
    told: list[tuple[str, ...]] = []
    for name, seeds in by_arm(rows, names):
        finished = seeds[seeds["status"] == "finished"]
        beside = finished[finished["scratch_status"] == "finished"]
        shares = (beside["tokens_to_scratch_val_loss"] / beside["scratch_tokens_to_scratch_val_loss"]).dropna()
        reached, notes = "-", {}
        if not from_scratch(seeds).any():
            if len(beside):
                reached = f"{shares.mean():.0%} ({len(shares)} of {len(beside)} seeds)" if len(shares) else "never"
            notes["ended above it"] = (beside["val_loss"] > beside["scratch_val_loss"]).sum()
            notes["without a run from scratch"] = len(finished) - len(beside)
        notes["diverged"] = (seeds["status"] == "diverged").sum()
        notes["skipped, as the base diverged"] = (seeds["status"] == "skipped").sum()
        reached = "; ".join([reached, *(f"{count} {what}" for what, count in notes.items() if count)])
        told.append((name, over_seeds(seeds["first_val_loss"]), over_seeds(finished["val_loss"]), reached))
    return pandas.DataFrame(told, columns=["", "first val loss", "last val loss", "tokens to scratch's last loss"])


def comparison(rows: pandas.DataFrame, names: Sequence[str]) -> pandas.DataFrame:
    """Each warmstart's last loss less that from scratch beside it, and less that of the first arm like it, as text."""
    same = [name for name in DEFAULTS if name not in Growth().options] + ["seed"]
    grown = rows[(rows["status"] == "finished") & ~from_scratch(rows)]
    first: Any = grown.groupby(same)[["val_loss"]].first().add_prefix("first_arms_")
    pairs = {
        "less scratch's, equal tokens": ("val_loss", "scratch_val_loss"),
        "equal compute, base's counted": ("val_loss_at_scratch_flops", "scratch_val_loss"),
        "less the first arm's": ("val_loss", "first_arms_val_loss"),
    }
    told = []
    for name, seeds in by_arm(rows.join(first, on=same), names):
        seeds = seeds[seeds.index.isin(grown.index)]
        less = [estimate((seeds[own] - seeds[other]).dropna()).words(4, "+") for own, other in pairs.values()]
        told += [(name, *less)] if len(seeds) else []
    return pandas.DataFrame(told, columns=["", *pairs])


def over_seeds(losses: pandas.Series) -> str:
    """Mean and, of several, standard deviation."""
    losses = losses.dropna()
    if losses.empty:
        return "-"
    return f"{losses.mean():.4f}" + (f" ± {losses.std():.4f}" if len(losses) > 1 else "")
