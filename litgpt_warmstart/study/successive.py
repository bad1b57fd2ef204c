"""Successive warmstarting: 5M -> 22M -> 70M, each stage grown from the one before, muP's base fixed at the first.

Figures 6 and 11 of arXiv 2411.07340. Compute is counted as Hoffmann et al. do, the paper's axis.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas
from litgpt.config import Config

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import write_whole
from litgpt_warmstart.method.growth import Growth, check_growable
from litgpt_warmstart.method.scales import resolve_config, short_name
from litgpt_warmstart.method.schedule import Schedule, recorded_schedule
from litgpt_warmstart.report.chains import NOT_KNOWN, Chain, lineage_figure, parent
from litgpt_warmstart.report.page import as_text, write_csv
from litgpt_warmstart.report.runs import Run, find, find_all
from litgpt_warmstart.run.checkpoint import Header
from litgpt_warmstart.run.metrics import FILE_NAME, read_metrics
from litgpt_warmstart.run.moments import check_moments
from litgpt_warmstart.run.plan import base_figures
from litgpt_warmstart.run.spec import RunSpec, TrainArgs
from litgpt_warmstart.study.folder import check_results
from litgpt_warmstart.study.outcomes import Outcome, Study, StudyRun, warmstarted

TABLE, PICTURE = "successive.csv", "successive.png"
SCRATCH = "scratch"
METRICS = ["step", "tokens", "loss", "val_loss", "learning_rate"]
COLUMNS = ["stage", "step", "tokens", "lineage_tokens", "lineage_flops", "loss", "val_loss", "learning_rate"]


def conclude(runs: Sequence[StudyRun], start: Header | None, out_dir: Path, outcomes: Mapping[str, Outcome]) -> None:
    """Write the table and the picture, and print how the chain ended beside the run from scratch."""
    for run in runs:
        if run.name != SCRATCH and outcomes[run.name].status != "finished":
            raise UserError(f"{run.name} {outcomes[run.name].in_words}")
    folders = [run.spec.out_dir for run in runs if outcomes[run.name].status == "finished"]
    found = find_all(folders)
    stages = [found[folder] for folder in folders if folder.name != SCRATCH]
    base = None
    if start and (start.path.parent / FILE_NAME).is_file():
        with suppress(UserError):  # a base that cannot be drawn, such as one without validations, is left out
            base = parent(stages[0], find([start.path.parent]).runs)
    chain = Chain([base, *stages] if base else stages, found.get(out_dir / SCRATCH))
    write_csv(out_dir / TABLE, pandas.concat([rows(run, "base" if run is base else "") for run in chain.runs]))
    write_whole(out_dir / PICTURE, lineage_figure("successive", [chain]).png)
    print(f"\n{as_text(table(chain))}")
    if chain.scratch:
        print(f"\n{verdict(chain, chain.scratch)}")
    elif SCRATCH in outcomes:
        print("\nThe run from scratch diverged.")
    print(f"Wrote {TABLE} and {PICTURE} to {str(out_dir)!r}")


def rows(run: Run, stage: str) -> pandas.DataFrame:
    """A run's metrics, counted from the beginning of its lineage, too."""
    found: Any = pandas.DataFrame(read_metrics(run.folder / FILE_NAME), columns=METRICS)
    found = found.astype({"step": int, "tokens": int}).assign(stage=stage or run.folder.name)
    flops = run.base_flops + found["tokens"] * run.flops_per_token
    return found.assign(lineage_tokens=run.base_tokens + found["tokens"], lineage_flops=flops)[COLUMNS]


def table(chain: Chain) -> pandas.DataFrame:
    """First and last validation loss of each stage, and what its lineage had spent by then, as text."""
    return pandas.DataFrame(
        {
            "stage": run.folder.name,
            "parameters": f"{run.record.parameters:,}",
            "tokens": f"{run.tokens:,}",
            "per param": f"{run.tokens_per_param:.2f}",
            "Hoffmann FLOPs in all": "-" if math.isnan(run.base_flops) else f"{run.base_flops + run.own_flops:.3g}",
            "first val": f"{run.val_losses.iloc[0]:.4f}",
            "last val": f"{run.val_loss:.4f}",
        }
        for run in chain.runs
    )


def verdict(chain: Chain, scratch: Run) -> str:
    """The last stage beside the run from scratch, at the compute of the whole lineage."""
    if math.isnan(chain.flops):
        return NOT_KNOWN
    better = "lower" if chain.end.val_loss < scratch.val_loss else "not lower"
    return (
        f"At {chain.flops:.3g} Hoffmann FLOPs the chain's validation loss is {chain.end.val_loss:.4f}, {better} than"
        f" {scratch.val_loss:.4f} from scratch at {scratch.own_flops:.3g} Hoffmann FLOPs."
    )


def plan(
    make: Callable[..., RunSpec],
    scales: Sequence[str],
    start: Header | None,
    growths: Sequence[Growth],
    compute_split: Sequence[float] | None,
    max_flops: float | None,
    grow_at: Sequence[float] | None,
    scratch: bool,
    train: TrainArgs,
    out_dir: Path,
) -> Study:
    """The runs of a chain, which ``make`` resolves, each grown in its way, and of the last scale from scratch.

    With ``grow_at`` they share one wsd schedule, see :func:`stages_of`.
    """
    check_results(out_dir / TABLE, COLUMNS[:2], PICTURE)

    def from_scratch(target: str, folder: str, max_tokens: int | None = None, **changes: Any) -> RunSpec:
        budget = {"train": replace(train, max_tokens=max_tokens)} | changes
        return make(target=target, out_dir=out_dir / folder, **budget)

    folders = [f"{number}-{short_name(resolve_config(name).name)}" for number, name in enumerate(scales, start=1)]
    specs = [from_scratch(*stage) for stage in zip(scales, folders, strict=True)]
    check_order([*([start.config] if start else []), *(spec.config for spec in specs)], growths)
    if start and growths[0].carries_moments:
        check_moments(start, specs[0].optimizer)
    if compute_split is not None:
        tokens = split_tokens(specs, compute_split, max_flops)
        specs = [from_scratch(*stage) for stage in zip(scales, folders, tokens, strict=True)]
    if grow_at is not None:
        begun = steps_of(start, specs[0], train) if start else 0
        stages = zip(scales, folders, stages_of(specs, grow_at, max_flops, train, begun), strict=True)
        specs = [from_scratch(name, folder, **changes) for name, folder, changes in stages]
    runs: list[StudyRun] = []
    source = start.path if start else None
    left = iter(growths)
    for folder, spec in zip(folders, specs, strict=True):
        after = (runs[-1].name,) if runs else ()
        runs.append(StudyRun(folder, warmstarted(spec, source, next(left)) if source else spec, {}, after, source))
        source = spec.out_dir / "final"
    if scratch:
        spent = (base_figures(start).hoffmann_flops or 0) if start else 0
        whole = spent + sum(flops(run.spec) for run in runs)
        spec = from_scratch(scales[-1], SCRATCH, int(whole / flops(specs[-1], 1)))
        runs.append(StudyRun(SCRATCH, spec, data_after=start.path if start else None))
    print(f"Successive warmstart {' -> '.join(scales)}: {len(runs)} runs in {str(out_dir)!r}")
    return Study(out_dir, runs, partial(conclude, runs, start, out_dir))


def check_order(configs: Sequence[Config], growths: Sequence[Growth]) -> None:
    """Raise a UserError for scales that cannot be grown one from another in this order."""
    for (source, target), growth in zip(pairwise(configs), growths, strict=True):
        deeper = target.n_layer > source.n_layer and target.n_embd == source.n_embd
        if target.n_embd <= source.n_embd and not deeper:
            raise UserError(
                f"--scales: {target.name!r} (n_embd {target.n_embd}) comes after {source.name!r} (n_embd"
                f" {source.n_embd}; a --base comes first) but is not wider, nor deeper: give them from the smallest to"
                " the largest"
            )
        check_growable(source, target, growth)
        growth.aligned(source, target)


def flops(spec: RunSpec, tokens: int | None = None) -> float:
    """Hoffmann FLOPs of a run, or of so many of its tokens."""
    return spec.flops(tokens or spec.max_tokens)["hoffmann_flops"]


def split_tokens(specs: Sequence[RunSpec], shares: Sequence[float], max_flops: float | None) -> list[int]:
    """Tokens of each stage for its share of the compute, by default of what the stages' own budgets come to."""
    if len(shares) != len(specs):
        raise UserError(f"--compute_split has {len(shares)} shares for {len(specs)} stages: give one for each")
    if not (all(share > 0 for share in shares) and abs(sum(shares) - 1) <= 1e-6):  # NaN is neither
        listed = ", ".join(f"{share:g}" for share in shares)
        raise UserError(f"--compute_split {listed}: give shares above 0 that add up to 1")
    whole = max_flops or sum(map(flops, specs))
    return [int(share * whole / flops(spec, 1)) for share, spec in zip(shares, specs, strict=True)]


def steps_of(base: Header, first: RunSpec, train: TrainArgs) -> int:
    """Optimizer steps of a base and its ancestors, as the first part of the one wsd run that ``first`` goes on with.

    Raises:
        UserError: They cannot be: the base's rate has come down, or its steps or its learning rate are others.
    """
    told = f"--grow_at goes on with the run of --base {str(base.path)!r}"
    record = base.record
    if record is None or "schedule" not in record.training:
        raise UserError(f"{told}, which has no record of its training: take a checkpoint of warmstart_scratch")
    schedule = recorded_schedule(record.training["schedule"])
    if record.step_count > 1 and schedule(record.step_count - 1) < schedule.plateau(0):
        raise UserError(f"{told}, whose rate has come down ({schedule.words}): take one trained at a constant rate")
    if train.lr_warmup_steps or train.lr_warmup_fraction:
        raise UserError(f"{told}, and its warmup was the base's: leave --train.lr_warmup_steps and _fraction out")
    block_size = record.training.get("block_size", first.block_size)
    for what, before, now in (
        ("sequences a step", record.global_batch_size, first.global_batch_size),
        ("tokens a sequence", block_size, first.block_size),
        ("learning rate", record.base_lr, first.base_lr),
    ):
        if before != now:
            raise UserError(f"{told}, which has {before} as {what}, and this chain {now}: take the base's")
    steps = (base_figures(base).tokens or 0) // first.tokens_per_step
    if not steps:
        raise UserError(f"{told}, whose record does not tell what its lineage was trained on: leave --base out")
    return steps


def stages_of(
    specs: Sequence[RunSpec], grow_at: Sequence[float], max_flops: float | None, train: TrainArgs, begun: int = 0
) -> list[dict[str, Any]]:
    """What each stage is trained with, so that together they are one wsd run over the last scale's budget of tokens.

    The first has the warmup, the last the cooldown, of so many steps as one run over all tokens would have; between
    them the learning rate is the full one. A base's steps are the first share of them, which gives the budget.

    Args:
        specs: The stages, each with a budget and wsd schedule of its own.
        grow_at: The shares of all tokens after which it is grown.
        max_flops: The compute of all stages; None for the last scale's own tokens.
        train: Its warmup and cooldown are the whole run's.
        begun: Steps that a base has behind it; 0 without one.

    Returns:
        Options of each stage: budget and schedule.

    Raises:
        UserError: The shares are no order of growths, or leave no room for warmup or cooldown.
    """
    listed = ", ".join(f"{share:g}" for share in grow_at)
    growths = len(specs) - (not begun)
    if len(grow_at) != growths:
        raise UserError(f"--grow_at {listed}: give one share for each of {growths} growths")
    ends = (0.0, *grow_at, 1.0)
    if not all(earlier < later for earlier, later in pairwise(ends)):  # NaN is neither
        raise UserError(f"--grow_at {listed}: give shares of all tokens between 0 and 1, each above the one before")
    per_step = specs[-1].tokens_per_step
    if any(spec.tokens_per_step != per_step for spec in specs):
        raise UserError("--grow_at: scales have batches of their own: give --train.global_batch_size, the same for all")
    shares = [later - earlier for earlier, later in pairwise(ends)]
    tokens = round(begun / grow_at[0]) * per_step if begun else specs[-1].max_tokens
    if max_flops is not None:
        tokens = max_flops / sum(share * flops(spec, 1) for share, spec in zip(shares, specs, strict=True))
    whole = Schedule.of("wsd", train.for_schedule("wsd"), max(1, int(tokens / per_step)))
    ((first, end),) = whole.cooldowns
    places = [round(share * end) for share in ends]
    if begun:
        places[1] = begun
    steps = [later - earlier for earlier, later in pairwise(places)]
    if not all(steps):
        told = f"{end:,} steps of {per_step:,} tokens" if tokens >= per_step else f"less than a step of {per_step:,}"
        raise UserError(f"--grow_at {listed} leaves a stage without a step, of {told}: raise the budget")
    if places[1] < whole.warmup_steps or places[-2] > first:
        raise UserError(
            f"--grow_at {listed}: a growth at step {places[1] if places[1] < whole.warmup_steps else places[-2]:,} of"
            f" {end:,} falls into the warmup of {whole.warmup_steps:,} steps or the cooldown from step {first:,} on:"
            " move it, or shorten that"
        )
    found = []
    for number, count in enumerate(steps):
        is_last, begins = number == len(steps) - 1, number == 0 and whole.warmup_steps > 0
        name = "wsd" if is_last else "warmup" if begins else "constant"
        lengths = dict(
            lr_warmup_steps=whole.warmup_steps if begins else None, lr_warmup_fraction=None, cooldown_fraction=None,
            cooldown_steps=end - first if is_last else None, max_tokens=count * per_step,
        )  # fmt: skip
        found.append({"train": replace(train, **lengths).for_schedule(name), "schedule": name})
    return found[1:] if begun else found
