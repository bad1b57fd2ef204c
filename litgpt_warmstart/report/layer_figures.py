"""Figures of sizes by layer: norms at moments and over training, coordinate checks."""

from collections.abc import Mapping, Sequence
from typing import Any

from litgpt_warmstart.report.old_figures import Figure, drawn, legend, style


def layer_sizes(moments: Mapping[str, Mapping[str, float]], unit: str, slug: str, caption: str, title: str) -> Figure:
    """Sizes of layers at several moments, a row a layer (figure 10 of arXiv 2411.07340).

    Args:
        moments: Moment -> layer -> size, in the order to show.
        unit: What a size is.
        slug: Name of its files.
        caption: For the page.
        title: Tells tokens per parameter.
    """
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    layers = list(dict.fromkeys(layer for sizes in moments.values() for layer in sizes))
    with drawn(slug, caption, height=1.6 + 0.17 * len(layers) + 0.2 * len(moments)) as (axes, made):
        for number, (moment, sizes) in enumerate(moments.items()):
            look = {k: v for k, v in style(number - 1).items() if k != "linestyle"}
            known = [layer for layer in layers if sizes.get(layer, 0) > 0]
            offset = 0.18 * (number - (len(moments) - 1) / 2)  # equal sizes would hide each other
            rows = [layers.index(layer) + offset for layer in known]
            axes.plot([sizes[layer] for layer in known], rows, linestyle="", markersize=4, label=moment, **look)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_yticks(range(len(layers)), layers, fontsize="small")
        axes.invert_yaxis()
        axes.set_xlabel(unit)
        axes.set_title(title, fontsize="small", loc="right")
        legend(axes)
    return made[0]


def norm_curves(
    series: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    scratch_first: bool,
    unit: str,
    slug: str,
    caption: str,
) -> Figure:
    """Sizes of layers over training, a panel a layer (figure 8 of arXiv 2411.07340).

    Args:
        series: Run -> layer -> (tokens per parameter, size).
        scratch_first: Whether the first of them is the run from scratch.
        unit: What a size is.
        slug: Name of its files.
        caption: For the page.
    """
    layers = list(dict.fromkeys(layer for sizes in series.values() for layer in sizes))
    rows = -(-len(layers) // 2)
    with drawn(slug, caption, height=0.8 + 1.4 * rows + 0.2 * len(series), rows=rows, columns=2,
               sharey=False) as (grid, made):  # fmt: skip
        panels = list(grid.flat)
        for number, (label, sizes) in enumerate(series.items()):
            look = {k: v for k, v in style(number - scratch_first).items() if k != "marker"}
            for panel, layer in zip(panels, layers, strict=False):
                x, y = zip(*sizes[layer], strict=True)
                panel.plot(x, y, linewidth=1.3, label=label, **look)
        for number, (panel, layer) in enumerate(zip(panels, layers, strict=False)):
            panel.set_title(layer, fontsize="small")
            if number + 2 >= len(layers):  # nothing below it
                panel.set_xlabel("tokens per parameter")
                panel.tick_params(labelbottom=True)
        for panel in panels[len(layers) :]:
            panel.set_visible(False)
        panels[0].figure.supylabel(unit, fontsize="medium")
        legend(panels[0])
    return made[0]


def coordinates(sizes: Mapping[str, Mapping[str, Mapping[int, float]]], title: str, slug: str, caption: str) -> Figure:
    """Mean |activation| against width, a panel an arm (figures 3 and 7 of arXiv 2411.07340).

    Args:
        sizes: Arm -> layer -> width -> size, the mean over seeds.
        title: Tells what was run.
        slug: Name of its files.
        caption: For the page.
    """
    from matplotlib.ticker import NullFormatter, NullLocator, ScalarFormatter

    columns = 2 if len(sizes) > 1 else 1
    rows = -(-len(sizes) // columns)
    kinds = {"embedding": -1, "attn": 0, "mlp": 1, "block": 2, "ln_f": 3, "lm_head": 4}
    with drawn(slug, caption, height=1.4 + 2.0 * rows, rows=rows, columns=columns) as (grid, made):
        panels = list(grid.flat) if hasattr(grid, "flat") else [grid]
        for number, (panel, (arm, layers)) in enumerate(zip(panels, sizes.items(), strict=False)):
            told = set()
            for layer, by_width in layers.items():
                kind = next((k for k in ("attn", "mlp") if layer.endswith(k)), layer.partition(" ")[0])
                label = {"attn": "attention", "mlp": "MLP", "block": "block's output"}.get(kind, kind)
                widths = sorted(by_width)
                panel.plot(widths, [by_width[w] for w in widths], markersize=3, linewidth=1,
                           label=None if kind in told else label, **style(kinds.get(kind, 5)))  # fmt: skip
                told.add(kind)
            panel.set(xscale="log", yscale="log")
            panel.set_title(arm, fontsize="small")
            panel.xaxis.set_major_locator(_at(sorted({w for by in layers.values() for w in by})))
            panel.xaxis.set_major_formatter(ScalarFormatter())
            panel.xaxis.set_minor_locator(NullLocator())
            panel.yaxis.set_minor_formatter(NullFormatter())
            if number % columns == 0:
                panel.set_ylabel("mean |activation|")
            if number + columns >= len(sizes):  # nothing below it
                panel.set_xlabel("width (n_embd)")
                panel.tick_params(labelbottom=True)
        for panel in panels[len(sizes) :]:
            panel.set_visible(False)
        panels[0].figure.suptitle(title, fontsize="small", wrap=True)
        legend(panels[0], columns=3)
    return made[0]


def _at(places: Sequence[float]) -> Any:
    from matplotlib.ticker import FixedLocator

    return FixedLocator(places)
