"""What is computed from curves: where one reaches a loss, its smoothed form, and means over seeds. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

Curve = Sequence[tuple[float, float]]
"""(tokens, loss), in the order of tokens."""

T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""0.975 quantiles of Student's t for 1 to 30 degrees of freedom: NIST/SEMATECH e-Handbook, table 1.3.6.7.2."""

SMOOTHING = 0.02
"""Standard deviation of the Gaussian that smooths training losses, as a share of the run's tokens."""


def tokens_to_reach(curve: Curve, loss: float) -> float | None:
    """Tokens at which a curve first falls to a loss, interpolated between its points; None if it never does."""
    if curve and curve[0][1] <= loss:
        return curve[0][0]
    for (tokens_a, loss_a), (tokens_b, loss_b) in zip(curve, curve[1:], strict=False):
        if loss_b <= loss:
            return tokens_a + (tokens_b - tokens_a) * (loss_a - loss) / (loss_a - loss_b)
    return None


def tokens_to_last_loss(curve: Curve) -> float:
    """Tokens at which a curve first falls to its own last loss, which it may have left again before its end.

    What another curve takes to that loss is held against this: of a curve beside itself both are the same. A curve that
    ended no lower than it began learned nothing to be held against; it has all of its tokens.
    """
    return tokens_to_reach(curve, curve[-1][1]) or curve[-1][0]


def smoothed(curve: Curve, width: float, points: int = 300) -> list[tuple[float, float]]:
    """Means under a Gaussian at up to ``points`` of a curve's own places.

    The weight of a point at distance d is exp(-d^2 / 2 width^2), over the sum of weights; near the ends the Gaussian
    has one side only. Beyond four widths it is left out.

    Args:
        curve: What to smooth.
        width: Standard deviation, in tokens.
        points: How many to return at most; the first and the last are among them.
    """
    if not curve:
        return []
    x, y = np.array(curve, dtype=np.float64).T
    places = np.unique(np.linspace(0, len(x) - 1, min(points, len(x))).round().astype(int))
    if width <= 0:
        return [(float(x[i]), float(y[i])) for i in places]
    found = []
    for i in places:
        first, last = np.searchsorted(x, x[i] - 4 * width, "left"), np.searchsorted(x, x[i] + 4 * width, "right")
        weights = np.exp(-0.5 * ((x[first:last] - x[i]) / width) ** 2)
        found.append((float(x[i]), float((weights * y[first:last]).sum() / weights.sum())))
    return found


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95% interval."""

    mean: float
    interval: tuple[float, float] | None
    """None of one seed."""
    seeds: int


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and 95% interval: mean ± t s / sqrt(n), s the standard deviation with n - 1, t for n - 1 degrees of freedom.

    Above 30 degrees of freedom t is that of 30, which makes the interval 4% too wide at most.

    Returns:
        None without values.
    """
    if not values:
        return None
    n, mean = len(values), fmean(values)
    if n == 1:
        return Estimate(mean, None, n)
    half_width = T_975[min(n - 1, len(T_975)) - 1] * stdev(values) / math.sqrt(n)
    return Estimate(mean, (mean - half_width, mean + half_width), n)


def speed_up(shares: Sequence[float]) -> Estimate | None:
    """How many times the compute from scratch is a warmstart's, up to the same loss; above 1 it saved some.

    The mean and the interval are those of the shares, inverted: a seed that was there before its first step has share
    0, whose inverse would leave no mean. A bound at or below 0 becomes infinite.

    Args:
        shares: The warmstart's compute over that from scratch, a seed each.

    Returns:
        None without shares.
    """
    found = estimate(shares)
    if found is None:
        return None
    low, high = found.interval or (0.0, 0.0)
    return Estimate(_inverse(found.mean), found.interval and (_inverse(high), _inverse(low)), found.seeds)


def _inverse(share: float) -> float:
    return 1 / share if share > 0 else math.inf


@dataclass(frozen=True)
class Band:
    """Several curves at the tokens that all of them have."""

    tokens: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    """The least of the curves at each place."""
    high: tuple[float, ...]


def band(curves: Sequence[Curve]) -> Band:
    """Mean, least and greatest over curves, at the tokens that they share."""
    by_tokens = [dict(curve) for curve in curves]
    shared = sorted(set.intersection(*(set(known) for known in by_tokens))) if by_tokens else []
    values = [[known[tokens] for known in by_tokens] for tokens in shared]
    return Band(tuple(shared), tuple(map(fmean, values)), tuple(map(min, values)), tuple(map(max, values)))
