"""Successive warmstarting: 5M -> 22M -> 70M, each stage grown from the one before, muP's base fixed at the first.

Figures 6 and 11 of arXiv 2411.07340. Compute is counted as Hoffmann et al. do, the paper's axis.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from litgpt.config import Config

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.flops import hoffmann_flops_per_token
from litgpt_warmstart.method.growth import check_growable, resolve_alignment
from litgpt_warmstart.report.tables import COLORS, write_csv
from litgpt_warmstart.run.checkpoint import Header, read_header
from litgpt_warmstart.run.metrics import FILE_NAME, read_metrics
from litgpt_warmstart.run.plan import base_figures
from litgpt_warmstart.run.spec import RunSpec
from litgpt_warmstart.study.runner import Outcome, StudyRun, in_words
from litgpt_warmstart.study.tables import picture

SCRATCH = "scratch"


def check_order(configs: Sequence[Config], alignment: str) -> None:
    """Raise a UserError for scales that cannot be grown one from another in this order."""
    for source, target in pairwise(configs):
        if target.n_embd <= source.n_embd:
            raise UserError(
                f"--scales: {target.name!r} (n_embd {target.n_embd}) comes after {source.name!r} (n_embd"
                f" {source.n_embd}; a --base comes first) but is not wider: give them from the smallest to the largest"
            )
        check_growable(source, target)
        resolve_alignment(source, target, alignment)


def flops_per_token(spec: RunSpec) -> float:
    """Of a run's model, Hoffmann et al.'s count."""
    return hoffmann_flops_per_token(spec.config, spec.block_size)


def run_flops(spec: RunSpec) -> float:
    """Of a whole run, Hoffmann et al.'s count."""
    return spec.max_steps * spec.tokens_per_step * flops_per_token(spec)


def split_tokens(specs: Sequence[RunSpec], shares: Sequence[float], max_flops: float | None) -> list[int]:
    """Tokens of each stage for its share of the compute.

    Args:
        specs: The stages at their own budgets.
        shares: Of the compute, one for each stage, adding up to 1.
        max_flops: The whole compute, Hoffmann et al.'s count. None for what the stages' own budgets come to.

    Raises:
        UserError: Another number of shares than of stages, one that is not above 0, or another sum.
    """
    if len(shares) != len(specs):
        raise UserError(f"--compute_split has {len(shares)} shares for {len(specs)} stages: give one for each")
    if not (all(share > 0 for share in shares) and abs(sum(shares) - 1) <= 1e-6):  # NaN is neither
        listed = ", ".join(f"{share:g}" for share in shares)
        raise UserError(f"--compute_split {listed}: give shares above 0 that add up to 1")
    whole = max_flops or sum(run_flops(spec) for spec in specs)
    return [int(share * whole / flops_per_token(spec)) for share, spec in zip(shares, specs, strict=True)]


@dataclass(frozen=True)
class Spent:
    """What a lineage has used up."""

    tokens: int = 0
    flops: float = 0.0
    """Hoffmann et al.'s count."""
    known: bool = True
    """Whether every checkpoint of it has told."""


def spent_by(base: Header) -> Spent:
    """What a base and all before it have used up, by its record."""
    figures = base_figures(base)
    if figures.tokens is None or figures.hoffmann_flops is None:
        return Spent(known=False)
    return Spent(figures.tokens, figures.hoffmann_flops)


@dataclass(frozen=True)
class Stage:
    """The curve of a run, counted from the beginning of its lineage."""

    name: str
    parameters: int
    tokens: int
    """Of the run alone."""
    before: Spent
    """At its first step."""
    after: Spent
    """At its last one."""
    rows: tuple[Mapping[str, Any], ...]
    """metrics.csv's, with ``lineage_tokens`` and ``lineage_flops``; none for a base whose file is not at hand."""

    def last(self, column: str) -> float:
        """The last value of a column."""
        return next(row[column] for row in reversed(self.rows) if column in row)


def stage(name: str, checkpoint_dir: Path, before: Spent) -> Stage:
    """Read the curve of a run that has a record, up to one of its checkpoints.

    Args:
        name: What to call it.
        checkpoint_dir: The checkpoint, in the run's folder.
        before: What its lineage had used up at its first step.
    """
    header, rows = read_header(checkpoint_dir), read_metrics(checkpoint_dir.parent / FILE_NAME)
    record = header.record
    per_token = hoffmann_flops_per_token(header.config, record.training["block_size"])
    curve = tuple(
        {
            **row,
            "lineage_tokens": before.tokens + int(row["tokens"]),
            "lineage_flops": before.flops + row["tokens"] * per_token,
        }
        for row in rows
        if row["step"] <= record.step_count
    )
    after = Spent(before.tokens + record.tokens, before.flops + record.tokens * per_token, before.known)
    return Stage(name, record.parameters, record.tokens, before, after, curve)


def base_stage(base: Header) -> Stage | None:
    """The curve of a base given as a checkpoint; None where it tells nothing of its training."""
    if base.record is None or not base.record.training:
        return None
    after, own = spent_by(base), base.record
    flops = own.tokens * hoffmann_flops_per_token(base.config, own.training["block_size"])
    before = Spent(after.tokens - own.tokens, after.flops - flops) if after.known else Spent(known=False)
    return stage("base", base.path, before)


def write_results(stages: Sequence[Stage], path: Path) -> None:
    """Write successive.csv: each stage's rows of metrics, with tokens and FLOPs of the whole lineage."""
    columns = ("step", "tokens", "lineage_tokens", "lineage_flops", "loss", "val_loss", "learning_rate")
    write_csv(path, [{"stage": s.name, **{c: row.get(c) for c in columns}} for s in stages for row in s.rows])


def table(stages: Sequence[Stage]) -> str:
    """First and last validation loss of each stage, and what its lineage had spent by then, as text."""
    lines = [f"{'stage':>16}  {'parameters':>12}  {'tokens':>14}  {'per param':>9}  {'Hoffmann FLOPs in all':>21}"
             f"  {'first val':>9}  {'last val':>9}"]  # fmt: skip
    for s in stages:
        losses = [row["val_loss"] for row in s.rows if "val_loss" in row] or [float("nan")]
        lines.append(
            f"{s.name:>16}  {s.parameters:>12,}  {s.tokens:>14,}  {s.tokens / s.parameters:>9.2f}"
            f"  {s.after.flops:>21.3g}  {losses[0]:>9.4f}  {losses[-1]:>9.4f}"
        )
    return "\n".join(lines)


def verdict(chain: Stage, scratch: Stage) -> str:
    """The last stage beside the run from scratch, at the compute of the whole lineage."""
    ours, theirs = chain.last("val_loss"), scratch.last("val_loss")
    better = "lower" if ours < theirs else "not lower"
    told = (
        f"At {chain.after.flops:.3g} Hoffmann FLOPs the chain's validation loss is {ours:.4f}, {better} than"
        f" {theirs:.4f} from scratch at {scratch.after.flops:.3g} Hoffmann FLOPs."
    )
    return told if chain.before.known else f"{told} What the base took before is not known, and not in it."


def plot(chain: Sequence[Stage], scratch: Stage | None, title: str, path: Path) -> None:
    """Draw tokens and loss against the compute of the lineage (figure 11); a growth is a dotted line."""
    from matplotlib.ticker import EngFormatter

    with picture(path, width=6.0, panels=2) as (left, right):
        for number, s in enumerate([*chain, *([scratch] if scratch else [])]):
            color = "black" if s is scratch else COLORS[number % (len(COLORS) - 1)]
            flops = [row["lineage_flops"] for row in s.rows]
            label = f"{s.name}, {s.tokens / s.parameters:.2g} tokens per parameter"
            left.plot(flops, [row["lineage_tokens"] for row in s.rows], color=color, label=label)
            for key, style in (("loss", dict(alpha=0.3, linewidth=1)), ("val_loss", dict(marker="o", markersize=3))):
                points = [(row["lineage_flops"], row[key]) for row in s.rows if key in row]
                right.plot([x for x, _ in points], [y for _, y in points], color=color, **style)
        for s in chain[1:]:
            for axes in (left, right):
                axes.axvline(s.before.flops, color="0.5", linestyle=":", linewidth=1)
        left.set(xlabel="compute of the lineage (Hoffmann FLOPs)", ylabel="tokens of the lineage")
        right.set(xlabel="compute of the lineage (Hoffmann FLOPs)", ylabel="loss (nats per token)")
        left.yaxis.set_major_formatter(EngFormatter(sep=""))
        left.legend(frameon=False, fontsize="small")
        left.set_title(title, fontsize="medium", loc="left")
        right.set_title("validation with marks; training faint", fontsize="medium", loc="left")


def check_finished(runs: Sequence[StudyRun], outcomes: Mapping[str, Outcome]) -> None:
    """Raise a UserError for a chain that broke."""
    for run in runs:
        if outcomes[run.name].status != "finished":
            raise UserError(f"{run.name} {in_words(outcomes[run.name])}")
