"""Slopes over width: power laws have their exponents, and only growth is a failure."""

import math

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from litgpt_warmstart.study.slopes import MAX_SLOPE, fit_slope, fit_slopes, table, worst


@given(
    exponent=st.floats(-2, 2),
    factor=st.floats(1e-6, 1e6),
    widths=st.lists(st.integers(1, 10_000), min_size=2, max_size=6, unique=True),
)
def test_the_slope_of_a_power_law_is_its_exponent(exponent, factor, widths):
    assert fit_slope(widths, [factor * w**exponent for w in widths]) == pytest.approx(exponent, abs=1e-6)


def power_laws(*exponents: float, **more: float) -> pandas.DataFrame:
    """A layer with an exponent for each seed; of the first one, a value for a width of 32."""
    rows = [(w, float(w) ** e, seed) for seed, e in enumerate(exponents) for w in (8, 16)]
    rows += [(32, value, 0) for value in more.values()]
    frame = pandas.DataFrame(rows, columns=["width", "l1", "seed"])
    return frame.assign(t=2, module="lm_head", parametrization="mup", shrink=math.nan)


def test_slopes_are_averaged_over_seeds_with_their_standard_error():
    slope = fit_slopes(power_laws(0.1, 0.2, 0.6)).iloc[0]
    assert slope["slope"] == pytest.approx(0.3)
    assert slope["standard_error"] == pytest.approx(math.sqrt(0.07 / 3))
    assert math.isnan(fit_slopes(power_laws(0.1))["standard_error"].item())


@pytest.mark.parametrize(
    ("exponent", "told"), [(0.45, "grows"), (1.0, "grows"), (0.35, "ok"), (0.0, "ok"), (-0.5, "ok"), (-3.0, "ok")]
)
def test_only_growth_beyond_the_threshold_is_a_failure(exponent, told):
    assert MAX_SLOPE == 0.4
    slopes = fit_slopes(power_laws(exponent, exponent))
    text = table(slopes).to_string()
    assert slopes["verdict"].item() == told and f"{exponent:+.2f}{'*' if told == 'grows' else ''}" in text


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_activations_that_are_not_finite_are_told_as_divergence(value):
    slopes = fit_slopes(power_laws(0.0, more=value))
    assert slopes["verdict"].item() == worst(slopes["verdict"]) == "diverges"
    assert "diverges" in table(slopes).to_string()


def test_a_base_that_is_all_zero_under_a_layer_does_not_grow():
    slope = fit_slopes(power_laws(0.0).assign(l1=0.0)).iloc[0]
    assert slope["slope"] == 0 and slope["verdict"] == "ok"
