"""What is computed from curves, against numbers worked out by hand."""

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from litgpt_warmstart.report.statistics import (
    T_975,
    band,
    difference,
    drop_tokens,
    estimate,
    losses_at,
    smoothed,
    speed_up,
    tokens_to_last_loss,
    tokens_to_reach,
)


def series(*points: tuple[float, float]) -> pd.Series:
    return pd.Series([loss for _, loss in points], index=[float(place) for place, _ in points], dtype=float)


CURVE = series((0, 8.0), (100, 6.0), (200, 5.0), (300, 5.5), (400, 4.0))


@pytest.mark.parametrize(
    ("loss", "tokens"), [(7.0, 50), (6.0, 100), (5.25, 175), (4.5, 300 + 100 * 1.0 / 1.5), (9.0, 0), (3.9, math.nan)]
)
def test_tokens_to_reach_interpolates_the_first_crossing(loss, tokens):
    assert tokens_to_reach(CURVE, loss) == pytest.approx(tokens, nan_ok=True)


@pytest.mark.parametrize(
    ("scores", "tokens"),
    [
        (((0, 0.01), (100, 0.0), (200, -0.1), (300, -0.4), (400, -0.3)), 200),
        (((0, 0.0), (100, -0.05), (200, -0.25)), 125),
        (((0, -0.3), (100, -0.5)), 0),  # it copied from the beginning
        (((0, 0.02), (100, -0.09), (200, 0.0)), math.nan),
        (((0, math.nan), (100, 0.0), (200, -1.0)), 110),
        ((), math.nan),
    ],
)
def test_the_drop_is_where_a_score_first_tells_of_copying_and_nowhere_of_a_model_that_does_not(scores, tokens):
    assert drop_tokens(series(*scores)) == pytest.approx(tokens, nan_ok=True)


def test_a_curve_that_begins_below_a_loss_is_there_though_it_leaves_it_again_and_no_curve_is_nowhere():
    assert tokens_to_reach(series((0, 3.0), (10, 3.6), (20, 3.4)), 3.5) == 0
    assert math.isnan(tokens_to_reach(series(), 3.9))


@given(st.floats(4.0, 8.0))
def test_a_lower_loss_is_reached_no_earlier(loss):
    assert tokens_to_reach(CURVE, loss) <= tokens_to_reach(CURVE, 4.0)


@given(st.lists(st.floats(1, 9), min_size=2, max_size=9))
def test_a_curve_beside_itself_takes_as_long_to_its_last_loss_unless_it_began_there(losses):
    curve = series(*((10.0 * place, loss) for place, loss in enumerate(losses)))
    if losses[0] > losses[-1]:
        assert tokens_to_reach(curve, losses[-1]) / tokens_to_last_loss(curve) == 1
    else:
        assert tokens_to_last_loss(curve) == curve.index[-1]


def test_a_curve_that_was_at_its_last_loss_before_is_counted_to_there():
    assert tokens_to_last_loss(series((0, 9.0), (10, 5.0), (20, 4.4), (30, 4.8), (40, 4.6))) == pytest.approx(50 / 3)
    assert tokens_to_last_loss(series((0, 5.0), (10, 6.0))) == 10 and tokens_to_last_loss(series((7, 5.0))) == 7


def test_losses_between_points_are_linear_and_there_are_none_beyond():
    assert losses_at(CURVE, [50, 400]).tolist() == [7.0, 4.0]
    assert all(map(math.isnan, losses_at(CURVE, [-1, 401]))) and math.isnan(losses_at(series(), [0])[0])


def test_the_speed_up_is_the_mean_share_of_compute_inverted():
    found = speed_up([0.5, 0.25])  # 0.375, s = sqrt(1/32), over sqrt(2): 1/8
    assert found.mean == pytest.approx(8 / 3) and found.seeds == 2
    assert (found.low, found.high) == (pytest.approx(1 / (0.375 + 12.706 / 8)), math.inf)
    found = speed_up([0.5, 0.6, 0.7])
    width = 4.303 * 0.1 / 3**0.5
    assert (found.low, found.high) == pytest.approx((1 / (0.6 + width), 1 / (0.6 - width)))


def test_seeds_that_needed_no_compute_leave_a_mean_where_others_did():
    assert speed_up([0.0, 2.0]).mean == 1.0
    assert (speed_up([0.0, 0.0]).low, speed_up([0.0, 0.0]).high) == (math.inf, math.inf)
    assert speed_up([0.0]).mean == math.inf and not speed_up([0.0]).has_interval and math.isnan(speed_up([]).mean)


def test_an_estimate_in_words():
    assert estimate([]).words() == "-" and estimate([2.5]).words() == "2.50 (no interval: one seed)"
    assert speed_up([0.0, 0.0]).words() == "at once"
    assert estimate([-1.0, -2.0, -3.0]).words(1, "+") == "-2.0 (-4.5 to +0.5)"
    assert speed_up([0.5, 0.25]).words() == "2.67 (0.51 and more)"


def test_smoothing_takes_the_gaussians_weights_over_their_sum():
    near, far = math.exp(-0.5), math.exp(-2.0)  # one and two widths away
    found = smoothed(series((0, 1.0), (10, 2.0), (20, 6.0)), 10.0)
    middle = (1.0 * near + 2.0 + 6.0 * near) / (1 + 2 * near)
    left = (1.0 + 2.0 * near + 6.0 * far) / (1 + near + far)
    assert list(found.index) == [0, 10, 20]
    assert found.tolist()[:2] == pytest.approx([left, middle])


def test_smoothing_keeps_both_ends_and_returns_no_more_points_than_asked():
    curve = series(*((i, float(i % 7)) for i in range(1000)))
    found = smoothed(curve, 20.0, points=50)
    assert len(found) == 50 and found.index[0] == 0 and found.index[-1] == 999
    assert smoothed(curve, 0.0, points=2).to_dict() == {0.0: 0.0, 999.0: float(999 % 7)}
    assert smoothed(series(), 1.0).empty


@given(st.lists(st.floats(-5, 15), min_size=1, max_size=40), st.floats(-3, 3), st.floats(0.1, 100))
def test_smoothed_losses_stay_between_the_least_and_the_greatest_and_a_line_keeps_its_middle(losses, slope, width):
    found = smoothed(series(*enumerate(losses)), width)
    assert all(min(losses) - 1e-9 <= loss <= max(losses) + 1e-9 for loss in found)
    assert smoothed(series(*((x, slope * x) for x in range(21))), width)[10.0] == pytest.approx(slope * 10, abs=1e-9)


def test_the_interval_is_students():
    found = estimate([1.0, 2.0, 3.0])  # s = 1, t(2) = 4.303
    width = 4.303 / math.sqrt(3)
    assert found.mean == 2.0 and (found.low, found.high) == pytest.approx((2 - width, 2 + width)) and found.seeds == 3
    found = estimate([4.0, 6.0])  # s = sqrt 2, over sqrt 2
    assert (found.low, found.high) == pytest.approx((5 - 12.706, 5 + 12.706))


def test_the_quantiles_leave_a_fortieth_of_students_density_above_them():
    for dof, t in enumerate(T_975, start=1):
        factor = math.gamma((dof + 1) / 2) / math.gamma(dof / 2) / math.sqrt(dof * math.pi)
        n = 2000
        heights = [factor * (1 + (t * i / n) ** 2 / dof) ** (-(dof + 1) / 2) for i in range(n + 1)]
        inside = t / n / 3 * (heights[0] + heights[-1] + 4 * sum(heights[1::2]) + 2 * sum(heights[2:-1:2]))  # Simpson
        assert inside == pytest.approx(0.475, abs=3e-5), dof


def test_a_band_spans_the_curves_at_the_places_they_share():
    found = band([series((0, 1.0), (10, 3.0), (20, 5.0)), series((0, 2.0), (20, 9.0))])
    assert found.to_dict("list") == {"mean": [1.5, 7.0], "low": [1.0, 5.0], "high": [2.0, 9.0]}
    assert list(found.index) == [0, 20] and band([]).empty


def test_welchs_interval_is_that_of_two_independent_samples_and_none_of_one_seed():
    # variances of the means 2 and 0.5; 2.5^2 / (2^2 / 4 + 0.5^2 / 4) = 5.9 degrees of freedom, down to 5
    found = difference([10, 12, 14, 16, 18], [1, 2, 3, 4, 5])
    assert (found.mean, found.high - found.mean) == pytest.approx((11, 2.571 * math.sqrt(2.5)))
    assert found.mean - found.low == pytest.approx(found.high - found.mean) and found.seeds == 5
    alike = difference([2.0, 2.0], [1.0, 1.0, 1.0])
    assert (alike.mean, alike.low, alike.high) == (1, 1, 1)
    assert difference([1.0], [2.0, 3.0]).words(1) == "-1.5 (no interval: one seed)"
    assert difference([], [2.0, 3.0]).words() == "-"
