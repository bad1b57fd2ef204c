"""What is computed from curves, against numbers worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litgpt_warmstart.report.curves import (
    T_975,
    band,
    estimate,
    smoothed,
    speed_up,
    tokens_to_last_loss,
    tokens_to_reach,
)

CURVE = [(0, 8.0), (100, 6.0), (200, 5.0), (300, 5.5), (400, 4.0)]


@pytest.mark.parametrize(
    ("loss", "tokens"), [(7.0, 50), (6.0, 100), (5.25, 175), (4.5, 300 + 100 * 1.0 / 1.5), (9.0, 0)]
)
def test_tokens_to_reach_interpolates_the_first_crossing(loss, tokens):
    assert tokens_to_reach(CURVE, loss) == pytest.approx(tokens)


def test_a_loss_below_the_curve_is_never_reached():
    assert tokens_to_reach(CURVE, 3.9) is None and tokens_to_reach([], 3.9) is None


def test_a_curve_that_begins_below_a_loss_is_there_though_it_leaves_it_again():
    assert tokens_to_reach([(0, 3.0), (10, 3.6), (20, 3.4)], 3.5) == 0


@given(st.floats(4.0, 8.0))
def test_a_lower_loss_is_reached_no_earlier(loss):
    assert tokens_to_reach(CURVE, loss) <= tokens_to_reach(CURVE, 4.0)


@given(st.lists(st.floats(1, 9), min_size=2, max_size=9))
def test_a_curve_beside_itself_takes_as_long_to_its_last_loss_unless_it_began_there(losses):
    curve = [(10.0 * place, loss) for place, loss in enumerate(losses)]
    if losses[0] > losses[-1]:
        assert tokens_to_reach(curve, losses[-1]) / tokens_to_last_loss(curve) == 1
    else:
        assert tokens_to_last_loss(curve) == curve[-1][0]


def test_a_curve_that_was_at_its_last_loss_before_is_counted_to_there():
    assert tokens_to_last_loss([(0, 9.0), (10, 5.0), (20, 4.4), (30, 4.8), (40, 4.6)]) == pytest.approx(50 / 3)
    assert tokens_to_last_loss([(0, 5.0), (10, 6.0)]) == 10 and tokens_to_last_loss([(7, 5.0)]) == 7


def test_the_speed_up_is_the_mean_share_of_compute_inverted():
    found = speed_up([0.5, 0.25])  # 0.375, s = sqrt(1/32), over sqrt(2): 1/8
    assert found.mean == pytest.approx(8 / 3) and found.seeds == 2
    assert found.interval == (pytest.approx(1 / (0.375 + 12.706 / 8)), math.inf)
    found = speed_up([0.5, 0.6, 0.7])
    assert found.interval == pytest.approx((1 / (0.6 + 4.303 * 0.1 / 3**0.5), 1 / (0.6 - 4.303 * 0.1 / 3**0.5)))


def test_seeds_that_needed_no_compute_leave_a_mean_where_others_did():
    assert speed_up([0.0, 2.0]).mean == 1.0 and speed_up([0.0, 0.0]).interval == (math.inf, math.inf)
    assert speed_up([0.0]).mean == math.inf and speed_up([0.0]).interval is None and speed_up([]) is None


def test_smoothing_takes_the_gaussians_weights_over_their_sum():
    near, far = math.exp(-0.5), math.exp(-2.0)  # one and two widths away
    curve = [(0, 1.0), (10, 2.0), (20, 6.0)]
    middle = (1.0 * near + 2.0 + 6.0 * near) / (1 + 2 * near)
    left = (1.0 + 2.0 * near + 6.0 * far) / (1 + near + far)
    found = smoothed(curve, 10.0)
    assert [x for x, _ in found] == [0, 10, 20]
    assert found[0][1] == pytest.approx(left) and found[1][1] == pytest.approx(middle)


def test_smoothing_keeps_both_ends_and_returns_no_more_points_than_asked():
    curve = [(i, float(i % 7)) for i in range(1000)]
    found = smoothed(curve, 20.0, points=50)
    assert len(found) == 50 and found[0][0] == 0 and found[-1][0] == 999
    assert smoothed(curve, 0.0, points=2) == [(0.0, 0.0), (999.0, float(999 % 7))] and smoothed([], 1.0) == []


@given(st.lists(st.floats(-5, 15), min_size=1, max_size=40), st.floats(0.1, 100))
def test_smoothed_losses_stay_between_the_least_and_the_greatest(losses, width):
    found = [y for _, y in smoothed(list(enumerate(losses)), width)]
    assert min(losses) - 1e-9 <= min(found) and max(found) <= max(losses) + 1e-9


@given(st.floats(-3, 3), st.floats(0.1, 50))
def test_a_straight_line_keeps_its_middle(slope, width):
    curve = [(float(x), slope * x) for x in range(21)]
    assert smoothed(curve, width)[10][1] == pytest.approx(slope * 10, abs=1e-9)


def test_the_interval_is_students():
    found = estimate([1.0, 2.0, 3.0])  # s = 1, t(2) = 4.303
    width = 4.303 / math.sqrt(3)
    assert found.mean == 2.0 and found.interval == pytest.approx((2 - width, 2 + width)) and found.seeds == 3
    assert estimate([4.0, 6.0]).interval == pytest.approx((5 - 12.706, 5 + 12.706))  # s = sqrt 2, over sqrt 2


def test_one_seed_has_no_interval_and_none_has_no_mean():
    assert estimate([2.5]).mean == 2.5 and estimate([2.5]).interval is None and estimate([]) is None


def test_the_quantiles_leave_a_fortieth_of_students_density_above_them():
    for dof, t in enumerate(T_975, start=1):
        factor = math.gamma((dof + 1) / 2) / math.gamma(dof / 2) / math.sqrt(dof * math.pi)
        n = 2000
        heights = [factor * (1 + (t * i / n) ** 2 / dof) ** (-(dof + 1) / 2) for i in range(n + 1)]
        inside = t / n / 3 * (heights[0] + heights[-1] + 4 * sum(heights[1::2]) + 2 * sum(heights[2:-1:2]))  # Simpson
        assert inside == pytest.approx(0.475, abs=3e-5), dof


def test_a_band_has_the_tokens_that_all_curves_have():
    found = band([[(0, 8.0), (10, 6.0), (20, 5.0)], [(0, 7.0), (20, 4.0)]])
    assert found.tokens == (0, 20) and found.mean == (7.5, 4.5) and found.low == (7.0, 4.0) and found.high == (8.0, 5.0)
