"""The sections of the page that every study has: the answer, pair by pair, chains, and all runs."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import pandas as pd

from litgpt_warmstart.report import figures
from litgpt_warmstart.report.compare import MIN_VALIDATIONS, Arm, Compared, Comparison, Row, own_flops
from litgpt_warmstart.report.page import Section, Table, readable
from litgpt_warmstart.report.runs import Runs
from litgpt_warmstart.report.statistics import SMOOTHING, Estimate, band, estimate, placed, smoothed

PAPERS_BUDGET = 20
"""Tokens per parameter."""
SCRATCH = "from scratch (muP)"
COLUMNS = ("model", "learning_rate", "batch_size", "schedule", "tokens", "tokens_per_param", "val_loss", "status",
           "told")  # fmt: skip
"""Of the table of runs, those that the page has."""
ROWS = 9
"""Of a table on the terminal."""


def answer(compared: Compared, runs: Runs) -> Section:
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
            " is that of the compute they took, inverted), and the most that growth can give."
        )
        pairs = pd.concat([arm.pairs.assign(comparison=c.title, warmstart=arm.label) for c, arm in arms])
        section.tables = [Table("speed_up", caption, rows, shown), Table("pairs", "", pairs)]
    for run, why in compared.notes:
        section.notes.append(f"Not counted: {run['run']}: {why}")
    section.notes += [f"Left out: {name}: {row.status}: {row.told}" for name, row in runs.left_out.iterrows()]
    return section


def headline(comparisons: Sequence[Comparison]) -> str:
    """One sentence for all comparisons."""
    if not comparisons:
        return "No finished warmstart has a finished run from scratch with the same settings beside it: no answer."
    if len(comparisons) == 1:
        (only,), best = comparisons, best_arm(comparisons[0])
        if best is None:
            return f"{only.title}: no warmstart reached the scratch run's last validation loss."
        counted = " with the base's counted" * bool(best.speed_up_with_base.seeds)
        found = best.speed_up_with_base if counted else best.speed_up
        times = "at once" if math.isinf(found.mean) else f"at a speed-up in Hoffmann FLOPs of {found.mean:.2f}{counted}"
        return f"{only.title}: with {best.label} the scratch run's last loss was reached {times}: {verdict(found)}."
    found = [best.speed_up_with_base if (best := best_arm(c)) else estimate([]) for c in comparisons]
    words = [verdict(one) if one.has_interval or not one.seeds else "told by one seed only" for one in found]
    counts = ", ".join(f"{word} in {words.count(word)}" for word in dict.fromkeys(words))
    beyond = sum(beyond_growth(comparison) is not None for comparison in comparisons)
    caution = f"; in {beyond} the speed-up is more than growth can give: see there" * bool(beyond)
    return (
        f"Of {len(comparisons)} comparisons, with the base's compute counted, the best warmstart was {counts}{caution}."
    )


def speed_up_row(comparison: Comparison, arm: Arm) -> Row:
    """A row of speed_up.csv."""
    own, whole = arm.limits
    columns: Row = {
        "comparison": comparison.title, "warmstart": arm.label, "tokens_per_param": comparison.tokens_per_param,
        "seeds": len(arm.pairs), "seeds_that_reached_scratch_loss": arm.reached,
    }  # fmt: skip
    first = arm.loss_difference("first_val_loss") if all(arm.pairs["validated_at_start"]) else estimate([])
    for name, found in (
        ("speed_up", arm.speed_up), ("speed_up_with_base", arm.speed_up_with_base),
        ("first_val_loss_minus_scratch", first), ("val_loss_minus_scratch", arm.loss_difference("val_loss")),
    ):  # fmt: skip
        columns |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
    runs = {"warmstart_runs": " ".join(arm.pairs["warmstart_run"]), "scratch_runs": " ".join(arm.pairs["scratch_run"])}
    return columns | {"speed_up_limit": own, "speed_up_with_base_limit": whole} | runs


def _speed_up_shown(comparison: Comparison, arm: Arm) -> dict[str, str]:
    limits = [f"{limit:.2f}" if math.isfinite(limit) else "-" for limit in arm.limits]
    told = [found.words() if arm.reached else "never" for found in (arm.speed_up, arm.speed_up_with_base)]
    return {
        "comparison": comparison.title, "warmstart": arm.label,
        "reached the loss": f"{arm.reached} of {_seeds(len(arm.pairs))}",
        "speed-up": told[0], "at most": limits[0], "with base": told[1], "at most, with base": limits[1],
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
    if math.isinf(found.mean):
        return "before its first step"
    interval = f"95% interval {found.interval()}" if found.has_interval else "one seed: no interval"
    return f"at a speed-up in Hoffmann FLOPs of {found.mean:.2f} ({interval})"


def best_arm(comparison: Comparison) -> Arm | None:
    """The fastest with the base counted, of those that reached the loss with every seed."""

    def speed(arm: Arm) -> float:
        return (arm.speed_up_with_base if arm.speed_up_with_base.seeds else arm.speed_up).mean

    return max((arm for arm in comparison.arms if arm.whole), key=speed, default=None)


def sentences(comparison: Comparison) -> list[str]:
    """A comparison's answer, the default of shrink 0.4 and the best arm by name."""
    losses = [run["val_loss"] for run in comparison.scratch]
    loss = f"{fmean(losses):.4f}" + (f" on average over {_seeds(len(losses))}" if len(losses) > 1 else "")
    best, missed = best_arm(comparison), [arm for arm in comparison.arms if not arm.whole]
    if best is None:
        told = f"No warmstart reached the scratch run's last validation loss, {loss}"
        nearest = max(comparison.arms, key=lambda arm: arm.reached / len(arm.pairs))
        found = f" {nearest.label} did with {nearest.reached} of {_seeds(len(nearest.pairs))}."
        whole = f", with every seed: no speed-up.{found}" if nearest.reached else ": no speed-up."
        return [told + whole, *_cautions(comparison)]
    default = [arm for arm in comparison.arms if arm.whole and arm.label.partition(", from ")[0] == "shrink 0.4"]
    told = []
    for arm in dict.fromkeys((best, *default)):
        chosen = f", the best of {len(comparison.arms)} ways, chosen afterwards," if len(comparison.arms) > 1 else ""
        words = (
            f"The warmstart with {arm.label}{chosen if arm is best else ''} reached the scratch run's last validation"
            f" loss, {loss}, {_times(arm.speed_up)}: {verdict(arm.speed_up)}."
        )
        whole = arm.speed_up_with_base
        if not whole.seeds:
            told.append(f"{words} What its base took is not known.")
        else:
            told.append(f"{words} With the base's compute counted, {_times(whole)}: {verdict(whole)}.")
    if missed:
        counts = "; ".join(f"{arm.label} ({arm.reached} of {_seeds(len(arm.pairs))} did)" for arm in missed)
        told.append(f"Not with every seed: {counts}.")
    return [*told, *_cautions(comparison)]


def _cautions(comparison: Comparison) -> list[str]:
    told = []
    few = [arm for arm in comparison.arms if len(arm.pairs) == 1]
    if few:
        which = "Every warmstart here" if len(few) == len(comparison.arms) else ", ".join(arm.label for arm in few)
        told.append(f"{which} has one seed: an interval needs two at least, and three to be of use.")
    if any(count < MIN_VALIDATIONS for arm in comparison.arms for count in arm.pairs["validations"]):
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
    beyond = [arm for arm in comparison.arms if arm.speed_up.seeds and arm.speed_up.mean > arm.limits[0]]
    if not beyond:
        return None
    limit, _ = beyond[0].limits
    return (
        f"More than growth can give: the base had {1 - 1 / limit:.0%} of the target's tokens, which are worth a"
        f" speed-up of {limit:.2f} at most. Look at the curves: small models have one sudden drop, and where the run"
        " from scratch has not had it by its end, a speed-up tells when it came and not what growth saves."
    )


def pairs(compared: Compared, runs: Runs) -> Section:
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
    rows, curves = {row["run"]: row for row in runs.rows()}, []
    for number, c in enumerate(compared.comparisons, start=1):
        shown, gains = [_arm_shown(c, SCRATCH, c.scratch, None)], []
        for arm in c.arms:
            shown.append(_arm_shown(c, arm.label, [rows[name] for name in arm.pairs["warmstart_run"]], arm))
            for equal, found in (("tokens", arm.at_tokens), ("hoffmann_flops", arm.at_compute)):
                gains.append(gain_table(found).assign(comparison=c.title, warmstart=arm.label, equal=equal))
        curves += [_curve(c, runs, rows[name]) for name in c.runs]
        caption = (
            "Validation loss, mean over seeds (least to greatest), and where along the budget a warmstart is ahead."
        )
        table = Table(f"gains_{number}", caption, pd.concat(gains), pd.DataFrame(shown))
        drawn = [loss_figure(c, runs, f"loss-tokens-{number}", with_base=False)]
        if not any(arm.pairs["base_hoffmann_flops"].hasnans for arm in c.arms):
            drawn.append(loss_figure(c, runs, f"loss-compute-{number}", with_base=True))
        told, beside = sentences(c), printed(c, runs)
        section.parts.append(Section(c.title, answers=told, figures=drawn, tables=[table], printed=beside))
    if curves:
        section.tables = [Table("validation_losses", "", pd.concat(curves))]
    return section


def _curve(comparison: Comparison, runs: Runs, run: Row) -> pd.DataFrame:
    """Rows of validation_losses.csv."""
    found = runs.val_losses(run["run"]).rename_axis("tokens").reset_index()
    own = found["tokens"] * run["hoffmann_flops_per_token"]
    before = run["base_hoffmann_flops"] if run["kind"] == "warmstart" else 0.0
    return pd.DataFrame({
        "comparison": comparison.title, "run": run["run"], "tokens": found["tokens"],
        "tokens_per_param": found["tokens"] / run["parameters"], "hoffmann_flops": own,
        "hoffmann_flops_with_base": own + before, "val_loss": found["val_loss"],
    })  # fmt: skip


def _arm_shown(comparison: Comparison, label: str, rows: Sequence[Row], arm: Arm | None) -> dict[str, str]:
    """A row of a pair's table; the run from scratch has no arm."""
    first, last = ([row[column] for row in rows] for column in ("first_val_loss", "val_loss"))
    shown = {"warmstart": label, "seeds": str(len(rows)), "first loss": _spread(first), "last loss": _spread(last)}
    if arm is None:
        return shown | dict.fromkeys(("less scratch's", "ahead at equal tokens", "ahead at equal compute"), "")
    parameters = comparison.scratch[0]["parameters"]
    return shown | {
        "less scratch's": arm.loss_difference("val_loss").words(3, "+"),
        "ahead at equal tokens": ahead(gain_table(arm.at_tokens), parameters, "tokens per parameter"),
        "ahead at equal compute": ahead(gain_table(arm.at_compute), 1.0, "Hoffmann FLOPs") or _no_compute(arm),
    }


def _spread(values: Sequence[float]) -> str:
    mean = f"{fmean(values):.4f}"
    return mean if min(values) == max(values) else f"{mean} ({min(values):.4f} to {max(values):.4f})"


def _no_compute(arm: Arm) -> str:
    """Why there is no place at which a warmstart and its run from scratch had taken as much."""
    if arm.pairs["base_hoffmann_flops"].hasnans:
        return "what the base took is not known"
    return "none: the base alone took too much of scratch's"


def gain_table(found: pd.DataFrame) -> pd.DataFrame:
    """Differences, a column a seed, as rows of gains.csv; ahead where the interval, or one seed's value, is below 0."""
    rows = [(at, estimate(values.tolist())) for at, values in found.iterrows()]
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


def loss_figure(comparison: Comparison, runs: Runs, name: str, with_base: bool) -> figures.Figure:
    """Curves of a comparison's runs over tokens per parameter, or over compute with the base's in front."""
    parameters = comparison.scratch[0]["parameters"]
    rows = {row["run"]: row for row in runs.rows()}
    groups: list[tuple[str, list[Row], dict[str, Any], pd.DataFrame]]
    groups = [(SCRATCH, comparison.scratch, figures.style(-1), pd.DataFrame())]
    for number, arm in enumerate(comparison.arms):
        found = arm.at_compute if with_base else arm.at_tokens
        groups.append((arm.label, [rows[r] for r in arm.pairs["warmstart_run"]], figures.style(number), found))
    for row in comparison.unfinished:
        label = f"{row['growth'] or 'from scratch'}, {row['status']}"
        groups.append((label, [row], figures.style(-1) | {"color": figures.GREY}, pd.DataFrame()))
    unit, named = parameters, "tokens per parameter"
    if with_base:
        unit, named = figures.flops_unit(max(own_flops(run) for run in comparison.scratch))
    lines = []
    for label, members, look, found in groups:
        run = members[0]
        per_token = run["hoffmann_flops_per_token"] if with_base else 1.0
        before = run["base_hoffmann_flops"] if with_base and run["kind"] == "warmstart" else 0.0
        val_losses = placed(band([runs.val_losses(run["run"]) for run in members]), before, per_token)
        smooth = [smoothed(runs.losses(run["run"]), SMOOTHING * run["tokens"]) for run in members]
        below = band([values for _, values in found.items()]) if len(found) else None
        lines.append(figures.Line(label, look, val_losses, placed(band(smooth)["mean"], before, per_token), below))
    last = fmean(run["val_loss"] for run in comparison.scratch)
    equal = f"{named}, the base's in front" if with_base else named
    caption = f"{comparison.title}: validation loss over {equal}, and its difference from scratch's at equal places."
    return figures.loss_curves(name, caption, lines, named + (", the base's included" if with_base else ""), unit, last)


def printed(comparison: Comparison, runs: Runs) -> str:
    """A comparison for the terminal: validation losses at the same token counts, compute to scratch's last loss."""
    columns = {"from scratch": band([runs.val_losses(run["run"]) for run in comparison.scratch])["mean"]}
    for arm in comparison.arms:
        columns[arm.label] = band([runs.val_losses(name) for name in arm.pairs["warmstart_run"]])["mean"]
    shared = pd.concat(columns, axis=1, join="inner")
    step = max(1, math.ceil((len(shared) - 1) / (ROWS - 1)))
    places = sorted({*range(0, len(shared) - 1, step), len(shared) - 1} - {-1})
    formats: dict[Any, Any] = dict.fromkeys(columns, "{:.4f}".format) | {"tokens": "{:,.0f}".format}
    told = shared.iloc[places].reset_index(names="tokens")
    lines = [told.to_string(index=False, col_space=13, formatters=formats)] if places else []
    arm = best_arm(comparison)
    mean = (arm or comparison.arms[0]).pairs.mean(numeric_only=True).to_dict()
    per_token = mean["scratch_hoffmann_flops"] / mean["scratch_tokens"]  # of the same model as the warmstart's
    tokens = beside = mean["scratch_tokens"]
    to = "of the whole runs"
    if arm:
        tokens, beside, to = mean["tokens_to_scratch_loss"], mean["scratch_tokens_to_its_loss"], "to that loss"
        loss = fmean(run["val_loss"] for run in comparison.scratch)
        lines.append(
            f"To the scratch run's last loss, {loss:.4f}, {arm.label} took {tokens:,.0f} of {beside:,.0f} tokens:"
            f" {tokens / beside:.0%}."
        )
    scratch, own = beside * per_token, tokens * per_token
    whole = own + mean["base_hoffmann_flops"]
    with_base = f", with the base's own training {whole:.3g} ({whole / scratch:.0%})."
    if math.isnan(whole):
        with_base = "; what the base's own training took is not known."
    lines.append(f"Compute {to}: scratch {scratch:.3g} Hoffmann FLOPs, warmstart {own:.3g}{with_base}")
    return "\n".join(lines)


def all_runs(runs: Runs) -> Section:
    """Every run that was found, and how far it got."""
    kinds = {"scratch": SCRATCH, "standard": "from scratch (SP)", "warmstart": "grown", "continued": "continued"}
    rows = []
    for row in runs.rows():
        grown = ", ".join(filter(None, [row["source"] and f" from {row['source']}", row["growth"]]))
        kind = kinds[row["kind"]] + grown * (row["kind"] not in ("scratch", "standard"))
        told = {"run": row["run"], "kind": kind, "seed": str(row["seed"])}
        rows.append(told | {column: row[column] for column in COLUMNS})
    rows += runs.left_out.drop(columns="folder").reset_index().to_dict("records")
    table = pd.DataFrame(rows)
    caption = f"All {len(rows)} runs that were found. A run that is going on and one that broke off look alike."
    return Section("Runs", tables=[Table("runs", caption, table, readable(table), folded=True)])
