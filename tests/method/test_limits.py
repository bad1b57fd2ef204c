"""What growth can save: the design's figures, and the definition of what is spared."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litgpt_warmstart.method.laws import HOFFMANN
from litgpt_warmstart.method.limits import limits, speed_up, tokens_spared

PARAMETERS, TOKENS = st.floats(1e5, 1e11), st.floats(1e6, 1e13)


@pytest.mark.parametrize(
    ("growth", "delta", "left"), [(2, 1 / 2, 0.75), (4, 1 / 4, 0.8125), (3, 1 / 3, 7 / 9), (4, 0.67, 0.4975)]
)
def test_if_the_tokens_are_carried_1_less_delta_times_1_less_1_over_g_is_left_with_the_base_counted(
    growth, delta, left
):
    found = limits((1e9, growth * 1e9), (delta * 2e10, 2e10), (delta / growth, 1.0))
    assert 1 - found.tokens_with_base == pytest.approx(left)
    assert found.tokens == pytest.approx(delta)


def test_if_the_loss_is_carried_about_6_percent_is_saved_at_most_with_the_base_counted():
    """A target of 1e9 parameters at 20 tokens per parameter, over growths and shares of its tokens."""
    shares = [
        limits((1e9 / g, 1e9), (d * 2e10, 2e10), (d / g, 1.0)).loss_with_base
        for g in (1.2, 1.5, 2, 3, 4, 8)
        for d in (0.05, 0.1, 0.2, 0.3, 0.5, 0.67, 0.8, 1.0)
    ]
    assert max(shares) == pytest.approx(0.064, abs=0.005)


@given(PARAMETERS, TOKENS, st.floats(1.01, 100))
def test_after_what_is_spared_the_target_is_where_the_base_is(parameters, tokens, growth):
    spared = tokens_spared(parameters, tokens, growth * parameters)
    assert 0 < spared < tokens  # a larger model takes fewer tokens
    assert HOFFMANN.loss(growth * parameters, spared) == pytest.approx(HOFFMANN.loss(parameters, tokens))


def test_shares_are_speed_ups_and_are_told_in_a_sentence():
    assert speed_up(0.5) == 2 and speed_up(0.0) == 1 and speed_up(1.2) == math.inf and math.isnan(speed_up(math.nan))
    found = limits((1e9, 2e9), (1e10, 2e10), (0.25, 1.0))
    assert found.speed_ups["tokens_with_base"] == pytest.approx(4 / 3)
    assert "50% (2.00x) if it carries what the base's tokens taught, 25% (1.33x) with the base counted" in found.words
    assert limits((1.0, 2.0), (0, 10), (0, 1)).loss == 0  # of a base that was never trained


def test_no_more_than_all_tokens_are_spared_and_the_base_still_counts():
    found = limits((1e9, 2e9), (1e11, 2e9), (2.5, 1.0))
    assert (found.loss, found.loss_with_base, found.tokens, found.tokens_with_base) == (1, -1.5, 1, -1.5)
    assert found.speed_ups["tokens_with_base"] == 0.4
    unknown = limits((1e9, 2e9), (math.nan, 2e9), (math.nan, 1.0))
    assert all(math.isnan(share) for share in (*vars(unknown).values(), *unknown.speed_ups.values()))
