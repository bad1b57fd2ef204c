"""All figures of the project: for the page, legible light and dark and on a phone, and as PNG files of commands.

Each function takes the name of a figure, its caption on the page and plain numbers, and returns a :class:`Figure`. The
run from scratch is drawn in the text's colour, warmstarts in those of Okabe and Ito, which the colour-blind tell apart.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO, StringIO
from textwrap import wrap
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

INK = "#010203"
"""Stands for the page's text colour, which is ``currentColor`` in an SVG element."""
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#808080"
LINES, MARKERS = ("-", "--", "-.", ":"), ("s", "^", "D", "v", "P", "X", "*")
STAR: dict[str, Any] = dict(marker="*", markersize=11, linestyle="")
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

    def plot(self, axes: Any, xs: Any, ys: Any, words: Sequence[str], **look: Any) -> None:
        """Draw a line or marks in a panel, and have words appear under the pointer at their places."""
        axes.plot(xs, ys, **look)
        self._told += [(axes, float(x), float(y), told) for x, y, told in zip(xs, ys, words, strict=True)]

    def curve(self, axes: Any, label: str, values: pd.Series, place: str, form: str, **look: Any) -> None:
        """Draw values by place in a panel; ``form`` is the format in which the pointer tells them."""
        words = [f"{label}: {value:{form}} at {x:.3g} {place}" for x, value in values.items()]
        self.plot(axes, values.index, values, words, label=label, **look)

    def legend(self, columns: int = 1) -> None:
        """List below the panels what they show, each label once."""
        found = [axes.get_legend_handles_labels() for axes in self.panels]
        shown = {"\n".join(wrap(label, 62)): handle for pair in found for handle, label in zip(*pair, strict=True)}
        self.figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=columns)

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
    """A figure to draw on, in inches; ``shared`` are other arguments of :meth:`matplotlib.figure.Figure.subplots`."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(_STYLE):
        figure = Canvas(figsize=(width, height), layout="constrained")
        yield Drawing(figure, list(figure.subplots(rows, columns, squeeze=False, **shared).flat))


def as_element(svg: str, name: str) -> str:
    """An SVG file's text as an element of a page: a name goes before its ids; its ink and its blue are the page's."""
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


def speed_ups(name: str, caption: str, rows: pd.DataFrame) -> Figure:
    """Speed-ups with their intervals, a line a warmstart, beside the most that growth can give.

    A row has ``comparison``, ``warmstart``, and ``speed_up_with_base`` and ``speed_up`` with their ``_low``, ``_high``
    and ``_limit``; what is not finite is not drawn.
    """
    kinds = (("speed_up_with_base", "the base's compute counted", -0.1), ("speed_up", "its own compute", 0.1))
    titles = rows["comparison"].map(lambda title: "\n".join(wrap(title, 56)))
    first, lines = ~titles.duplicated(), titles.str.count("\n")
    heights = (0.9 + first * (0.55 + 0.4 * lines)).cumsum().to_numpy()
    limits = dict(marker="|", markersize=11, linestyle="")
    with drawing(height=1.6 + 0.42 * heights[-1]) as d:
        (axes,) = d.panels
        axes.vlines([1] * len(rows), heights - 0.25, heights + 0.3, color=INK, linewidth=1)
        axes.spines["left"].set_visible(False)
        for at, label in zip(heights, rows["warmstart"], strict=True):
            _beside(axes, at - 0.35, label)
        for at, title in zip(heights[first], titles[first], strict=True):
            _beside(axes, at - 0.75, title, fontweight="bold")
        for (kind, told, offset), color in zip(kinds, COLORS, strict=False):
            marker = "os"[offset > 0]
            values, limit = (rows[column].where(np.isfinite(rows[column])) for column in (kind, f"{kind}_limit"))
            high = np.minimum(rows[f"{kind}_high"], 2 * values)
            axes.hlines(heights + offset, rows[f"{kind}_low"], high, color=color)
            words = [f"{label}, {told}: {value:.2f}" for label, value in zip(rows["warmstart"], values, strict=True)]
            d.plot(axes, values, heights + offset, words, color=color, marker=marker, linestyle="")
            words = [f"the most that growth can give, {told}: {value:.2f}" for value in limit]
            d.plot(axes, limit, heights + offset, words, color=color, **limits)
            axes.plot([], [], color=color, marker=marker, label=told)
        axes.plot([], [], color=GREY, label="the most that growth can give", **limits)
        _plain_log(axes)
        axes.set_yticks([])
        axes.set_ylim(heights[-1] + 0.4, heights[0] - 1.2 - 0.4 * lines.iloc[0])
        axes.set_xlabel("speed-up in Hoffmann FLOPs (above 1 the warmstart is faster)")
        d.legend()
        return d.finished(name, caption)


def _beside(axes: Any, y: float, words: str, **look: Any) -> None:
    """Write words at the left end of a panel, which does not become narrower by them."""
    place = axes.annotate(words, (0, y), xycoords=("axes fraction", "data"), fontsize="small", va="bottom", **look)
    place.set_in_layout(False)


def _plain_log(axes: Any) -> None:
    """Make places of a panel, which has been drawn, logarithmic, with plain numbers below it."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 5 * low else MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())


@dataclass(frozen=True)
class Line:
    """A line of a figure of losses: runs that differ in their seeds."""

    label: str
    look: dict[str, Any]
    val_losses: pd.DataFrame
    """``mean``, ``low`` and ``high`` over seeds, by place."""
    losses: pd.Series
    """Smoothed training losses by place."""
    differences: pd.DataFrame | None = None
    """Validation losses less scratch's, as ``val_losses``."""
    starts: tuple[float, ...] = ()
    """Places at which it was grown."""


def loss_curves(name: str, caption: str, lines: Sequence[Line], unit: str, last: float | None = None) -> Figure:
    """Losses over tokens or compute and, below, differences from scratch; the axes end where validations are.

    Training losses are faint. ``unit`` is that of places; ``last`` is the run from scratch's last loss, a dotted line.
    """
    below = any(line.differences is not None for line in lines)
    shape: dict[str, Any] = dict(rows=2, height_ratios=(3, 2), sharex=True) if below else {}
    with drawing(height=(5.0 if below else 3.4) + 0.2 * len(lines), **shape) as d:
        top, bottom = d.panels[0], d.panels[-1]
        for line in lines:
            look = {key: line.look[key] for key in ("color", "linestyle")}
            top.plot(line.losses.index, line.losses, linewidth=1, alpha=0.4, **look)
            for place in line.starts:
                top.axvline(place, color=line.look["color"], linestyle=":", linewidth=1)
            for axes, found, form in ((top, line.val_losses, ".4f"), (bottom, line.differences, "+.4f")):
                if found is not None:
                    marks = dict(markevery=max(1, len(found) // 12), **line.look)
                    d.curve(axes, line.label, pd.Series(found["mean"]), unit, form, **marks)
                    if not found["low"].equals(found["high"]):
                        shade = dict(color=line.look["color"], alpha=0.2, linewidth=0)
                        axes.fill_between(found.index, found["low"], found["high"], **shade)
        if last is not None:
            top.axhline(last, color=INK, linestyle=":", linewidth=1)
        if bounds := _bounds([line.val_losses for line in lines]):
            top.set_ylim(*bounds)
        top.set_ylabel(LOSS)
        if below:
            bottom.axhline(0.0, color=INK, linewidth=1)
            bottom.set_ylabel("less scratch's")
        bottom.ticklabel_format(axis="x", scilimits=(-3, 5), useMathText=True)
        bottom.set_xlabel(unit)
        bottom.set_xlim(left=0)
        d.legend()
        return d.finished(name, caption)


def _bounds(bands: Sequence[pd.DataFrame]) -> tuple[float, float] | None:
    """Limits of a loss axis: all validations but a curve's first where it has others, and a little room."""
    shown: Any = pd.concat([found.iloc[1:] if len(found) > 2 else found for found in bands])
    low, high = float(shown["low"].min()), float(shown["high"].max())
    room = 0.06 * (high - low) or 0.1
    return (low - room, high + room) if math.isfinite(room) else None


def law(name: str, caption: str, points: Any, curves: Mapping[str, pd.Series], warmstarts: Any) -> Figure:
    """Losses over tokens with what a law says of each model from scratch, and measured losses against the law's.

    ``points`` has ``model``, ``tokens``, ``val_loss`` and ``fitted``; ``curves`` model -> the law's losses by tokens;
    ``warmstarts`` has ``warmstart``, ``tokens`` and ``val_loss``, and may be empty.
    """
    from matplotlib.ticker import EngFormatter

    labels = list(dict.fromkeys(warmstarts["warmstart"]))
    with drawing(height=5.6 + 0.2 * (len(curves) + len(labels)), rows=2, height_ratios=(3, 2)) as d:
        top, bottom = d.panels
        for number, (model, curve) in enumerate(curves.items()):
            look: dict[str, Any] = dict(color=INK, marker=MARKERS[number % 7], linestyle="")
            top.plot(curve.index, curve, color=INK, linestyle=LINES[number % 4], linewidth=1)
            own = points[points["model"] == model]
            label = f"{model} from scratch"
            d.curve(top, label, own.set_index("tokens")["val_loss"], "tokens", ".4f", **look)
            d.curve(bottom, label, own.set_index("fitted")["val_loss"], "by the law", ".4f", **look)
        for number, label in enumerate(labels):
            losses = warmstarts[warmstarts["warmstart"] == label].set_index("tokens")["val_loss"]
            d.curve(top, label, losses, "tokens", ".4f", **style(number))
        ends = [points["fitted"].min(), points["fitted"].max()]
        bottom.plot(ends, ends, color=GREY, linewidth=1)
        _plain_log(top)
        top.xaxis.set_major_formatter(EngFormatter(sep=""))
        top.set(xlabel="tokens", ylabel=LOSS)
        bottom.set(xlabel="by the law", ylabel="measured")
        d.legend()
        return d.finished(name, caption)


def heat_map(name: str, caption: str, losses: pd.DataFrame, best: tuple[float, int], title: str) -> Figure:
    """Validation losses of a grid by learning rate and batch, ``best`` framed; a diverged cell, NaN, is left blank."""
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


class Scan(NamedTuple):
    """Losses over learning rates, infinite where diverged, and the optimum: the lowest of the rates if not told."""

    label: str
    mean: pd.Series
    std: pd.Series
    optimum: float
    val_loss: float
    is_told: bool


def scans(name: str, caption: str, panels: Mapping[str, Sequence[Scan]], place: str, within: float) -> Figure:
    """Losses over learning rates, a panel a parametrization, optima marked; figure 1 of arXiv 2203.03466.

    What lies within a factor of the first line's optimum is shaded, and so is a standard deviation about each line.
    """
    with drawing(height=3.4 + 0.2 * max(map(len, panels.values())), columns=len(panels), sharey=True) as d:
        for axes, (heading, scans) in zip(d.panels, panels.items(), strict=True):
            first = scans[0]
            if first.is_told:
                near = f"within a factor of {within:g} of {first.label}'s"
                axes.axvspan(first.optimum / within, first.optimum * within, color=GREY, alpha=0.15, lw=0, label=near)
            for number, scan in enumerate(scans):
                look, mean = style(number - 1), scan.mean.where(scan.mean < math.inf).dropna()
                d.curve(axes, scan.label, mean, "lr", ".4f", **look)
                low, high = mean - scan.std, mean + scan.std
                axes.fill_between(low.index, low, high, color=look["color"], alpha=0.2, linewidth=0)
                star = dict(color=look["color"], fillstyle="full" if scan.is_told else "none", **STAR)
                d.plot(axes, [scan.optimum], [scan.val_loss], [f"{scan.label}: lowest at {scan.optimum:.3g}"], **star)
            _plain_log(axes)
            axes.set(title=heading, xlabel=place)
        axes.plot([], [], color=GREY, label="optimum; hollow: the lowest loss, at an edge", **STAR)
        d.panels[0].set_ylabel(LOSS)
        d.legend()
        return d.finished(name, caption)


def dots(name: str, caption: str, arms: Mapping[str, Mapping[str, Sequence[float]]], title: str) -> Figure:
    """Values of several arms, a dot a seed and a line at their mean; arms that begin with "from scratch" in ink.

    ``arms`` has label -> panel -> a value a seed; ``title`` is what all arms share.
    """
    headings = list(dict.fromkeys(heading for panels in arms.values() for heading in panels))
    names = ["\n".join(wrap(label, 36)) for label in arms]
    height = 1.2 + 0.15 * len(arms) + 0.15 * len("\n".join(names).splitlines())
    with drawing(height=height, columns=len(headings), width=WIDTH * 1.5, sharey=True) as d:
        for axes, heading in zip(d.panels, headings, strict=True):
            for y, (label, panels) in enumerate(arms.items()):
                color = INK if label.startswith("from scratch") else COLORS[0]
                if values := list(panels.get(heading, ())):
                    axes.scatter(values, [y] * len(values), color=color, s=14, alpha=0.7)
                    axes.plot([np.mean(values)] * 2, [y - 0.3, y + 0.3], color=color)
            axes.set_title(heading)
        d.panels[0].set_yticks(range(len(arms)), names, fontsize="small")
        d.panels[0].invert_yaxis()
        d.figure.supxlabel(LOSS, fontsize="medium")
        d.figure.suptitle(f"{title}; a dot is a seed, a line their mean", fontsize="small")
        return d.finished(name, caption)


def layer_sizes(name: str, caption: str, sizes: Mapping[str, pd.DataFrame]) -> Figure:
    """Sizes of layers at several moments, a row a layer (figure 10 of the paper).

    ``sizes`` has heading of a panel -> root mean squares, a row a layer and a column a moment.
    """
    layers = max(len(frame) for frame in sizes.values())
    shape: dict[str, Any] = dict(height=1.4 + 0.24 * layers * len(sizes) + 0.2 * len(sizes), rows=len(sizes))
    with drawing(**shape) as d:
        for axes, (heading, frame) in zip(d.panels, sizes.items(), strict=True):
            for number, (moment, values) in enumerate(frame.items()):
                offset = 0.18 * (number - (len(frame.columns) - 1) / 2)  # equal sizes would hide each other
                words = [f"{layer}, {moment}: {value:.3g}" for layer, value in values.items()]
                look = style(number - 1) | {"linestyle": "", "label": moment}
                d.plot(axes, values.where(values > 0), np.arange(len(frame)) + offset, words, **look)
            _plain_log(axes)
            axes.set_yticks(range(len(frame)), list(frame.index), fontsize="small")
            axes.invert_yaxis()
            axes.set_xlabel(heading)
        d.legend()
        return d.finished(name, caption)


def panels(
    name: str, caption: str, series: Mapping[str, Mapping[str, pd.Series]], unit: str, place: str, log: bool = False
) -> Figure:
    """Lines over places, two panels a row: sizes over training or width (figures 3, 7 and 8 of the paper).

    ``series`` has heading of a panel -> label -> values by place, ``unit`` being theirs; a label has one look in all
    panels. With ``log`` both axes are logarithmic, and panels share their scales.
    """
    labels = list(dict.fromkeys(label for lines in series.values() for label in lines))
    columns, legend_columns = min(2, len(series)), 3 if log else 1
    rows = math.ceil(len(series) / columns)
    height = 0.9 + 1.5 * rows + 0.2 * math.ceil(len(labels) / legend_columns)
    with drawing(height=height, rows=rows, columns=columns, sharex=True, sharey=log) as d:
        for number, (axes, (heading, lines)) in enumerate(zip(d.panels, series.items(), strict=False)):
            for label, values in lines.items():
                look = style(labels.index(label) - 1) | ({} if log else {"marker": ""})
                d.curve(axes, label, values, place, ".3g", markersize=3, linewidth=1.2, **look)
            axes.set_title(heading)
            if number + columns >= len(series):  # nothing below it
                axes.set_xlabel(place)
                axes.tick_params(labelbottom=True)
            if log:
                places = sorted({x for line in lines.values() for x in line.index})
                axes.set(xscale="log", yscale="log")
                axes.set_xticks(places, [f"{x:g}" for x in places])
                axes.minorticks_off()
        for axes in d.panels[len(series) :]:
            axes.set_visible(False)
        d.figure.supylabel(unit, fontsize="medium")
        d.legend(legend_columns)
        return d.finished(name, caption)
