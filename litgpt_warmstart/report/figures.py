"""All figures of the project: for the page, legible light and dark and on a phone, and as PNG files of commands.

Each function takes plain numbers and returns a :class:`Figure`. The run from scratch is drawn in the text's colour,
warmstarts in the colours of Okabe and Ito, which the colour-blind tell apart.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO, StringIO
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd

INK = "#010203"
"""Stands for the page's text colour, which is ``currentColor`` in an SVG element."""
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#808080"
LINES, MARKERS = ("-", "--", "-.", ":"), ("s", "^", "D", "v", "P", "X", "*")
WIDTH = 4.6
"""Inches. On a phone, where a figure is about 340 CSS pixels wide, 10 pt are shown as 7.7 pt."""
LOSS = "validation loss (nats per token)"

_STYLE: dict[Any, Any] = {
    "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "small", "legend.frameon": False,
    "legend.fontsize": "small", "svg.fonttype": "none", "svg.hashsalt": "litgpt-warmstart", "grid.color": GREY,
    "grid.alpha": 0.3, "axes.grid": True, "axes.axisbelow": True, "font.size": 10, "figure.dpi": 72,
    "lines.markersize": 4, "lines.linewidth": 1.6,
}  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A figure of the page, and the same as a PNG file."""

    name: str
    caption: str
    svg: str
    """An element with ids of its own, whose text and axes have the page's text colour."""
    png: bytes
    points: tuple[tuple[float, float, str], ...] = ()
    """Places in the SVG (its own x and y), and what is told of them under the pointer."""


@dataclass
class Drawing:
    """What is being drawn: panels, and words for places of them."""

    figure: Any
    panels: list[Any]
    _told: list[tuple[Any, float, float, str]] = field(default_factory=list)

    def tell(self, axes: Any, xs: Sequence[float], ys: Sequence[float], words: Sequence[str]) -> None:
        """Have words appear under the pointer at places of a panel."""
        self._told += [(axes, float(x), float(y), w) for x, y, w in zip(xs, ys, words, strict=True)]

    def legend(self, columns: int = 1) -> None:
        """List below the panels what the first of them shows."""
        handles, labels = self.panels[0].get_legend_handles_labels()
        labels = ["\n".join(wrap(label, 62)) for label in labels]
        self.figure.legend(handles, labels, loc="outside lower center", ncols=columns)

    def finished(self, name: str, caption: str) -> Figure:
        """The figure, drawn."""
        text, png = StringIO(), BytesIO()
        self.figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        height = self.figure.get_figheight() * 72
        places = [(axes.transData.transform((x, y)), words) for axes, x, y, words in self._told]
        points = tuple((round(x, 1), round(height - y, 1), words) for (x, y), words in places if np.isfinite(x + y))
        self.figure.savefig(png, format="png", dpi=200, facecolor="white")
        return Figure(name, caption, as_element(text.getvalue(), name), png.getvalue(), points)


@contextmanager
def drawing(height: float, rows: int = 1, columns: int = 1, width: float = WIDTH, **shared: Any) -> Iterator[Drawing]:
    """A figure to draw on.

    Args:
        height: Inches.
        rows: Of panels.
        columns: Of panels.
        width: Inches.
        shared: ``sharex``, ``sharey``, ``height_ratios`` of :func:`matplotlib.pyplot.subplots`.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with matplotlib.rc_context(_STYLE):
        figure, grid = plt.subplots(
            rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **shared
        )
        try:
            yield Drawing(figure, list(grid.flat))
        finally:
            plt.close(figure)


def as_element(svg: str, name: str) -> str:
    """An SVG file's text as an element of a page: its ids are made its own; its ink and its blue, the page's.

    Args:
        svg: As matplotlib writes it.
        name: Goes before its ids.
    """
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(COLORS[0].lower(), "var(--blue)")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), svg)  # a hundredth of a point
    return re.sub(r' (width|height)="[^"]*pt"', "", svg, count=2)


def style(number: int) -> dict[str, Any]:
    """Colour, line and marker of the warmstart with this number; the run from scratch has -1."""
    if number < 0:
        return dict(color=INK, linestyle="-", marker="o")
    return dict(color=COLORS[number % 6], linestyle=LINES[(number + 1) % 4], marker=MARKERS[number % 7])


def flops_unit(greatest: float) -> tuple[float, str]:
    """A power of ten to count Hoffmann FLOPs in, and its name."""
    exponent = math.floor(math.log10(greatest)) if greatest > 0 else 0
    raised = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return 10.0**exponent, f"10{raised} Hoffmann FLOPs"


def speed_ups(name: str, caption: str, rows: pd.DataFrame) -> Figure:
    """Speed-ups with their intervals, a line a warmstart, beside the most that growth can give.

    Args:
        name: Of the figure.
        caption: For the page.
        rows: A row a warmstart, with ``comparison``, ``warmstart``, and ``speed_up_with_base`` and ``speed_up`` with
            their ``_low``, ``_high`` and ``_limit``; what is not finite is not drawn.
    """
    kinds = (("speed_up_with_base", "the base's compute counted", -0.1), ("speed_up", "its own compute", 0.1))
    titles = ["\n".join(wrap(title, 56)) for title in rows["comparison"]]
    heights = np.cumsum(
        [0.9 + (0.55 + 0.4 * title.count("\n")) * (title not in titles[:n]) for n, title in enumerate(titles)]
    )
    with drawing(height=1.6 + 0.42 * heights[-1]) as d:
        (axes,) = d.panels
        axes.axvline(1, color=INK, linewidth=1)
        for number, (at, title, row) in enumerate(zip(heights, titles, rows.to_dict("records"), strict=True)):
            if title not in titles[:number]:
                _beside(axes, at - 0.75, title, fontweight="bold")
            _beside(axes, at - 0.35, row["warmstart"])
            for (kind, label, offset), color in zip(kinds, COLORS, strict=False):
                value, low, high, limit = (row[kind + end] for end in ("", "_low", "_high", "_limit"))
                if math.isfinite(value):
                    ends = [low, min(high, 2 * value)] if math.isfinite(low) else [value, value]
                    axes.plot(ends, [at + offset] * 2, color=color)
                    axes.plot([value], [at + offset], color=color, marker="os"[offset > 0], linestyle="")
                    d.tell(axes, [value], [at + offset], [f"{row['warmstart']}, {label}: {value:.2f}"])
                if math.isfinite(limit):
                    axes.plot([limit], [at + offset], color=color, marker="|", markersize=11, linestyle="")
                    d.tell(axes, [limit], [at + offset], [f"the most that growth can give, {label}: {limit:.2f}"])
        for (_, label, offset), color in zip(kinds, COLORS, strict=False):
            axes.plot([], [], color=color, marker="os"[offset > 0], label=label)
        axes.plot([], [], color=GREY, marker="|", markersize=11, linestyle="", label="the most that growth can give")
        axes.set_xscale("log")
        _plain_log(axes.xaxis)
        axes.set_yticks([])
        axes.set_ylim(heights[-1] + 0.4, heights[0] - 1.2 - 0.4 * titles[0].count("\n"))
        axes.set_xlabel("speed-up in Hoffmann FLOPs (above 1 the warmstart is faster)")
        d.legend()
        return d.finished(name, caption)


def _beside(axes: Any, y: float, words: str, **look: Any) -> None:
    """Write words at the left end of a panel, which does not become narrower by them."""
    place = axes.annotate(words, (0, y), xycoords=("axes fraction", "data"), fontsize="small", va="bottom", **look)
    place.set_in_layout(False)


def _plain_log(axis: Any) -> None:
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


@dataclass(frozen=True)
class Line:
    """A line of a figure of losses: runs that differ in their seeds."""

    label: str
    look: dict[str, Any]
    val_losses: pd.DataFrame
    """``mean``, ``low`` and ``high`` over seeds, by place."""
    losses: pd.Series | None = None
    """Smoothed training losses by place."""
    differences: pd.DataFrame | None = None
    """Validation losses less scratch's, as ``val_losses``."""
    starts: tuple[float, ...] = ()
    """Places at which it was grown."""


def loss_curves(
    name: str, caption: str, lines: Sequence[Line], unit: str, scale: float = 1.0, last: float | None = None
) -> Figure:
    """Losses over tokens or compute and, below, differences from scratch; the axes end where validations are.

    Args:
        name: Of the figure.
        caption: For the page.
        lines: What to draw; the training losses faint.
        unit: Of places, after they are divided by ``scale``.
        scale: See there.
        last: The run from scratch's last loss, a dotted line.
    """
    below = any(line.differences is not None for line in lines)
    shape: dict[str, Any] = dict(rows=2, height_ratios=(3, 2), sharex=True) if below else {}
    with drawing(height=(5.0 if below else 3.4) + 0.2 * len(lines), **shape) as d:
        top, bottom = d.panels[0], d.panels[-1]
        for line in lines:
            look = {key: line.look[key] for key in ("color", "linestyle")}
            if line.losses is not None:
                top.plot(line.losses.index / scale, line.losses, linewidth=1, alpha=0.4, **look)
            for place in line.starts:
                top.axvline(place / scale, color=line.look["color"], linestyle=":", linewidth=1)
            _draw_band(d, top, line, line.val_losses, scale, unit)
            if line.differences is not None:
                _draw_band(d, bottom, line, line.differences, scale, unit, "+")
        if last is not None:
            top.axhline(last, color=INK, linestyle=":", linewidth=1)
        if bounds := _bounds([line.val_losses for line in lines]):
            top.set_ylim(*bounds)
        top.set_ylabel(LOSS)
        if below:
            bottom.axhline(0.0, color=INK, linewidth=1)
            bottom.set_ylabel("less scratch's")
        bottom.set_xlabel(unit)
        bottom.set_xlim(left=0)
        d.legend()
        return d.finished(name, caption)


def _draw_band(d: Drawing, axes: Any, line: Line, found: pd.DataFrame, scale: float, unit: str, sign: str = "") -> None:
    places = np.asarray(found.index, dtype=float) / scale
    axes.plot(places, found["mean"], label=line.label, markevery=max(1, len(places) // 12), **line.look)
    if not found["low"].equals(found["high"]):
        axes.fill_between(places, found["low"], found["high"], color=line.look["color"], alpha=0.2, linewidth=0)
    words = [f"{line.label}: {loss:{sign}.4f} at {x:.3g} {unit}" for x, loss in zip(places, found["mean"], strict=True)]
    d.tell(axes, places.tolist(), found["mean"].tolist(), words)


def _bounds(bands: Sequence[pd.DataFrame]) -> tuple[float, float] | None:
    """Limits of a loss axis: all validations but a curve's first where it has others, and a little room."""
    shown = [found.iloc[1:] if len(found) > 2 else found for found in bands if len(found)]
    if not shown:
        return None
    low = min(float(loss) for found in shown for loss in found["low"])
    high = max(float(loss) for found in shown for loss in found["high"])
    room = 0.06 * (high - low) or 0.1
    return (low - room, high + room) if math.isfinite(room) else None


def heat_map(name: str, caption: str, losses: pd.DataFrame, best: tuple[float, int], title: str) -> Figure:
    """Validation losses of a grid, the winner framed; a diverged cell is left blank.

    Args:
        name: Of the figure.
        caption: For the page.
        losses: Means over seeds, by learning rate and batch size; NaN where a seed diverged.
        best: Learning rate and batch size of the winner.
        title: Tells the model and its tokens.
    """
    losses = losses.sort_index(axis=0).sort_index(axis=1)
    values = losses.to_numpy(dtype=float)
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    y, x = losses.index.get_loc(best[0]), losses.columns.get_loc(best[1])
    with drawing(height=1.6 + 0.5 * len(losses)) as d:
        (axes,) = d.panels
        edges = [np.arange(count + 1) - 0.5 for count in reversed(values.shape)]
        mesh = axes.pcolormesh(*edges, np.ma.masked_invalid(values), cmap="viridis_r")
        for (row, column), loss in np.ndenumerate(values):
            color = GREY if np.isnan(loss) else "black" if loss < middle else "white"
            look = dict(color=color, fontweight="bold" if (row, column) == (y, x) else "normal", fontsize="small")
            axes.text(column, row, "diverged" if np.isnan(loss) else f"{loss:.3f}", ha="center", va="center", **look)
        frame = np.array([[-0.5, 0.5, 0.5, -0.5, -0.5], [-0.5, -0.5, 0.5, 0.5, -0.5]])
        axes.plot(x + frame[0], y + frame[1], color=COLORS[1], linewidth=2.5, clip_on=False)
        axes.set_xticks(range(len(losses.columns)), [str(batch) for batch in losses.columns])
        axes.set_yticks(range(len(losses)), [f"{lr:g}" for lr in losses.index])
        axes.set(xlabel="batch (sequences per step)", ylabel="learning rate", title=title)
        axes.grid(False)
        d.figure.colorbar(mesh, ax=axes, label=LOSS)
        return d.finished(name, caption)


def dots(name: str, caption: str, arms: Mapping[str, Mapping[str, Sequence[float]]], title: str) -> Figure:
    """Values of several arms, a dot a seed and a line at their mean; arms that begin with "from scratch" in ink.

    Args:
        name: Of the figure.
        caption: For the page.
        arms: Label -> panel -> a value a seed.
        title: What all arms share.
    """
    headings = list(dict.fromkeys(heading for panels in arms.values() for heading in panels))
    with drawing(height=1.2 + 0.3 * len(arms), columns=len(headings), width=WIDTH * 1.5, sharey=True) as d:
        for axes, heading in zip(d.panels, headings, strict=True):
            for y, (label, panels) in enumerate(arms.items()):
                values = list(panels.get(heading, ()))
                color = INK if label.startswith("from scratch") else COLORS[0]
                axes.scatter(values, [y] * len(values), color=color, s=14, alpha=0.7)
                if values:
                    axes.plot([np.mean(values)] * 2, [y - 0.3, y + 0.3], color=color)
                    d.tell(axes, [float(np.mean(values))], [y], [f"{label}: {np.mean(values):.4f}"])
            axes.set(xlabel=LOSS, title=heading)
        d.panels[0].set_yticks(range(len(arms)), list(arms), fontsize="small")
        d.panels[0].invert_yaxis()
        d.figure.suptitle(f"{title}; a dot is a seed, a line their mean", fontsize="small")
        return d.finished(name, caption)


def layer_sizes(name: str, caption: str, sizes: Mapping[str, pd.DataFrame]) -> Figure:
    """Sizes of layers at several moments, a row a layer (figure 10 of the paper).

    Args:
        name: Of the figure.
        caption: For the page.
        sizes: Heading of a panel -> root mean squares, a row a layer and a column a moment.
    """
    layers = max(len(frame) for frame in sizes.values())
    shape: dict[str, Any] = dict(height=1.4 + 0.24 * layers * len(sizes) + 0.2 * len(sizes), rows=len(sizes))
    with drawing(**shape) as d:
        for axes, (heading, frame) in zip(d.panels, sizes.items(), strict=True):
            for number, (moment, values) in enumerate(frame.items()):
                offset = 0.18 * (number - (len(frame.columns) - 1) / 2)  # equal sizes would hide each other
                shown = values.where(values > 0).dropna()
                rows = [list(frame.index).index(layer) + offset for layer in shown.index]
                look = style(number - 1) | {"linestyle": ""}
                axes.plot(shown, rows, label=moment, **look)
                d.tell(axes, shown.tolist(), rows, [f"{layer}, {moment}: {v:.3g}" for layer, v in shown.items()])
            axes.set_xscale("log")
            _plain_log(axes.xaxis)
            axes.set_yticks(range(len(frame)), list(frame.index), fontsize="small")
            axes.invert_yaxis()
            axes.set_xlabel(heading)
        d.legend()
        return d.finished(name, caption)


def panels(
    name: str, caption: str, series: Mapping[str, Mapping[str, pd.Series]], unit: str, place: str, log: bool = False
) -> Figure:
    """Lines over places, two panels a row: sizes over training or width (figures 3, 7 and 8 of the paper).

    Args:
        name: Of the figure.
        caption: For the page.
        series: Heading of a panel -> label -> values by place. A label has one look in all panels.
        unit: Of values.
        place: What places are.
        log: Whether both axes are logarithmic and share their scales.
    """
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter

    labels = list(dict.fromkeys(label for lines in series.values() for label in lines))
    columns = min(2, len(series))
    rows = -(-len(series) // columns)
    height = 0.9 + 1.5 * rows + 0.2 * (len(labels) if not log else -(-len(labels) // 3))
    with drawing(height=height, rows=rows, columns=columns, sharex=True, sharey=log) as d:
        shown: dict[str, Any] = {}
        for number, (axes, (heading, lines)) in enumerate(zip(d.panels, series.items(), strict=False)):
            for label, values in lines.items():
                look = style(labels.index(label) - 1) | ({} if log else {"marker": ""})
                (line,) = axes.plot(values.index, values, markersize=3, linewidth=1.2, **look)
                shown.setdefault(label, line)
                words = [f"{label}: {y:.3g} at {x:.3g} {place}" for x, y in values.items()]
                d.tell(axes, [float(x) for x in values.index], values.tolist(), words)
            axes.set_title(heading)
            if number + columns >= len(series):  # nothing below it
                axes.set_xlabel(place)
                axes.tick_params(labelbottom=True)
            if log:
                axes.set(xscale="log", yscale="log")
                axes.xaxis.set_major_locator(FixedLocator(sorted({x for line in lines.values() for x in line.index})))
                axes.xaxis.set_major_formatter(ScalarFormatter())
                axes.xaxis.set_minor_locator(NullLocator())
                axes.yaxis.set_minor_formatter(NullFormatter())
        for axes in d.panels[len(series) :]:
            axes.set_visible(False)
        d.figure.supylabel(unit, fontsize="medium")
        d.figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=3 if log else 1)
        return d.finished(name, caption)
