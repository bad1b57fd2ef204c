"""What is computed from curves: where one reaches a loss, its smoothed form, means over seeds and their intervals.

A curve is a series of losses by tokens, or by compute, in their order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""0.975 quantiles of Student's t for 1 to 30 degrees of freedom: NIST/SEMATECH e-Handbook, table 1.3.6.7.2."""

SMOOTHING = 0.02
"""Standard deviation of the Gaussian that smooths training losses, as a share of the run's tokens."""


def tokens_to_reach(curve: pd.Series, loss: float) -> float:
    """Tokens at which a curve first falls to a loss, linear between its points; NaN if it never does."""
    tokens, losses = curve.index.to_numpy(dtype=float), curve.to_numpy(dtype=float)
    below = losses <= loss
    if not below.any():
        return math.nan
    first = int(below.argmax())
    between = [first, max(first - 1, 0)]  # np.interp wants rising losses
    return float(np.interp(loss, losses[between], tokens[between]))


def tokens_to_last_loss(curve: pd.Series) -> float:
    """Tokens at which a curve first falls to its own last loss, which it may have left again before its end.

    What another curve takes to that loss is held against this: of a curve beside itself both are the same. A curve that
    ended no lower than it began learned nothing to be held against; it has all of its tokens.
    """
    return tokens_to_reach(curve, float(curve.iloc[-1])) or float(curve.index[-1])


COPIES = -0.1
"""Nats per token: a model whose induction score is below has learned to copy. Before their sudden drop in loss models
of width 48 and 96 with 2 layers scored within 0.03 of 0, after it -0.2 to -0.6 (docs/LOG.md)."""


def drop_tokens(scores: pd.Series) -> float:
    """Tokens at which an induction score first falls to :data:`COPIES`, linear between the scores; NaN if it never is.

    Not to a share of its lowest, which a longer run would move.
    """
    return tokens_to_reach(scores, COPIES)


def placed(curve: Any, before: float, per_token: float) -> Any:
    """A curve, or a band, over another axis than tokens: ``before`` + tokens * ``per_token``."""
    return curve.set_axis(before + curve.index * per_token, axis=0)


def losses_at(curve: pd.Series, places: Sequence[float] | np.ndarray) -> np.ndarray:
    """A curve's losses at places, linear between its points; NaN beyond its ends."""
    at, losses = curve.index.to_numpy(dtype=float), curve.to_numpy(dtype=float)
    known = len(at) > 0 and not np.isnan(at).any()
    found = np.interp(places, at, losses, left=math.nan, right=math.nan) if known else [math.nan] * len(places)
    return np.asarray(found)


def smoothed(curve: pd.Series, width: float, points: int = 300) -> pd.Series:
    """Means under a Gaussian at up to ``points`` of a curve's own places, the first and the last among them.

    The weight of a point at distance d is exp(-d^2 / 2 width^2), over the sum of weights, ``width`` in tokens; near the
    ends the Gaussian has one side only.
    """
    x, y = curve.index.to_numpy(dtype=float), curve.to_numpy(dtype=float)
    places = np.unique(np.linspace(0, max(len(x) - 1, 0), min(points, len(x))).round().astype(int))
    if width <= 0 or not len(x):
        return curve.iloc[places]
    means = [np.average(y, weights=np.exp(-0.5 * ((x - x[place]) / width) ** 2)) for place in places]
    return pd.Series(means, index=curve.index[places])


def band(curves: Sequence[pd.Series]) -> pd.DataFrame:
    """``mean``, ``low`` and ``high`` (the least and the greatest) over curves, at the places that they share."""
    shared = pd.concat(curves, axis=1, join="inner") if len(curves) else pd.DataFrame()
    return pd.DataFrame({"mean": shared.mean(axis=1), "low": shared.min(axis=1), "high": shared.max(axis=1)})


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95% interval; NaN without seeds, no interval with one."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def has_interval(self) -> bool:
        return self.seeds > 1

    def words(self, digits: int = 2, sign: str = "") -> str:
        """The mean with its interval, or that there is none."""
        if not self.seeds:
            return "-"
        mean = "at once" if math.isinf(self.mean) else f"{self.mean:{sign}.{digits}f}"
        if not self.has_interval:
            return f"{mean} (no interval: one seed)"
        if math.isinf(self.low):
            return mean
        high = "and more" if math.isinf(self.high) else f"to {self.high:{sign}.{digits}f}"
        return f"{mean} ({self.low:{sign}.{digits}f} {high})"

    def columns(self, name: str) -> dict[str, float]:
        """The mean and its interval as a table has them: NAME, NAME_low and NAME_high."""
        return {name: self.mean, f"{name}_low": self.low, f"{name}_high": self.high}


def in_words(value: float, low: float = math.nan, high: float = math.nan, form: str = ".2f") -> str:
    """A number with its interval, where it has one; a dash for none."""
    words = [f"{each:{form}}" if math.isfinite(each) else "unbounded" for each in (value, low, high)]
    return "-" if math.isnan(value) else words[0] if math.isnan(low) else f"{words[0]} ({words[1]} to {words[2]})"


def estimate(values: Sequence[float] | pd.Series) -> Estimate:
    """Mean and 95% interval: mean ± t s / sqrt(n), s the standard deviation with n - 1, t for n - 1 degrees of freedom.

    Above 30 degrees of freedom t is that of 30, which makes the interval 4% too wide at most.
    """
    n = len(values)
    mean = float(np.mean(values)) if n else math.nan
    if n < 2:
        return Estimate(mean, math.nan, math.nan, n)
    half_width = T_975[min(n - 1, len(T_975)) - 1] * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Estimate(mean, mean - half_width, mean + half_width, n)


def difference(values: Sequence[float] | pd.Series, others: Sequence[float] | pd.Series) -> Estimate:
    """The mean of some seeds less that of others, with Welch's 95% interval of two independent samples.

    Degrees of freedom are Welch and Satterthwaite's, rounded down. The seeds of the two need not be the same; none is
    paired with another.
    """
    counts, sides = (len(values), len(others)), (values, others)
    mean = float(np.mean(values) - np.mean(others)) if all(counts) else math.nan
    if min(counts) < 2:
        return Estimate(mean, math.nan, math.nan, min(counts))
    parts = [float(np.var(side, ddof=1)) / len(side) for side in sides]
    spread = sum(part**2 / (n - 1) for part, n in zip(parts, counts, strict=True))
    freedom = max(1, int(sum(parts) ** 2 / spread)) if spread else sum(counts) - 2
    half_width = T_975[min(freedom, len(T_975)) - 1] * math.sqrt(sum(parts))
    return Estimate(mean, mean - half_width, mean + half_width, min(counts))


def speed_up(shares: Sequence[float] | pd.Series) -> Estimate:
    """How many times the compute from scratch is a warmstart's, up to the same loss; above 1 it saved some.

    The mean and the interval are those of the ``shares``, the warmstart's compute over that from scratch of each seed,
    inverted: a seed that was there before its first step has share 0, whose inverse would leave no mean. A bound at or
    below 0 becomes infinite.
    """
    found = estimate(shares)
    mean, high, low = (math.inf if share <= 0 else 1 / share for share in (found.mean, found.low, found.high))
    return Estimate(mean, low, high, found.seeds)
