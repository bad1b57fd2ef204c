"""Slopes of activations over width, and what they say.

L1 ~ n_embd^slope. In the limit of width the slopes are 0 under muP (below 0 where a layer only averages: logits start
as n_embd^-1/2, and a base's weights, padded with zeros, thin out) and 1 under SP, where Adam moves every entry of a
matrix alike and n_embd of them add up. Exponents come in halves, so a failure has a slope of 1/2 or more, while noise
and finite width make of 0 what was at most 0.22 in muP and warmstarts (5 seeds, widths 48 to 384, three updates at lr
0.01; 0.34 with 3 seeds to 192), in attention, where SP's blocks and logits had 0.8 to 1.8. So above 0.4 a layer grows.
"""

import math
from collections.abc import Sequence
from statistics import linear_regression
from typing import Any, Literal

import numpy as np
import pandas

from litgpt_warmstart.method.parametrization import PARAMETRIZATIONS
from litgpt_warmstart.report.layers import layer_name

MAX_SLOPE = 0.4
"""A slope above it is growth."""
Over = Literal["width", "depth"]
LIMITS = {
    "width": "wide models have 0 or less under muP, 1 under SP",
    "depth": "deep models have 0 or less under CompleteP",
}
"""What a slope is in the limit."""
WAY = ["parametrization", "shrink"]
"""Columns that tell a way to start training."""


def fit_slopes(coordinates: pandas.DataFrame) -> pandas.DataFrame:
    """How each layer's L1 goes with size at the last step, L1 ~ size^slope, in the order of measuring.

    Returns:
        A row for each layer and way: the mean over seeds of the least-squares slope of log L1 against log size, NaN
        where an L1 is not finite; its standard error, NaN for one seed; and the verdict.
    """
    found, over = [], grown_over(coordinates)
    layers: Any = at_the_end(coordinates).groupby(["module", *WAY], sort=False, dropna=False)
    for (module, *way), rows in layers:
        slopes = pandas.Series([fit_slope(seed[over], seed["l1"]) for _, seed in rows.groupby("seed", sort=False)])
        slope, error = slopes.mean(skipna=False), slopes.sem(skipna=False)
        found.append((module, *way, slope, error, verdict(slope)))
    return pandas.DataFrame(found, columns=["module", *WAY, "slope", "standard_error", "verdict"])


def grown_over(coordinates: pandas.DataFrame) -> Over:
    """What grows over the models of a check, by the name of its column."""
    return "depth" if "depth" in coordinates else "width"


def fit_slope(sizes: Sequence[float] | pandas.Series, values: Sequence[float] | pandas.Series) -> float:
    """Least-squares slope of log value against log width: 0 for a layer that is off (0 at every size), NaN where a
    value is not finite or a layer is off at some sizes only."""
    if not any(values):
        return 0.0
    if not all(0 < value < math.inf for value in values):
        return math.nan
    return linear_regression(np.log(sizes), np.log(values)).slope


def verdict(slope: float) -> str:
    """Whether activations with this slope grow with width; shrinking is no failure."""
    return "diverges" if math.isnan(slope) else "grows" if slope > MAX_SLOPE else "ok"


def worst(verdicts: Sequence[str] | pandas.Series) -> str:
    """The verdict on a way: that on its worst layer."""
    return next(verdict for verdict in ("diverges", "grows", "ok") if verdict in set(verdicts))


def at_the_end(coordinates: Any) -> pandas.DataFrame:
    """The rows of the last step."""
    return coordinates[coordinates["t"] == coordinates["t"].max()]


def way_name(parametrization: str, shrink: float | str) -> str:
    """A way to start training in a few words, for tables and pictures."""
    table = PARAMETRIZATIONS.get(parametrization)
    return table.label if table else f"shrink {float(shrink):g}"


def named(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Rows of coordinates or slopes with the names of their layer and their way, as tables and pictures have them."""
    layers = [layer_name(module, "activation") or module for module in rows["module"]]
    return rows.assign(layer=layers, way=[way_name(*way) for way in zip(*(rows[name] for name in WAY), strict=True)])


def table(slopes: pandas.DataFrame) -> pandas.DataFrame:
    """Slopes as text, a row for each layer and a column for each way, with a star where activations grow."""
    rows = named(slopes)
    stars = rows["verdict"].map(lambda verdict: " " if verdict == "ok" else "*")
    rows["cell"] = rows["slope"].astype(float).map("{:+.2f}".format) + stars
    cells = rows.pivot(index="layer", columns="way", values="cell")
    cells = cells.reindex(index=rows["layer"].unique(), columns=rows["way"].unique())
    cells.loc["verdict"] = rows.groupby("way")["verdict"].agg(worst) + " "
    return cells.rename_axis(columns=None).reset_index()
