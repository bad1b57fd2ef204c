"""Figures that are legible on a light and on a dark page, as SVG in the page and as SVG and PNG files."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from litgpt_warmstart.report.chains import Chain
from litgpt_warmstart.report.curves import SMOOTHING, Band, band, smoothed
from litgpt_warmstart.report.gains import Gain
from litgpt_warmstart.report.groups import Comparison, arm_labels, size
from litgpt_warmstart.report.tables import COLORS

INK = "#010203"
"""Stands for the page's text colour, which is ``currentColor`` in an SVG."""
HUES = COLORS[:6]  # black is the ink's
LINES, MARKERS = ("-", "--", "-.", ":"), ("s", "^", "D", "v", "P", "X", "*")
WIDTH = 4.6
"""Inches. On a phone, where a figure is about 340 CSS pixels wide, 10 pt are shown as 7.7 pt."""
GREY = "#808080"
LOSS = "loss (nats per token)"

_STYLE = {
    "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium", "legend.frameon": False,
    "legend.fontsize": "small", "svg.fonttype": "none", "svg.hashsalt": "litgpt-warmstart", "grid.color": GREY,
    "grid.alpha": 0.3, "axes.grid": True, "axes.axisbelow": True, "font.size": 10,
}  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A figure of the page; its files are named ``slug``."""

    slug: str
    caption: str
    svg: str
    """For the page: no prolog, its ids its own, text and axes in the page's text colour."""
    svg_file: str
    png: bytes


@contextmanager
def drawn(
    slug: str,
    caption: str,
    height: float = 3.9,
    rows: int = 1,
    columns: int = 1,
    sharey: bool = True,
) -> Iterator[Any]:
    """A figure to draw on, made into SVG and PNG at the end.

    Args:
        slug: Name of its files.
        caption: For the page.
        height: Inches.
        rows: Of panels.
        columns: Of panels.
        sharey: Whether panels have one scale.

    Yields:
        The axes, one or an array, and a list that gets the :class:`Figure` at the end.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with matplotlib.rc_context(_STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), layout="constrained",
                                    sharex=rows * columns > 1, sharey=sharey and rows * columns > 1)  # fmt: skip
        made: list[Figure] = []
        try:
            yield axes, made
            text, png = StringIO(), BytesIO()
            figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
            figure.savefig(png, format="png", dpi=200, facecolor="white")
        finally:
            plt.close(figure)
        svg = text.getvalue()
        made.append(Figure(slug, caption, inline(svg, slug), svg.replace(INK, "#000000"), png.getvalue()))


def inline(svg: str, slug: str) -> str:
    """An SVG file's text as an element of a page: its ids are made its own; its ink and its blue, the page's.

    Args:
        svg: As matplotlib writes it.
        slug: Goes before its ids.
    """
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(HUES[0].lower(), "var(--blue)")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{slug}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{slug}-", svg)
    return re.sub(r' (width|height)="[^"]*pt"', "", svg, count=2)


def style(number: int) -> dict[str, Any]:
    """Colour, line and marker of the arm with this number; the run from scratch has -1."""
    if number < 0:
        return dict(color=INK, linestyle="-", marker="o")
    return dict(color=HUES[number % 6], linestyle=LINES[(number + 1) % 4], marker=MARKERS[number % 7])


def _flops_unit(greatest: float) -> tuple[float, str]:
    """A power of ten to count FLOPs in, and its name."""
    exponent = math.floor(math.log10(greatest)) if greatest > 0 else 0
    raised = str(exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return 10.0**exponent, f"10{raised} FLOPs (Hoffmann et al.)"


def legend(axes: Any, columns: int = 1, title: str | None = None) -> None:
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(handles, labels, loc="outside lower center", ncols=columns, title=title, title_fontsize="small")


def _draw_band(axes: Any, x: Sequence[float], found: Band, label: str, look: Mapping[str, Any]) -> None:
    every = max(1, len(x) // 12)
    axes.plot(x, found.mean, label=label, markersize=4, markevery=every, linewidth=1.6, **look)
    if found.low != found.high:
        axes.fill_between(x, found.low, found.high, color=look["color"], alpha=0.2, linewidth=0)


def loss_curves(comparison: Comparison, ids: Mapping[Path, str], what: str, slug: str, caption: str) -> Figure:
    """Losses of a comparison's runs over tokens or FLOPs: means over seeds, validation's with their spread.

    Args:
        comparison: The runs.
        ids: What runs are called, by folder.
        what: ``tokens``, ``flops``, or ``flops_with_base``, where curves begin at the compute of their base.
        slug: Name of its files.
        caption: For the page.
    """
    from matplotlib.ticker import EngFormatter

    groups = [("from scratch (muP)", comparison.scratch, style(-1))]
    groups += [(arm.label, [p.warmstart for p in arm.pairs], style(n)) for n, arm in enumerate(comparison.arms)]
    for number, run in enumerate(comparison.unfinished):
        kind = "from scratch" if run.from_scratch else arm_labels([run])[0]
        groups.append((f"{kind}, {run.status}", [run], style(number) | {"color": GREY}))
    most = [(run.base_flops or 0.0) * (run.warmstarted and what == "flops_with_base") + run.tokens * run.flops_per_token
            for run in comparison.runs]  # fmt: skip
    unit, named_unit = _flops_unit(max(most))
    with drawn(slug, caption, height=3.4 + 0.2 * len(groups)) as (axes, made):
        for label, runs, look in groups:
            run = runs[0]
            scale = run.flops_per_token / unit if what != "tokens" else 1.0
            offset = (run.base_flops or 0.0) / unit if what == "flops_with_base" and run.warmstarted else 0.0
            training = band([smoothed(run.losses, SMOOTHING * run.tokens) for run in runs])
            axes.plot([offset + t * scale for t in training.tokens], training.mean, color=look["color"],
                      linestyle=look["linestyle"], linewidth=1, alpha=0.4)  # fmt: skip
            found = band([run.val_losses for run in runs])
            names = ", ".join(ids[run.out_dir] for run in runs)
            _draw_band(axes, [offset + t * scale for t in found.tokens], found, f"{label}: {names}", look)
        last = band([run.val_losses for run in comparison.scratch]).mean[-1]
        axes.axhline(last, color=INK, linestyle=":", linewidth=1)
        if what == "tokens":
            axes.set(xlabel="tokens trained on", ylabel=LOSS)
            axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
            parameters = comparison.scratch[0].record.parameters
            top = axes.secondary_xaxis("top", functions=(lambda t: t / parameters, lambda r: r * parameters))
            top.set_xlabel("tokens per parameter")
        else:
            with_base = ", the base's included" if what == "flops_with_base" else ", the run's own"
            axes.set(xlabel=named_unit + with_base, ylabel=LOSS)
            axes.set_title(f"{comparison.tokens_per_param:.3g} tokens per parameter", fontsize="small", loc="right")
        legend(axes)
    return made[0]


def gain_curves(comparison: Comparison, gains: Sequence[Sequence[Gain]], what: str, slug: str, caption: str) -> Figure:
    """Validation loss less scratch's along the budget, a line an arm, with its spread over seeds.

    Args:
        comparison: The runs.
        gains: Of each of its arms.
        what: ``tokens`` or ``flops``, the places of the gains.
        slug: Name of its files.
        caption: For the page.
    """
    parameters = comparison.scratch[0].record.parameters
    unit, named_unit = _flops_unit(max((gain.at for found in gains for gain in found), default=1.0))
    budget = f"{comparison.tokens_per_param:.3g} tokens per parameter"
    with drawn(slug, caption, height=3.4 + 0.2 * len(gains)) as (axes, made):
        for number, (arm, found) in enumerate(zip(comparison.arms, gains, strict=True)):
            x = [gain.at / (parameters if what == "tokens" else unit) for gain in found]
            values = [gain.values for gain in found]
            drawn_band = Band(
                tuple(x), tuple(g.difference.mean for g in found), *(tuple(map(f, values)) for f in (min, max))
            )
            _draw_band(axes, x, drawn_band, arm.label, style(number))
        axes.axhline(0.0, color=INK, linewidth=1)
        axes.set_ylabel(f"less scratch's {LOSS}")
        if what == "tokens":
            axes.set_xlabel(f"tokens per parameter, of {comparison.tokens_per_param:.3g}")
        else:
            axes.set_xlabel(f"{named_unit}, the base's included")
            axes.set_title(budget, fontsize="small", loc="right")
        legend(axes)
    return made[0]


def scale_pairs(
    comparisons: Sequence[Comparison], ids: Mapping[Path, str], place: int, slug: str, caption: str
) -> Figure:
    """Validation loss before the first step (place 0) or after the last (-1), a row a comparison."""
    arms = list(dict.fromkeys(arm.label for c in comparisons for arm in c.arms))
    series: dict[str, list[tuple[int, list[float], str]]] = {}
    for row, c in enumerate(comparisons):
        groups = [("from scratch (muP)", c.scratch), *((a.label, [p.warmstart for p in a.pairs]) for a in c.arms)]
        for label, runs in groups:
            values = [run.val_losses[place][1] for run in runs]
            series.setdefault(label, []).append((row, values, ", ".join(ids[run.out_dir] for run in runs)))
    step = 0.7 / (len(arms) + 1)
    rows = len(comparisons) * max(len(arms) + 1, 4)
    with drawn(slug, caption, height=1.3 + 0.2 * (len(series) + rows)) as (axes, made):
        for label, points in series.items():
            number = arms.index(label) if label in arms else -1
            look = style(number)
            for i, (row, values, _) in enumerate(points):
                at, mean = row + (number + 1 - len(arms) / 2) * step, sum(values) / len(values)
                named = f"{label}: {', '.join(names for *_, names in points)}" if i == 0 else None
                axes.plot([min(values), max(values)], [at] * 2, color=look["color"], linewidth=1.5)
                axes.plot(
                    [mean], [at], color=look["color"], marker=look["marker"], linestyle="", markersize=6, label=named
                )
        axes.set_yticks(range(len(comparisons)), [_wrapped(c.title) for c in comparisons], fontsize="small")
        axes.set_ylim(len(comparisons) - 0.4, -0.6)
        axes.set_xlabel(f"validation {LOSS}")
        axes.grid(axis="y", visible=False)
        legend(axes)
    return made[0]


def _wrapped(title: str) -> str:
    return title.replace(" → ", "\n→ ").replace(", ", "\n").replace("tokens per parameter", "tokens/param")


def lineage_curves(
    chain: Chain,
    ids: Mapping[Path, str],
    what: str,
    slug: str,
    caption: str,
) -> Figure:
    """Loss, or tokens, of a chain against the compute of its lineage; a growth is a dotted line.

    Args:
        chain: Its stages, and the last scale from scratch.
        ids: What runs are called, by folder.
        what: ``loss`` or ``tokens``.
        slug: Name of its files.
        caption: For the page.
    """
    from matplotlib.ticker import EngFormatter

    stages, scratch, before = chain.stages, chain.scratch, chain.before or 0.0
    runs = [*stages, *([scratch] if scratch else [])]
    with drawn(slug, caption, height=3.4 + 0.2 * len(runs)) as (axes, made):
        spent = [run.tokens * run.flops_per_token for run in runs]
        unit, named_unit = _flops_unit(max(before + sum(spent[: len(stages)]), spent[-1]))
        flops, tokens = before / unit, float(sum(a.tokens or 0 for a in stages[0].record.lineage))
        for number, run in enumerate(runs):
            if run is scratch:
                flops, tokens, look = 0.0, 0.0, style(-1)
            else:
                look = style(number)
                if number:
                    axes.axvline(flops, color=GREY, linestyle=":", linewidth=1)
            named = "from scratch" if run is scratch else "grown" if run.warmstarted else "base"
            label = f"{size(run)}, {named}, {run.tokens_per_param:.3g} tokens/param: {ids[run.out_dir]}"
            scale = run.flops_per_token / unit
            if what == "loss":
                smooth = smoothed(run.losses, SMOOTHING * run.tokens)
                axes.plot([flops + t * scale for t, _ in smooth], [loss for _, loss in smooth], alpha=0.4, linewidth=1,
                          color=look["color"], linestyle=look["linestyle"])  # fmt: skip
                axes.plot([flops + t * scale for t, _ in run.val_losses], [loss for _, loss in run.val_losses],
                          markersize=4, label=label, **look)  # fmt: skip
            else:
                ends = [flops, flops + run.tokens * scale]
                axes.plot(ends, [tokens, tokens + run.tokens], markersize=4, label=label, **look)
            flops, tokens = flops + run.tokens * scale, tokens + run.tokens
        axes.set(xlabel=named_unit + ", of the lineage", ylabel=LOSS if what == "loss" else "tokens of the lineage")
        if what == "tokens":
            axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
        legend(axes)
    return made[0]
