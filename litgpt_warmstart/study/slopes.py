"""Slopes of activations over width, and what they say.

L1 ~ n_embd^slope. In the limit of width the slopes are 0 under muP (below 0 where a layer only averages: logits start
as n_embd^-1/2, and a base's weights, padded with zeros, thin out) and 1 under SP, where Adam moves every entry of a
matrix alike and n_embd of them add up. Exponents come in halves, so a failure has a slope of 1/2 or more, while noise
and finite width make of 0 what was at most 0.22 in muP and warmstarts (5 seeds, widths 48 to 384, three updates at lr
0.01; 0.34 with 3 seeds to 192), in attention, where SP's blocks and logits had 0.8 to 1.8. So above 0.4 a layer grows.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, linear_regression
from typing import Any

import numpy as np
import pandas

from litgpt_warmstart.report.layers import layer_name

MAX_SLOPE = 0.4
"""A slope above it is growth."""


def fit_slopes(coordinates: pandas.DataFrame) -> pandas.DataFrame:
    """How each layer's L1 goes with width at the last step, L1 ~ width^slope, in the order of measuring.

    Returns:
        A row for each layer and way: the mean over seeds of the least-squares slope of log L1 against log width, NaN
        where an L1 is not finite; its standard error, NaN for one seed; and the verdict.
    """
    curves: dict[tuple[str, str], dict[int, list[dict]]] = {}
    for row in at_the_end(coordinates):
        curves.setdefault((row["module"], way_of(row)), {}).setdefault(row["seed"], []).append(row)
    found = []
    for seeds in curves.values():
        slopes = [fit_slope([r["width"] for r in rows], [r["l1"] for r in rows]) for rows in seeds.values()]
        first = next(iter(seeds.values()))[0]
        row = {name: first[name] for name in ("module", "parametrization", "shrink")} | {"slope": fmean(slopes)}
        row["standard_error"] = float(np.std(slopes, ddof=1)) / len(slopes) ** 0.5 if len(slopes) > 1 else math.nan
        found.append(row | {"verdict": verdict(row["slope"])})
    return pandas.DataFrame(found)


def fit_slope(widths: Sequence[float], values: Sequence[float]) -> float:
    """Least-squares slope of log value against log width: 0 for a layer that is off (0 at every width), NaN where a
    value is not finite or a layer is off at some widths only."""
    if not any(values):
        return 0.0
    if not all(0 < value < math.inf for value in values):
        return math.nan
    return linear_regression(np.log(widths), np.log(values)).slope


def verdict(slope: float) -> str:
    """Whether activations with this slope grow with width; shrinking is no failure."""
    return "diverges" if math.isnan(slope) else "grows" if slope > MAX_SLOPE else "ok"


def worst(verdicts: Sequence[str]) -> str:
    """The verdict on a way: that on its worst layer."""
    return next(verdict for verdict in ("diverges", "grows", "ok") if verdict in set(verdicts))


def at_the_end(coordinates: pandas.DataFrame) -> list[dict]:
    """The rows of the last step."""
    rows = coordinates.to_dict("records")
    last = max(row["t"] for row in rows)
    return [row for row in rows if row["t"] == last]


def way_of(row: Mapping[Any, Any]) -> str:
    """The way of a row in a few words, for tables and pictures."""
    return {"sp": "SP", "mup": "muP"}.get(row["parametrization"]) or f"shrink {float(row['shrink']):g}"


def table(slopes: pandas.DataFrame) -> pandas.DataFrame:
    """Slopes as text, a row for each layer and a column for each way, with a star where activations grow."""
    cells: dict[str, dict[str, str]] = {}
    verdicts: dict[str, list[str]] = {}
    for row in slopes.to_dict("records"):
        star = " " if row["verdict"] == "ok" else "*"
        layer = layer_name(row["module"], "activation") or row["module"]
        cells.setdefault(layer, {})[way_of(row)] = f"{float(row['slope']):+.2f}{star}"
        verdicts.setdefault(way_of(row), []).append(row["verdict"])
    cells["verdict"] = {way: f"{worst(found)} " for way, found in verdicts.items()}
    return pandas.DataFrame({"layer": layer, **ways} for layer, ways in cells.items())
