"""A warmstart beside the run from scratch: a table of both, a picture, and what the warmstart saved.

python -m litgpt_warmstart.report.comparison SCRATCH WARMSTART [--picture FILE.png]
"""

import shlex
from pathlib import Path

from jsonargparse import CLI

from litgpt_warmstart.edge import checked_value
from litgpt_warmstart.errors import UserError, told_in_one_line
from litgpt_warmstart.report.curves import tokens_to_last_loss, tokens_to_reach
from litgpt_warmstart.report.groups import MIN_VALIDATIONS, check_comparable
from litgpt_warmstart.report.old_runs import Run
from litgpt_warmstart.report.tables import COLORS, write_picture

ROWS = 9


def table(scratch: Run, warmstart: Run) -> str:
    """Validation losses of both at the same token counts, as text."""
    other = dict(warmstart.val_losses)
    shared = [(tokens, loss, other[tokens]) for tokens, loss in scratch.val_losses if tokens in other]
    if not shared:
        raise UserError("the runs were validated at different token counts: give both the same --eval.interval")
    step = max(1, -(-(len(shared) - 1) // (ROWS - 1)))
    rows = [*shared[:-1:step], shared[-1]]
    lines = [f"{'tokens':>14}  {'from scratch':>12}  {'warmstart':>9}"]
    lines += [f"{tokens:>14,.0f}  {a:>12.4f}  {b:>9.4f}" for tokens, a, b in rows]
    return "\n".join(lines)


def verdict(scratch: Run, warmstart: Run) -> str:
    """How many tokens, and how much compute, the warmstart and the scratch run took to the latter's last loss."""
    tokens, loss = tokens_to_last_loss(scratch.val_losses), scratch.val_losses[-1][1]
    if min(len(scratch.val_losses), len(warmstart.val_losses)) < MIN_VALIDATIONS:
        return "Too few validations to say what the warmstart saved: run both with a smaller --eval.interval."
    reached = tokens_to_reach(warmstart.val_losses, loss)
    if reached is None:
        trained = warmstart.val_losses[-1][0]
        return f"The warmstart did not reach the scratch run's last loss, {loss:.4f}, in {trained:,.0f} tokens."
    own, whole = reached * warmstart.flops_per_token, tokens * scratch.flops_per_token
    with_base = "; what the base's own training took is not known."
    if warmstart.base_flops is not None:
        lineage = own + warmstart.base_flops
        with_base = f", with the base's own training {lineage:.3g} ({lineage / whole:.0%})."
    return (
        f"The warmstart reached the scratch run's last loss, {loss:.4f}, after {reached:,.0f} of {tokens:,.0f} tokens:"
        f" {reached / tokens:.0%}.\nCompute to that loss: scratch {whole:.3g} Hoffmann FLOPs, warmstart"
        f" {own:.3g}{with_base}"
    )


def plot(scratch: Run, warmstart: Run, title: str, path: Path) -> None:
    """Draw both runs' losses against tokens into an image file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    named = (
        (scratch, COLORS[0], "o", "from scratch (muP)"),
        (warmstart, COLORS[1], "s", f"warmstart, shrink {warmstart.record.growth.shrink:g}"),
    )
    for run, color, marker, label in named:
        axes.plot(*zip(*run.losses, strict=True), color=color, alpha=0.25, linewidth=1)
        axes.plot(*zip(*run.val_losses, strict=True), color=color, marker=marker, markersize=4, label=label)
    tokens, loss = tokens_to_last_loss(scratch.val_losses), scratch.val_losses[-1][1]
    reached = tokens_to_reach(warmstart.val_losses, loss)
    if reached is not None:
        axes.hlines(loss, reached, tokens, color="0.4", linestyle="--", linewidth=1)
        axes.annotate(
            f"{reached / tokens:.0%} of the tokens", (reached, loss), xytext=(0, 10), textcoords="offset points"
        )
    axes.set(xlabel="tokens trained on", ylabel="loss (nats per token)")
    axes.set_title(title, fontsize="medium")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.legend(title="validation; training faint", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    write_picture(figure, path, dpi=150)
    plt.close(figure)


def compare(scratch: Path, warmstart: Path, picture: Path | None = None) -> None:
    """Compare a warmstart with the run from scratch on the same batches.

    Arguments:
        scratch: Folder of the run from scratch.
        warmstart: Folder of the warmstarted run.
        picture: Where to write the picture. Default: curves.png beside the warmstart's folder.
    """
    with told_in_one_line("comparison"):
        scratch, warmstart = (checked_value(*pair) for pair in (("scratch", scratch), ("warmstart", warmstart)))
        picture = checked_value("picture", picture)
        runs = Run.read(scratch), Run.read(warmstart)
        check_comparable(*runs)
        if runs[0].status != "finished":
            raise UserError(f"{str(scratch)!r} is {runs[0].status}: {runs[0].told}: its last loss says nothing yet")
        record = runs[1].record
        sources = " -> ".join(f"{a.name} ({a.parameters / 1e6:.2f}M)" for a in record.lineage)
        title = (
            f"{sources} -> {record.name} ({record.parameters / 1e6:.2f}M),"
            f" {runs[0].val_losses[-1][0] / record.parameters:.2f} tokens per parameter"
        )
        picture = picture or warmstart.parent / "curves.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        plot(*runs, title, picture)
        print(f"\nValidation loss, {title}\n{table(*runs)}\n\n{verdict(*runs)}\n")
        if runs[0].seed != runs[1].seed:
            print(f"The runs have different seeds, {runs[0].seed} and {runs[1].seed}.\n")
        print(f"The warmstart was:\n  {shlex.join(record.training['command_line'])}\nPicture: {picture}")


if __name__ == "__main__":
    CLI(compare, as_positional=True)
