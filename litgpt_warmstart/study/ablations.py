"""Ablations: arms over how weights are grown and how the target is trained (figures 2 and 9 of arXiv 2411.07340).

Every arm has its run from scratch beside it: the same base and target, budget, schedule, weight decay and seed.
Seeds may be lineages, and runs at a constant rate be cooled down at horizons, in forks.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas
from litgpt.config import Config
from litgpt.utils import extend_checkpoint_dir

from litgpt_warmstart.data.prepared_text import PreparedText
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import write_whole
from litgpt_warmstart.method.growth import Growth, check_growable
from litgpt_warmstart.method.model import parameter_count
from litgpt_warmstart.report.figures import dots
from litgpt_warmstart.report.page import as_text, write_csv
from litgpt_warmstart.report.runs import Run, find_all
from litgpt_warmstart.report.statistics import (
    difference,
    drop_tokens,
    estimate,
    losses_at,
    tokens_to_last_loss,
    tokens_to_reach,
)
from litgpt_warmstart.run.checkpoint import Header
from litgpt_warmstart.run.hugging_face import names_hub_model
from litgpt_warmstart.run.moments import check_moments, check_same_moments
from litgpt_warmstart.run.resolve import draw_alike, read_base, used_seed
from litgpt_warmstart.run.spec import RunSpec, TrainArgs
from litgpt_warmstart.study import horizons
from litgpt_warmstart.study.arms import DEFAULTS, Arm, by_arm, from_scratch, labels, run_name, short_name
from litgpt_warmstart.study.folder import check_results
from litgpt_warmstart.study.outcomes import Outcome, Study, StudyRun, warmstarted
from litgpt_warmstart.study.outcomes import results as outcomes_of

COLUMNS = ("status", "first_val_loss", "val_loss", "tokens", "matmul_flops", "hoffmann_flops")
"""Of the table, what an outcome tells."""
BESIDE = [name for name in DEFAULTS if name not in Growth().options] + ["seed"]
"""What a run shares with the one from scratch beside it."""
DROP = "drop_tokens_per_param"
"""Where runs were tracked: when their loss dropped, as they learned to copy."""


def conclude(
    runs: Sequence[StudyRun],
    arms: Sequence[Arm],
    at: Mapping[str, Sequence[float]],
    out_dir: Path,
    name: str,
    outcomes: Mapping[str, Outcome],
) -> None:
    """Write the tables and the picture, and print what came of each arm; ``at`` has the places of its horizons."""
    ended = {run.name: run.spec.out_dir for run in runs if run.factors and outcomes[run.name].status == "finished"}
    found = find_all(list(ended.values()))
    read = {name: found[folder] for name, folder in ended.items()}
    rows = results(runs, outcomes, read)
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
        print(f"\nLast val losses, seed by seed, or over seeds (Welch's), with 95% intervals\n\n{as_text(compared)}")
    trained = horizons.finished(runs, arms, outcomes, read)
    answers = horizons.answers(trained, dict(zip(arms, names, strict=True)), **at)
    if answers.empty:
        (out_dir / f"{name}-horizons.csv").unlink(missing_ok=True)  # an earlier one would be taken for this one's
        print(f"Wrote {name}.csv and {name}.png to {str(out_dir)!r}")
        return
    write_csv(out_dir / f"{name}-horizons.csv", answers)
    print(f"\n{horizons.CAPTION}\n\n{as_text(horizons.shown(answers))}")
    print(f"Wrote {name}.csv, {name}-horizons.csv and {name}.png to {str(out_dir)!r}")


@dataclass(frozen=True)
class Base:
    """What is grown for one seed: a checkpoint, perhaps not trained yet."""

    path: Path
    config: Config
    tuned_at: str
    """Where its learning rate was tuned: a model, or the checkpoint itself."""
    seed: int | None
    """That it was initialized with; None where not known."""
    trained: Header | RunSpec
    """What is trained already, or is to be."""
    run: str | None = None
    """Name of the run that trains it; None where that is done."""


def plan(
    make: Callable[..., RunSpec],
    arms: Sequence[Arm],
    seeds: Sequence[int],
    bases: Mapping[str, Any],
    train: TrainArgs,
    optimizer: str | dict,
    out_dir: Path,
    name: str,
    lineages: bool = False,
    cooldown_at: Sequence[float] = (),
    horizons_at: Sequence[float] = (),
) -> Study:
    """All arms over seeds, runs from scratch among them, after the bases that are trained first.

    ``make`` resolves a run; ``bases`` has seed, tokens_per_param, schedule and mup_base (None for its own shapes) of
    bases that are trained; the rest is as the command has it.
    """
    check_results(out_dir / f"{name}.csv", ("base", "target"), f"{name}.png")
    check_results(out_dir / f"{name}-horizons.csv", horizons.FIRST_COLUMNS)
    check_horizons(arms, cooldown_at, horizons_at)
    cooling = replace(train, lr_warmup_steps=None, lr_warmup_fraction=None)  # a constant rate has had no warmup

    def from_scratch(arm: Arm, folder: str, seed: int, tuned_at: str, train: TrainArgs = train) -> RunSpec:
        options = dict(
            target=arm.target,
            out_dir=out_dir / "runs" / folder,
            mup_base=tuned_at,
            seed=seed,
            train=train.for_schedule(arm.schedule),
            tokens_per_param=arm.tokens_per_param,
            schedule=arm.schedule,
            optimizer=arm.trained_with(optimizer),
        )
        spec = make(**options)
        if arm.lr_factor != 1:
            spec = make(**options, lr=spec.base_lr * arm.lr_factor)
        return read_in_order(spec, seed) if lineages else spec

    def of_arm(arm: Arm, folder: str, seed: int, base: Base, train: TrainArgs = train) -> RunSpec:
        spec = from_scratch(arm, folder, seed, base.tuned_at, train)
        if arm.growth.from_scratch:  # its --config file reads on after the base, too
            return replace(spec, args=replace(spec.args, mup_base=str(base.path)))
        return warmstarted(spec, base.path, arm.growth)

    runs: list[StudyRun] = []
    found: dict[tuple[str, int], Base] = {}
    for model in dict.fromkeys(arm.base for arm in arms):
        if extend_checkpoint_dir(Path(model)).is_dir() or names_hub_model(Path(model)):
            for option, trains in (("--lineages true", lineages), ("--mup_base", bases["mup_base"])):
                if trains:
                    raise UserError(
                        f"{option} is for bases that are trained first, and --base {model!r} is a checkpoint: leave it"
                        " out, or give a scale or a model_config.yaml"
                    )
            header = read_base(Path(model))
            base = Base(header.path, header.config, str(header.path), used_seed(header, header.config), header)
            found |= {(model, seed): base for seed in seeds}
            continue
        tuned_at = bases["mup_base"] or model
        arm = Arm(model, model, tokens_per_param=bases["tokens_per_param"], schedule=bases["schedule"])
        for base_seed in seeds if lineages else (bases["seed"],):
            folder = f"base-{short_name(model)}" + f"-seed-{base_seed}" * lineages
            spec = from_scratch(arm, folder, base_seed, tuned_at)
            base = Base(spec.out_dir / "final", spec.config, tuned_at, base_seed, spec, folder)
            found |= {(model, seed): base for seed in ((base_seed,) if lineages else seeds)}
            runs.append(StudyRun(folder, spec))
    budget = f"{bases['tokens_per_param']:g} tokens per parameter"
    trained = f"; bases are trained on {budget} (--base_tokens_per_param)" * bool(runs)
    for arm, seed in itertools.product(arms, seeds):
        base, folder = found[arm.base, seed], run_name(arm, seed)
        spec = of_arm(arm, folder, seed, base)
        check_steps(spec, cooldown_at, horizons_at)
        if arm.growth.shrink:
            check_growth(base, spec, arm.growth)
        after = (base.run,) if base.run else ()
        forks = []
        for at in (at for at in cooldown_at if at <= arm.tokens_per_param):
            cooled = of_arm(
                replace(arm, tokens_per_param=at, schedule="wsd"), fork_name(folder, at), seed, base, cooling
            )
            forks.append(StudyRun(cooled.out_dir.name, cooled, {}, (folder,), base.path, fork_of=spec.out_dir))
        spec = replace(spec, save_at=tuple(fork.forks_at for fork in forks))
        runs += [StudyRun(folder, spec, arm.cells | {"seed": seed}, after, base.path), *forks]
    print(
        f"{len(arms)} arms, {sum(arm.growth.from_scratch for arm in arms)} of them from scratch, x {len(seeds)} seeds:"
        f" {len(runs)} runs in {str(out_dir)!r}{trained}"
    )
    ends = {arm.tokens_per_param for arm in arms}
    at = dict(horizons=sorted({*horizons_at, *cooldown_at, *ends}), cooldown_at=cooldown_at)
    return Study(out_dir, runs, partial(conclude, runs, arms, at, out_dir, name))


def fork_name(folder: str, tokens_per_param: float) -> str:
    """Name of the fork of a run that is cooled down up to so many tokens per parameter."""
    return f"{folder}-cooldown-at-{tokens_per_param:g}"


def check_horizons(arms: Sequence[Arm], cooldown_at: Sequence[float], horizons_at: Sequence[float]) -> None:
    """Raise a UserError for tokens per parameter that no run comes to, or at which it cannot be cooled down."""
    most = max(arm.tokens_per_param for arm in arms)
    for option, places in (("--cooldown_at", cooldown_at), ("--horizons", horizons_at)):
        for at in places:
            if not 0 < at < math.inf:
                raise UserError(f"{option} {at:g} must be above 0: give tokens per parameter")
            if at > most:
                raise UserError(
                    f"{option} {at:g} is beyond the arms' {most:g} tokens per parameter: raise --tokens_per_param, or"
                    " leave it out"
                )
    for at in horizons_at:
        if not any(horizons.tells_of(arm, at) for arm in arms):
            raise UserError(
                f"--horizons {at:g}: no arm has a loss to compare there, which takes --schedule constant or its own"
                " end: leave it out"
            )
    for arm in arms if cooldown_at else ():
        if arm.schedule != "constant":
            raise UserError(
                f"--cooldown_at forks runs at a constant rate, and an arm has --schedule {arm.schedule}: leave one of"
                " them out"
            )


def check_steps(spec: RunSpec, cooldown_at: Sequence[float], horizons_at: Sequence[float]) -> None:
    """Raise a UserError for tokens per parameter that come before a run's first step."""
    for option, places in (("--cooldown_at", cooldown_at), ("--horizons", horizons_at)):
        at = min(places, default=math.inf)
        if at * parameter_count(spec.config) < spec.tokens_per_step:
            raise UserError(
                f"{option} {at:g} is less than one step of {spec.tokens_per_step:,} tokens: raise it, or lower"
                " --train.global_batch_size"
            )


def check_growth(base: Base, spec: RunSpec, growth: Growth) -> None:
    """Raise a UserError where a base cannot grow into a run's model, has not its moments, or has its perturbation."""
    check_growable(base.config, spec.config, growth)
    growth.aligned(base.config, spec.config)
    if growth.carries_moments:
        if isinstance(base.trained, RunSpec):
            check_same_moments(base.path, base.trained.optimizer, spec.optimizer)
        else:
            check_moments(base.trained, spec.optimizer)
    if growth.perturb and base.seed == spec.seed and draw_alike(base.config, spec.config):
        raise UserError(
            f"seed {spec.seed} is that of its base, too: at the base's own size it would draw its initialization again"
            " as the perturbation: give another --base_seed without --lineages"
        )


def read_in_order(spec: RunSpec, order_seed: int) -> RunSpec:
    """A run that reads its data in an order of its own; a UserError where the data has none."""
    if not isinstance(spec.data, PreparedText):
        raise UserError(
            f"--lineages true has each seed read in an order of its own, and --data {type(spec.data).__name__} has"
            " none: take PreparedText, or leave it out"
        )
    if spec.data.order_seed is not None:
        raise UserError(
            "--data.order_seed has no meaning with --lineages true, which has one for each seed: leave one out"
        )
    data = spec.data.in_order(order_seed)
    return replace(spec, data=data, args=replace(spec.args, data=data))


def results(runs: Sequence[StudyRun], outcomes: Mapping[str, Outcome], read: Mapping[str, Run]) -> pandas.DataFrame:
    """A row a run that trains an arm: what it was, and how it ended beside its run from scratch.

    Those that have finished are ``read`` by name; where some were tracked, rows say when their loss dropped, too.
    """
    rows = outcomes_of(runs, outcomes, COLUMNS)
    scratch = rows[from_scratch(rows)].set_index(BESIDE)[["status", "val_loss", "run"]].add_prefix("scratch_")
    rows = rows.join(scratch, on=BESIDE)
    told = []
    for own, beside in zip(rows.pop("run"), rows.pop("scratch_run"), strict=True):
        run, other, row = read.get(own), read.get(beside), {}
        if run and other and run is not other:
            row["tokens_to_scratch_val_loss"] = tokens_to_reach(run.val_losses, other.val_loss)
            row["scratch_tokens_to_scratch_val_loss"] = tokens_to_last_loss(other.val_losses)
        if run:
            row["val_loss_at_scratch_flops"] = loss_at_own_compute(run)
            row[DROP] = drop_tokens(run.induction) / run.record.parameters
        told.append(row | {"run": own})
    columns = ["tokens_to_scratch_val_loss", "scratch_tokens_to_scratch_val_loss", "val_loss_at_scratch_flops"]
    columns += [DROP] * any(len(run.norms) for run in read.values())
    return rows.join(pandas.DataFrame(told, columns=[*columns, "run"]).astype(dict.fromkeys(columns, float)))


def loss_at_own_compute(run: Run) -> float:
    """A run's loss where its lineage has taken the Hoffmann FLOPs that its own whole budget would; NaN if never."""
    return float(losses_at(run.val_losses, [run.tokens * (1 - run.base_flops / run.own_flops)])[0])


def table(rows: pandas.DataFrame, names: Sequence[str]) -> pandas.DataFrame:
    """Losses and tokens of each arm as text: means and standard deviations over seeds.

    Of tracked runs also when their loss dropped as they learned to copy.
    """
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
        if DROP in rows:
            dates = finished[DROP].dropna()
            told[-1] += (f"{over_seeds(dates, 1)} ({len(dates)} of {len(finished)} seeds)" if len(dates) else "-",)
    columns = ["", "first val loss", "last val loss", "tokens to scratch's last loss"]
    return pandas.DataFrame(told, columns=columns + ["drop, tokens per parameter"] * (DROP in rows))


def comparison(rows: pandas.DataFrame, names: Sequence[str]) -> pandas.DataFrame:
    """Each warmstart's last loss less that from scratch beside it, and less that of the first arm like it, as text.

    Seed by seed and, for seeds that are independent draws, over seeds.
    """
    grown = rows[(rows["status"] == "finished") & ~from_scratch(rows)]
    first: Any = grown.groupby(BESIDE)[["val_loss"]].first().add_prefix("first_arms_")
    pairs = {
        "less scratch's, equal tokens": ("val_loss", "scratch_val_loss"),
        "equal compute, base's counted": ("val_loss_at_scratch_flops", "scratch_val_loss"),
        "less the first arm's": ("val_loss", "first_arms_val_loss"),
    }
    unpaired = {f"{name}, over seeds": pair for name, pair in list(pairs.items())[:2]}
    told = []
    for name, seeds in by_arm(rows.join(first, on=BESIDE), names):
        seeds = seeds[seeds.index.isin(grown.index)]
        less = [estimate((seeds[own] - seeds[other]).dropna()).words(4, "+") for own, other in pairs.values()]
        for own, other in unpaired.values():
            less.append(difference(seeds[own].dropna().tolist(), seeds[other].dropna().tolist()).words(4, "+"))
        told += [(name, *less)] if len(seeds) else []
    return pandas.DataFrame(told, columns=["", *pairs, *unpaired])


def over_seeds(values: pandas.Series, digits: int = 4) -> str:
    """Mean and, of several, standard deviation."""
    values = values.dropna()
    if values.empty:
        return "-"
    return f"{values.mean():.{digits}f}" + (f" ± {values.std():.{digits}f}" if len(values) > 1 else "")
