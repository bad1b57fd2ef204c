"""The sections of the page that every study has: the answer, pair by pair, and all runs."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import pandas as pd

from litgpt_warmstart.report import figures
from litgpt_warmstart.report.compare import Arm, Compared, Comparison
from litgpt_warmstart.report.page import Section, Table, readable
from litgpt_warmstart.report.runs import Found, Run
from litgpt_warmstart.report.statistics import SMOOTHING, Estimate, band, drop_tokens, estimate, placed, smoothed

PAPERS_BUDGET = 20
"""Tokens per parameter."""
ROWS = 9
"""Of a table on the terminal."""
DISTRUST = "distrust"
"""Marks a speed-up that is more than growth can give."""
MIN_VALIDATIONS = 4
"""Fewer points make an interpolated token count a guess."""


def answer(compared: Compared, found: Found) -> Section:
    """Whether warmstarting paid, first of all."""
    section = Section("The answer", answers=[headline(compared.comparisons)])
    if compared.comparisons:
        arms = [(c, arm) for c in compared.comparisons for arm in c.arms]
        rows = pd.DataFrame([speed_up_row(*one) for one in arms])
        caption = (
            "Speed-up until each run first is at the scratch run's last validation loss: mean and 95% interval over"
            " seeds. Upright marks: the most that growth can give, if it carries all that the base has learnt from its"
            " tokens; what is beyond tells when a run had its sudden drop and not what growth saves."
        )
        section.figures = [figures.speed_ups("speed-up", caption, rows)]
        shown = pd.DataFrame([_speed_up_shown(*one) for one in arms])
        caption = (
            "Speed-up in Hoffmann FLOPs, over the seeds that reached the scratch run's last validation loss (the mean"
            " is that of the compute they took, inverted), and the most that growth can give: from what it gives if it"
            " carries the base's loss (by Hoffmann et al.'s fit) to what it gives if it carries what the base's tokens"
            f" taught. A speed-up beyond that is one to {DISTRUST}."
        )
        pairs = pd.concat([arm.pairs.assign(comparison=c.title, warmstart=arm.label) for c, arm in arms])
        section.tables = [Table("speed_up", caption, rows, shown), Table("pairs", "", pairs)]
    section.notes = [f"Not counted: {run.name}: {why}" for run, why in compared.notes]
    section.notes += [f"Left out: {name}: {why}" for name, why in found.left_out.items()]
    return section


def headline(comparisons: Sequence[Comparison]) -> str:
    """One sentence for all comparisons."""
    if not comparisons:
        return "No finished warmstart has a finished run from scratch with the same settings beside it: no answer."
    bests = [best_arm(comparison) for comparison in comparisons]
    if len(comparisons) == 1:
        if (best := bests[0]) is None:
            return f"{comparisons[0].title}: no warmstart reached the scratch run's last validation loss."
        counted = " with the base's counted" * bool(best.speed_up_with_base.seeds)
        told = f"{_times(best.counted)}{counted}: {verdict(best.counted)}"
        told += "; that is more than growth can give: see below" * best.is_beyond_growth
        return f"{comparisons[0].title}: with {best.label} the scratch run's last loss was reached {told}."
    found = [best.speed_up_with_base if best else estimate([]) for best in bests]
    words = [verdict(one) if one.has_interval or not one.seeds else "told by one seed only" for one in found]
    counts = ", ".join(f"{word} in {words.count(word)}" for word in dict.fromkeys(words))
    beyond = sum(beyond_growth(comparison) is not None for comparison in comparisons)
    caution = f"; in {beyond} the speed-up is more than growth can give: see there" * bool(beyond)
    return (
        f"Of {len(comparisons)} comparisons, with the base's compute counted, the best warmstart was {counts}{caution}."
    )


def speed_up_row(comparison: Comparison, arm: Arm) -> dict[str, Any]:
    """A row of speed_up.csv."""
    first = arm.loss_difference("first_val_loss") if all(arm.pairs["validated_at_start"]) else estimate([])
    columns: dict[str, Any] = {
        "comparison": comparison.title, "warmstart": arm.label, "tokens_per_param": comparison.tokens_per_param,
        "seeds": len(arm.pairs), "seeds_that_reached_scratch_loss": arm.reached,
    }  # fmt: skip
    for name, found in (
        ("speed_up", arm.speed_up), ("speed_up_with_base", arm.speed_up_with_base),
        ("first_val_loss_minus_scratch", first), ("val_loss_minus_scratch", arm.loss_difference("val_loss")),
    ):  # fmt: skip
        columns |= found.columns(name)
    columns |= {f"{kind}_runs": " ".join(arm.pairs[f"{kind}_run"]) for kind in ("warmstart", "scratch")}
    for carried, ending in (("tokens", ""), ("loss", "_if_loss")):
        for counted in ("", "_with_base"):
            columns[f"speed_up{counted}_limit{ending}"] = arm.at_most[f"{carried}{counted}"]
    return columns | {"distrust": arm.is_beyond_growth}


def _speed_up_shown(comparison: Comparison, arm: Arm) -> dict[str, str]:
    limits = [
        " to ".join(f"{arm.at_most[name]:.2f}" if math.isfinite(arm.at_most[name]) else "-" for name in pair)
        for pair in (("loss", "tokens"), ("loss_with_base", "tokens_with_base"))
    ]
    told = [found.words() if arm.reached else "never" for found in (arm.speed_up, arm.speed_up_with_base)]
    return {
        "comparison": comparison.title, "warmstart": arm.label,
        "reached the loss": f"{arm.reached} of {_seeds(len(arm.pairs))}",
        "speed-up": told[0], "at most": limits[0], "with base": told[1], "at most, with base": limits[1],
        "": DISTRUST if arm.is_beyond_growth else "",
    }  # fmt: skip


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


def verdict(found: Estimate) -> str:
    """What a speed-up and its interval say."""
    if not found.seeds:
        return "unknown"
    if not found.has_interval:
        return "one seed, which shows no difference from chance"
    return "faster" if found.low > 1 else "slower" if found.high < 1 else "not told apart from no speed-up"


def _times(found: Estimate) -> str:
    return found.words() if math.isinf(found.mean) else f"at a speed-up in Hoffmann FLOPs of {found.words()}"


def best_arm(comparison: Comparison) -> Arm | None:
    """The fastest with the base counted, of those that reached the loss with every seed."""
    return max((arm for arm in comparison.arms if arm.whole), key=lambda arm: arm.counted.mean, default=None)


def sentences(comparison: Comparison) -> list[str]:
    """A comparison's answer: the best arm, and what to beware of."""
    losses, best = [run.val_loss for run in comparison.scratch], best_arm(comparison)
    loss = f"the scratch run's last validation loss, {fmean(losses):.4f}"
    loss += f" on average over {_seeds(len(losses))}" * (len(losses) > 1)
    told = [f"No warmstart reached {loss}, with every seed: no speed-up."]
    if best:
        whole = best.speed_up_with_base
        chosen = f", the best of {len(comparison.arms)} ways, chosen afterwards," * (len(comparison.arms) > 1)
        counted = f"With the base's compute counted, {_times(whole)}: {verdict(whole)}."
        told = [
            f"The warmstart with {best.label}{chosen} reached {loss}, {_times(best.speed_up)}:"
            f" {verdict(best.speed_up)}. {counted if whole.seeds else 'What its base took is not known.'}"
        ]
    if any(arm.is_of_lineages for arm in comparison.arms):
        told.append(
            "Seeds are lineages: order of data and initialization differ from each to the next, and the base where each"
            " has its own. Intervals of differences in loss are over seeds, as independent draws (Welch's); a speed-up"
            " is the mean over lineages, each beside its own run from scratch."
        )
    if any(len(arm.pairs) == 1 for arm in comparison.arms):
        told.append("Of one seed there is no interval: that needs two at least, and three to be of use.")
    if any((arm.pairs["validations"] < MIN_VALIDATIONS).any() for arm in comparison.arms):
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
    """What to say where a warmstart saved more than its base's tokens can be worth: no credit to growth."""
    beyond = next((arm.at_most for arm in comparison.arms if arm.is_beyond_growth), None)
    if beyond is None:
        return None
    limit, with_base = beyond["tokens"], beyond["tokens_with_base"]
    worth = f"had {1 - 1 / limit:.0%} of the target's tokens, which are worth a speed-up of {limit:.2f} at most,"
    if math.isinf(limit):
        worth = "had as many tokens as the target or more, which are worth a speed-up of at most"
    return (
        f"More than growth can give: the base {worth} {with_base:.2f} with the base counted: one to {DISTRUST}. Look"
        " at the curves: small models have one sudden drop, and where the run from scratch has not had it by its end, a"
        " speed-up tells when it came and not what growth saves."
    )


def pairs(compared: Compared) -> Section:
    """Each comparison under its own heading: its answer, its curves, where along the budget it is ahead."""
    section = Section(
        "Pair by pair",
        "Above: validation losses, with marks, and training losses, faint, smoothed with a Gaussian of"
        f" {SMOOTHING:.0%} of the run's tokens as its standard deviation; the dotted line is the scratch run's last"
        " validation loss. Below: a warmstart's validation loss less that of the run from scratch with its seed; below"
        " 0 it is ahead. Lines are means over seeds, bands reach from the least to the greatest. Ahead is told where"
        " the 95% interval lies below 0, of one seed where the difference does. The axis of losses leaves out what"
        " stands before the first validation after training began.",
    )
    curves = []
    for number, c in enumerate(compared.comparisons, start=1):
        shown, gains = [_seeds_shown(c.scratch[0].from_scratch, c.scratch)], []
        for arm in c.arms:
            shown.append(_seeds_shown(arm.label, arm.warm) | _arm_shown(arm))
            for equal, found in (("tokens", arm.at_tokens), ("hoffmann_flops", arm.at_compute)):
                gains.append(gain_table(arm, found).assign(comparison=c.title, warmstart=arm.label, equal=equal))
        curves += [_curve(c, run) for run in c.runs]
        caption = (
            "Validation loss, mean over seeds (least to greatest), and where along the budget a warmstart is ahead."
        )
        table = Table(f"gains_{number}", caption, pd.concat(gains), pd.DataFrame(shown).fillna(""))
        drawn = [loss_figure(c, f"loss-tokens-{number}", by_compute=False)]
        if not any(arm.pairs["base_hoffmann_flops"].hasnans for arm in c.arms):
            drawn.append(loss_figure(c, f"loss-compute-{number}", by_compute=True))
        section.parts.append(Section(c.title, "", sentences(c), printed(c), drawn, [table]))
    if curves:
        section.tables = [Table("validation_losses", "", pd.concat(curves))]
    return section


def _curve(comparison: Comparison, run: Run) -> pd.DataFrame:
    """Rows of validation_losses.csv."""
    tokens = run.val_losses.index
    own = tokens * run.flops_per_token
    return pd.DataFrame({
        "comparison": comparison.title, "run": run.name, "tokens": tokens,
        "tokens_per_param": tokens / run.record.parameters, "hoffmann_flops": own,
        "hoffmann_flops_with_base": own + run.base_flops, "val_loss": run.val_losses.to_numpy(),
    })  # fmt: skip


def _seeds_shown(label: str, runs: Sequence[Run]) -> dict[str, str]:
    """What a pair's table says of runs that differ in their seeds."""

    def spread(values: Sequence[float]) -> str:
        mean = f"{fmean(values):.4f}"
        return mean if min(values) == max(values) else f"{mean} ({min(values):.4f} to {max(values):.4f})"

    first, last = zip(*((run.val_losses.iloc[0], run.val_loss) for run in runs), strict=True)
    return {"warmstart": label, "seeds": str(len(runs)), "first loss": spread(first), "last loss": spread(last)}


def _arm_shown(arm: Arm) -> dict[str, str]:
    """What it says of a warmstart beside scratch."""
    none = "none: the base alone took too much of scratch's"
    if arm.pairs["base_hoffmann_flops"].hasnans:
        none = "what the base took is not known"
    return {
        "less scratch's": arm.loss_difference("val_loss").words(3, "+"),
        "ahead at equal tokens": ahead(
            gain_table(arm, arm.at_tokens), arm.members[0][0].record.parameters, "tokens per parameter"
        ),
        "ahead at equal compute": ahead(gain_table(arm, arm.at_compute), 1.0, "Hoffmann FLOPs") or none,
    }


def gain_table(arm: Arm, found: Any) -> pd.DataFrame:
    """Losses less scratch's as rows of gains.csv; ahead where the interval, or one seed's value, is below 0."""
    rows = [
        (at, arm.less_scratch(losses.xs("own", level=1), losses.xs("scratch", level=1)))
        for at, losses in found.iterrows()
    ]
    return pd.DataFrame(
        [(at, e.seeds, e.mean, e.low, e.high, (e.high if e.has_interval else e.mean) < 0) for at, e in rows],
        columns=["at", "seeds", "val_loss_minus_scratch", "low", "high", "ahead"],
    )


def ahead(gains: pd.DataFrame, scale: float, unit: str) -> str:
    """Where along the budget a warmstart is ahead, in words; nothing where there is no place to tell."""
    if gains.empty:
        return ""
    if all(gains["ahead"]):
        return "throughout"
    spans = gains[gains["ahead"]].groupby((~gains["ahead"]).cumsum())["at"].agg(["min", "max"]) / scale
    told = [f"at {low:.3g}" if low == high else f"from {low:.3g} to {high:.3g}" for low, high in spans.to_numpy()]
    return f"{' and '.join(told)} {unit}" if told else "never"


def line(
    label: str, look: dict[str, Any], stages: Sequence[Sequence[Run]], by_compute: bool, below: Any = None
) -> figures.Line:
    """A line of a figure of losses: runs that differ in their seeds, and what was grown from them, and so on.

    It lies over tokens per parameter, or over Hoffmann FLOPs with those before a warmstart, if known, in front.
    """
    before = stages[0][0].base_flops
    at = before if by_compute and not math.isnan(before) else 0.0
    shown, starts = [], []
    faint: list[pd.Series] = []
    for runs in stages:
        per_token = runs[0].flops_per_token if by_compute else 1 / runs[0].record.parameters
        smooth = band([smoothed(run.losses, SMOOTHING * run.tokens) for run in runs])["mean"]
        shown.append(placed(band([run.val_losses for run in runs]), at, per_token))
        faint.append(placed(smooth, at, per_token))
        starts.append(at)
        at += runs[0].tokens * per_token
    return figures.Line(label, look, pd.concat(shown), pd.concat(faint), below, tuple(starts[1:]))


def loss_figure(comparison: Comparison, name: str, by_compute: bool) -> figures.Figure:
    """Curves of a comparison's runs over tokens per parameter, or over compute with the base's in front."""
    lines = [line(comparison.scratch[0].from_scratch, figures.style(-1), [comparison.scratch], by_compute)]
    for number, arm in enumerate(comparison.arms):
        found = arm.at_compute if by_compute else placed(arm.at_tokens, 0.0, 1 / arm.warm[0].record.parameters)
        gains = found.xs("own", axis=1, level=1) - found.xs("scratch", axis=1, level=1)
        below = band([values for _, values in gains.items()]) if len(gains) else None
        lines.append(line(arm.label, figures.style(number), [arm.warm], by_compute, below))
    for run in comparison.unfinished:
        look = figures.style(-1) | {"color": figures.GREY}
        lines.append(line(f"{run.growth or 'from scratch'}, {run.status}", look, [[run]], by_compute))
    unit = "Hoffmann FLOPs, the base's in front" if by_compute else "tokens per parameter"
    last = fmean(run.val_loss for run in comparison.scratch)
    caption = f"{comparison.title}: validation loss over {unit}, and its difference from scratch's at equal places."
    return figures.loss_curves(name, caption, lines, unit, last)


def printed(comparison: Comparison) -> str:
    """A comparison for the terminal: validation losses at the same token counts, compute to scratch's last loss."""
    runs = {"from scratch": comparison.scratch} | {arm.label: arm.warm for arm in comparison.arms}
    means = {label: band([run.val_losses for run in seeds])["mean"] for label, seeds in runs.items()}
    shared: Any = pd.concat(means, axis=1, join="inner").rename_axis("tokens").reset_index()
    step = max(1, math.ceil((len(shared) - 1) / (ROWS - 1)))
    shared = shared[(shared.index % step == 0) | (shared.index == len(shared) - 1)]
    formats: dict[Any, Any] = dict.fromkeys(means, "{:.4f}".format) | {"tokens": "{:,.0f}".format}
    lines = [shared.to_string(index=False, col_space=13, formatters=formats)] if len(shared) else []
    if best := best_arm(comparison):
        mean = best.pairs.mean(numeric_only=True).to_dict()
        tokens, of = mean["tokens_to_scratch_loss"], mean["scratch_tokens_to_its_loss"]
        own, scratch = mean["hoffmann_flops_to_scratch_loss"], mean["scratch_hoffmann_flops_to_its_loss"]
        whole = own + mean["base_hoffmann_flops"]
        with_base = f", with the base's own training {whole:.3g} ({whole / scratch:.0%})."
        if math.isnan(whole):
            with_base = "; what the base's own training took is not known."
        lines += [
            f"To the scratch run's last loss, {mean['scratch_val_loss']:.4f}, {best.label} took {tokens:,.0f} of"
            f" {of:,.0f} tokens: {tokens / of:.0%}.",
            f"Compute to that loss: scratch {scratch:.3g} Hoffmann FLOPs, warmstart {own:.3g}{with_base}",
        ]
    return "\n".join(lines)


def all_runs(found: Found) -> Section:
    """Every run that was found, and how far it got."""
    rows: list[dict[str, Any]] = []
    for run in found.runs:
        grown = ", ".join(filter(None, [run.source and f" from {run.source}", run.growth]))
        kind = {"warmstart": f"grown{grown}", "continued": f"continued{grown}"}.get(run.kind, run.from_scratch)
        rows.append({
            "run": run.name, "kind": kind, "seed": str(run.seed), "model": run.model,
            "learning_rate": run.record.base_lr, "batch_size": run.record.global_batch_size,
            "schedule": run.settings["schedule"]["name"], "tokens": run.tokens,
            "tokens_per_param": run.tokens_per_param, "val_loss": run.val_loss,
            "drop_tokens_per_param": drop_tokens(run.induction) / run.record.parameters,
            "status": run.status, "told": run.told,
        })  # fmt: skip
    whole = dict(tokens="", batch_size="")  # as a gap in them would make numbers with a point of all others
    rows += [{"run": name, "status": "left out", "told": why} | whole for name, why in found.left_out.items()]
    table = pd.DataFrame(rows)
    caption = f"All {len(table)} runs that were found. A run that is going on and one that broke off look alike."
    shown = readable(table.dropna(axis="columns", how="all"))
    return Section("Runs", tables=[Table("runs", caption, table, shown, folded=True)])
