"""Successive warmstarting: 5M -> 22M -> 70M, each stage grown from the one before, muP's base fixed at the first.

Figures 6 and 11 of arXiv 2411.07340. Compute is counted as Hoffmann et al. do, the paper's axis.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas
from litgpt.config import Config

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import write_whole
from litgpt_warmstart.method.flops import hoffmann_flops_per_token
from litgpt_warmstart.method.growth import Growth, check_growable, resolve_alignment
from litgpt_warmstart.method.scales import resolve_config, short_name
from litgpt_warmstart.report.figures import Figure, Line, flops_unit, loss_curves, style
from litgpt_warmstart.report.page import write_csv
from litgpt_warmstart.run.checkpoint import Header, read_header
from litgpt_warmstart.run.metrics import FILE_NAME, read_metrics
from litgpt_warmstart.run.plan import base_figures
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.spec import RunSpec, TrainArgs
from litgpt_warmstart.study.folder import as_text, check_results
from litgpt_warmstart.study.outcomes import Outcome, Study, StudyRun, warmstarted

TABLE, PICTURE = "successive.csv", "successive.png"
SCRATCH = "scratch"
METRICS = ["step", "tokens", "loss", "val_loss", "learning_rate"]
COLUMNS = ("step", "tokens", "lineage_tokens", "lineage_flops", "loss", "val_loss", "learning_rate")


@dataclass(frozen=True)
class Stage:
    """A run, counted from the beginning of its lineage as far as that is known."""

    name: str
    record: Record
    flops_before: float
    """Of its lineage, at its first step, by Hoffmann et al.'s count."""
    flops: float
    """At its last one."""
    tokens: int
    """Of its lineage, at its last step."""
    known: bool
    """Whether every checkpoint of the lineage has told."""
    rows: pandas.DataFrame
    """metrics.csv's, with :data:`COLUMNS`; none for a base whose file is not at hand."""

    def curve(self, column: str) -> Any:
        """A column by Hoffmann FLOPs of the lineage."""
        return self.rows.set_index("lineage_flops")[column].dropna()

    @property
    def val_losses(self) -> list[float]:
        """All of them."""
        return self.curve("val_loss").tolist()


def conclude(runs: Sequence[StudyRun], start: Header | None, out_dir: Path, outcomes: Mapping[str, Outcome]) -> None:
    """Write the table and the picture, and print how the chain ended beside the run from scratch."""
    grown = [run for run in runs if run.name != SCRATCH]
    for run in grown:
        if outcomes[run.name].status != "finished":
            raise UserError(f"{run.name} {outcomes[run.name].in_words}")
    stages = [stage("base", start.path)] if start and start.record and start.record.training else []
    for run in grown:
        stages.append(stage(run.name, run.spec.out_dir / "final", stages[-1] if stages else None))
    chain = stages[-1]
    if SCRATCH in outcomes and outcomes[SCRATCH].status == "finished":
        stages.append(stage(SCRATCH, out_dir / SCRATCH / "final"))
    rows: Any = pandas.concat([each.rows.assign(stage=each.name) for each in stages])
    write_csv(out_dir / TABLE, rows[["stage", *COLUMNS]])
    write_whole(out_dir / PICTURE, picture(stages).png)
    print(f"\n{as_text(table(stages))}")
    if stages[-1] is not chain:
        print(f"\n{verdict(chain, stages[-1])}")
    elif SCRATCH in outcomes:
        print("\nThe run from scratch diverged.")
    print(f"Wrote {TABLE} and {PICTURE} to {str(out_dir)!r}")


def plan(
    make: Callable[..., RunSpec],
    scales: Sequence[str],
    start: Header | None,
    growth: Growth,
    compute_split: Sequence[float] | None,
    max_flops: float | None,
    scratch: bool,
    train: TrainArgs,
    out_dir: Path,
) -> Study:
    """The runs of a chain, which ``make`` resolves, and of the last scale from scratch."""
    check_results(out_dir / TABLE, ("stage", "step"), PICTURE)

    def from_scratch(target: str, folder: str, max_tokens: int | None = None) -> RunSpec:
        return make(target=target, out_dir=out_dir / folder, train=replace(train, max_tokens=max_tokens))

    folders = [f"{number}-{short_name(resolve_config(name).name)}" for number, name in enumerate(scales, start=1)]
    specs = [from_scratch(*stage) for stage in zip(scales, folders, strict=True)]
    check_order([*([start.config] if start else []), *(spec.config for spec in specs)], growth)
    if compute_split is not None:
        tokens = split_tokens(specs, compute_split, max_flops)
        specs = [from_scratch(*stage) for stage in zip(scales, folders, tokens, strict=True)]
    runs: list[StudyRun] = []
    source = start.path if start else None
    for folder, spec in zip(folders, specs, strict=True):
        after = (runs[-1].name,) if runs else ()
        runs.append(StudyRun(folder, warmstarted(spec, source, growth) if source else spec, {}, after, source))
        source = spec.out_dir / "final"
    if scratch:
        spent = (base_figures(start).hoffmann_flops or 0) if start else 0
        flops = spent + sum(run_flops(run.spec) for run in runs)
        spec = from_scratch(scales[-1], SCRATCH, int(flops / flops_per_token(specs[-1])))
        runs.append(StudyRun(SCRATCH, spec, data_after=start.path if start else None))
    print(f"Successive warmstart {' -> '.join(scales)}: {len(runs)} runs in {str(out_dir)!r}")
    return Study(out_dir, runs, partial(conclude, runs, start, out_dir))


def check_order(configs: Sequence[Config], growth: Growth) -> None:
    """Raise a UserError for scales that cannot be grown one from another in this order."""
    for source, target in pairwise(configs):
        if target.n_embd <= source.n_embd:
            raise UserError(
                f"--scales: {target.name!r} (n_embd {target.n_embd}) comes after {source.name!r} (n_embd"
                f" {source.n_embd}; a --base comes first) but is not wider: give them from the smallest to the largest"
            )
        check_growable(source, target)
        resolve_alignment(source, target, growth.alignment)


def flops_per_token(spec: RunSpec) -> float:
    """Of a run's model, Hoffmann et al.'s count."""
    return hoffmann_flops_per_token(spec.config, spec.block_size)


def run_flops(spec: RunSpec) -> float:
    """Of a whole run, Hoffmann et al.'s count."""
    return spec.max_tokens * flops_per_token(spec)


def split_tokens(specs: Sequence[RunSpec], shares: Sequence[float], max_flops: float | None) -> list[int]:
    """Tokens of each stage for its share of the compute, by default of what the stages' own budgets come to."""
    if len(shares) != len(specs):
        raise UserError(f"--compute_split has {len(shares)} shares for {len(specs)} stages: give one for each")
    if not (all(share > 0 for share in shares) and abs(sum(shares) - 1) <= 1e-6):  # NaN is neither
        listed = ", ".join(f"{share:g}" for share in shares)
        raise UserError(f"--compute_split {listed}: give shares above 0 that add up to 1")
    whole = max_flops or sum(run_flops(spec) for spec in specs)
    return [int(share * whole / flops_per_token(spec)) for share, spec in zip(shares, specs, strict=True)]


def stage(name: str, checkpoint_dir: Path, previous: Stage | None = None) -> Stage:
    """Read the curve of a run that has a record, up to one of its checkpoints, in the run's folder.

    Where its records do not tell all of its lineage, it is counted from the end of the stage before it.
    """
    header = read_header(checkpoint_dir)
    record, whole = header.record, base_figures(header)
    if record is None:
        raise UserError(f"{str(checkpoint_dir)!r} has no record")
    per_token = hoffmann_flops_per_token(header.config, record.training.get("block_size", header.config.block_size))
    known = whole.tokens is not None and whole.hoffmann_flops is not None
    tokens, flops = (previous.tokens, previous.flops) if previous else (0, 0.0)
    if whole.tokens is not None and whole.hoffmann_flops is not None:
        tokens, flops = whole.tokens - record.tokens, whole.hoffmann_flops - record.tokens * per_token
    rows: Any = pandas.DataFrame(read_metrics(checkpoint_dir.parent / FILE_NAME), columns=METRICS)
    rows = rows[rows["step"] <= record.step_count].astype({"step": int, "tokens": int})
    rows = rows.assign(lineage_tokens=tokens + rows["tokens"], lineage_flops=flops + rows["tokens"] * per_token)
    return Stage(
        name, record, flops, flops + record.tokens * per_token, tokens + record.tokens, known, rows[list(COLUMNS)]
    )


def table(stages: Sequence[Stage]) -> pandas.DataFrame:
    """First and last validation loss of each stage, and what its lineage had spent by then, as text."""
    return pandas.DataFrame(
        {
            "stage": stage.name,
            "parameters": f"{stage.record.parameters:,}",
            "tokens": f"{stage.record.tokens:,}",
            "per param": f"{stage.record.tokens / stage.record.parameters:.2f}",
            "Hoffmann FLOPs in all": f"{stage.flops:.3g}",
            "first val": f"{stage.val_losses[0]:.4f}" if stage.val_losses else "-",
            "last val": f"{stage.val_losses[-1]:.4f}" if stage.val_losses else "-",
        }
        for stage in stages
    )


def verdict(chain: Stage, scratch: Stage) -> str:
    """The last stage beside the run from scratch, at the compute of the whole lineage."""
    ours, theirs = chain.val_losses[-1], scratch.val_losses[-1]
    better = "lower" if ours < theirs else "not lower"
    told = (
        f"At {chain.flops:.3g} Hoffmann FLOPs the chain's validation loss is {ours:.4f}, {better} than"
        f" {theirs:.4f} from scratch at {scratch.flops:.3g} Hoffmann FLOPs."
    )
    return told if chain.known else f"{told} What the base took before is not known, and not in it."


def picture(stages: Sequence[Stage]) -> Figure:
    """Loss against the compute of the lineage (figure 11); a growth is a dotted line."""
    scale, unit = flops_unit(max(stage.flops for stage in stages))
    lines = []
    for number, each in enumerate(stages):
        losses = each.curve("val_loss")
        lines.append(
            Line(
                f"{each.name}, {each.record.tokens / each.record.parameters:.2g} tokens per parameter",
                style(-1 if each.name == SCRATCH else number),
                pandas.DataFrame({"mean": losses, "low": losses, "high": losses}),
                each.curve("loss"),
                starts=(each.flops_before,) if each.flops_before else (),
            )
        )
    return loss_curves("successive", "", lines, f"compute of the lineage ({unit})", scale)
