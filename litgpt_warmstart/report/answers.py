"""The answer in words and as tables: did a warmstart reach the scratch run's last loss with less compute?"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from litgpt_warmstart.report.curves import Estimate
from litgpt_warmstart.report.groups import MIN_VALIDATIONS, Arm, Comparison
from litgpt_warmstart.report.html import Table

PAPERS_BUDGET = 20
"""Tokens per parameter."""

Names = Mapping[Path, str]
"""What runs are called, by folder."""


def in_words(found: Estimate | None, digits: int = 2, sign: str = "") -> str:
    """A mean with its interval, or that there is none."""
    if found is None:
        return "-"
    mean = "at once" if math.isinf(found.mean) else f"{found.mean:{sign}.{digits}f}"
    if found.interval is None:
        return f"{mean} (no interval: one seed)"
    return mean if math.isinf(found.interval[0]) else f"{mean} ({_range(found.interval, digits, sign)})"


def _range(interval: tuple[float, float], digits: int = 2, sign: str = "") -> str:
    low, high = interval
    return f"{low:{sign}.{digits}f} " + ("and more" if math.isinf(high) else f"to {high:{sign}.{digits}f}")


def verdict(found: Estimate | None) -> str:
    """What a speed-up and its interval say."""
    if found is None:
        return "unknown"
    if found.interval is None:
        return "one seed, which shows no difference from chance"
    low, high = found.interval
    return "faster" if low > 1 else "slower" if high < 1 else "not told apart from no speed-up"


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


def _times(found: Estimate) -> str:
    if math.isinf(found.mean):
        return "before its first step"
    interval = "one seed: no interval" if found.interval is None else f"95% interval {_range(found.interval)}"
    return f"at a speed-up in Hoffmann FLOPs of {found.mean:.2f} ({interval})"


def sentences(comparison: Comparison) -> list[str]:
    """A comparison's answer, the default of shrink 0.4 and the best arm by name."""
    arms = [arm for arm in comparison.arms if len(arm.reached) == len(arm.pairs)]
    if not any(arm.reached for arm in comparison.arms):
        told = f"No warmstart reached the scratch run's last validation loss, {_losses(comparison)}: no speed-up."
        return [told, *_cautions(comparison)]
    if not arms:
        reached = max(comparison.arms, key=lambda arm: len(arm.reached) / len(arm.pairs))
        return [
            f"No warmstart reached the scratch run's last validation loss, {_losses(comparison)}, with every seed:"
            f" no speed-up. {reached.label} did with {len(reached.reached)} of {_seeds(len(reached.pairs))}.",
            *_cautions(comparison),
        ]
    best = max(arms, key=lambda arm: (arm.speed_up_with_base or arm.speed_up).mean)
    named = [arm for arm in arms if arm.label.partition(", from ")[0] == "shrink 0.4" and arm is not best]
    told = []
    for arm in (best, *named):
        chosen = f", the best of {len(comparison.arms)} ways, chosen afterwards," if len(comparison.arms) > 1 else ""
        words = (
            f"The warmstart with {arm.label}{chosen if arm is best else ''} reached the scratch run's last validation"
            f" loss, {_losses(comparison)}, {_times(arm.speed_up)}: {verdict(arm.speed_up)}."
        )
        if arm.speed_up_with_base is None:
            words += " What its base took is not known."
        else:
            words += f" With the base's compute counted, {_times(arm.speed_up_with_base)}:"
            words += f" {verdict(arm.speed_up_with_base)}."
        told.append(words)
    missed = [arm for arm in comparison.arms if arm not in arms]
    if missed:
        counts = "; ".join(f"{arm.label} ({len(arm.reached)} of {_seeds(len(arm.pairs))} did)" for arm in missed)
        told.append(f"Not with every seed: {counts}.")
    return [*told, *_cautions(comparison)]


def _losses(comparison: Comparison) -> str:
    losses = [run.val_losses[-1][1] for run in comparison.scratch]
    told = f"{sum(losses) / len(losses):.4f}"
    return told if len(losses) == 1 else f"{told} on average over {_seeds(len(losses))}"


def _cautions(comparison: Comparison) -> list[str]:
    told = []
    few = [arm for arm in comparison.arms if len(arm.pairs) == 1]
    if few:
        which = "Every warmstart here" if len(few) == len(comparison.arms) else ", ".join(arm.label for arm in few)
        told.append(f"{which} has one seed: an interval needs two at least, and three to be of use.")
    if any(pair.guessed for arm in comparison.arms for pair in arm.pairs):
        told.append(
            f"Fewer than {MIN_VALIDATIONS} validations in a run: where it crosses a loss is a guess; set a smaller"
            " --eval.interval."
        )
    if beyond := beyond_growth(comparison):
        told.append(beyond)
    if comparison.tokens_per_param < 0.95 * PAPERS_BUDGET:  # which is cut to whole steps
        told.append(
            f"At {comparison.tokens_per_param:.2g} tokens per parameter this is the start of a training run, where"
            f" warmstarting helps most; the paper's budget is {PAPERS_BUDGET}."
        )
    return told


def beyond_growth(comparison: Comparison) -> str | None:
    """What to say where a warmstart saved more than its base's tokens can be worth: no credit to growth.

    If growth carries all that the base has learnt from D_b tokens, the target needs D_b fewer of its D_t: a speed-up of
    1 / (1 - D_b / D_t) at most, without the base's compute.
    """
    for arm in comparison.arms:
        pair = arm.pairs[0]
        share = sum(ancestor.tokens for ancestor in pair.warmstart.record.lineage) / pair.scratch.tokens
        if arm.speed_up is None or share >= 1 or arm.speed_up.mean <= 1 / (1 - share):
            continue
        return (
            f"More than growth can give: the base had {share:.0%} of the target's tokens, which are worth a speed-up of"
            f" {1 / (1 - share):.2f} at most. Look at the curves: small models have one sudden drop, and where the run"
            " from scratch has not had it by its end, a speed-up tells when it came and not what growth saves."
        )
    return None


def answer_table(comparisons: Sequence[Comparison], names: Names) -> Table:
    """A row an arm."""
    rows, shown = [], []
    for c in comparisons:
        for arm in c.arms:
            first, last = _first_difference(arm), arm.loss_difference(-1)
            rows.append(
                {
                    "comparison": c.title,
                    "warmstart": arm.label,
                    "tokens_per_param": c.tokens_per_param,
                    "seeds": len(arm.pairs),
                    "seeds_that_reached_scratch_loss": len(arm.reached),
                    **_columns("speed_up", arm.speed_up),
                    **_columns("speed_up_with_base", arm.speed_up_with_base),
                    **_columns("first_val_loss_minus_scratch", first),
                    **_columns("val_loss_minus_scratch", last),
                    "warmstart_runs": " ".join(names[p.warmstart.out_dir] for p in arm.pairs),
                    "scratch_runs": " ".join(names[p.scratch.out_dir] for p in arm.pairs),
                }
            )
            shown.append(
                {
                    "comparison": c.title,
                    "warmstart": arm.label,
                    "reached the loss": f"{len(arm.reached)} of {_seeds(len(arm.pairs))}",
                    "speed-up": in_words(arm.speed_up) if arm.reached else "never",
                    "with base": in_words(arm.speed_up_with_base) if arm.reached else "never",
                    "first loss less scratch's": in_words(first, 3, "+"),
                    "last loss less scratch's": in_words(last, 3, "+"),
                    "runs": ", ".join(f"{names[p.warmstart.out_dir]}/{names[p.scratch.out_dir]}" for p in arm.pairs),
                }
            )
    caption = (
        "Speed-up in Hoffmann FLOPs until each run first is at the scratch run's last validation loss, over the seeds"
        " that reached it (the mean is that of the compute they took, inverted), and differences in validation loss:"
        " mean and 95% interval over seeds. Tokens per parameter stand in the lines above, runs as warmstart/scratch"
        " in the last."
    )
    return Table("speed_up", caption, rows, shown)


def _first_difference(arm: Arm) -> Estimate | None:
    starts = {run.val_losses[0][0] for pair in arm.pairs for run in (pair.warmstart, pair.scratch)}
    return arm.loss_difference(0) if starts == {0} else None


def _columns(name: str, found: Estimate | None) -> dict[str, float | None]:
    low, high = (found and found.interval) or (None, None)
    return {name: found and found.mean, f"{name}_low": low, f"{name}_high": high}


def pairs_table(comparisons: Sequence[Comparison], names: Names) -> Table:
    """A row a warmstart and its run from scratch; only a file."""
    rows = [
        {
            "comparison": c.title,
            "warmstart": arm.label,
            "seed": pair.seed,
            "tokens_per_param": pair.warmstart.tokens_per_param,
            "scratch_first_val_loss": pair.scratch.val_losses[0][1],
            "first_val_loss": pair.warmstart.val_losses[0][1],
            "scratch_val_loss": pair.loss,
            "val_loss": pair.warmstart.val_losses[-1][1],
            "scratch_flops_to_its_loss": pair.scratch_flops,
            "tokens_to_scratch_loss": pair.tokens,
            "flops_to_scratch_loss": pair.flops,
            "base_flops": pair.warmstart.base_flops,
            "share_of_scratch_flops": pair.share,
            "share_of_scratch_flops_with_base": pair.share_with_base,
            "warmstart_run": names[pair.warmstart.out_dir],
            "scratch_run": names[pair.scratch.out_dir],
            "warmstart_dir": str(pair.warmstart.out_dir),
            "scratch_dir": str(pair.scratch.out_dir),
        }
        for c in comparisons
        for arm in c.arms
        for pair in arm.pairs
    ]
    return Table("pairs", "", rows)
