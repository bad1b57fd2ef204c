"""The law of losses: what it says, and that a fit finds it again."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litgpt_warmstart.method.laws import HOFFMANN, Law, fit

SIZES, TOKENS = (1e5, 3e5, 1e6, 4e6), (1e6, 4e6, 1e7, 4e7)
CELLS = list(itertools.product(SIZES, TOKENS))


def fitted(law: Law, noise: float = 0.0, seed: int = 0, cells=CELLS, start: Law | None = None) -> Law:
    """The fit to losses that a law gives, times e^noise."""
    draws = random.Random(seed)
    losses = [law.loss(*cell) * math.exp(draws.gauss(0, noise)) for cell in cells]
    return fit(*zip(*cells, strict=True), losses, start)


@st.composite
def laws(draw) -> Law:
    """Whose terms matter at these sizes and tokens: 0.2 to 3 nats of each at the middle ones."""
    alpha, beta = draw(st.floats(0.15, 0.8)), draw(st.floats(0.15, 0.8))
    of_size, of_tokens, irreducible = (draw(st.floats(0.2, 3)) for _ in range(3))
    return Law(irreducible, of_size * 5e5**alpha, alpha, of_tokens * 6e6**beta, beta)


@settings(max_examples=8)
@given(laws())
def test_a_law_is_found_again_from_the_losses_that_it_gives(law):
    found = fitted(law)
    assert vars(found) == pytest.approx(vars(law), rel=1e-2)
    for cell in ((5e4, 5e5), *CELLS, (2e7, 4e8)):  # beyond them, too
        assert found.loss(*cell) == pytest.approx(law.loss(*cell), rel=1e-4)
    near = fitted(law, start=Law(1.1 * law.E, law.A, 1.1 * law.alpha, 0.9 * law.B, law.beta))
    assert vars(near) == pytest.approx(vars(law), rel=1e-2)


def test_one_run_that_went_wrong_moves_hardly_anything():
    """Which is what the Huber loss is for: of squares a loss a tenth too high would move others by more than 1%."""
    losses = [HOFFMANN.loss(*cell) for cell in CELLS]
    losses[5] *= 1.1
    found = fit(*zip(*CELLS, strict=True), losses)
    assert all(found.loss(*cell) == pytest.approx(HOFFMANN.loss(*cell), rel=1e-3) for cell in CELLS)


def test_noise_of_a_thousandth_leaves_the_losses_to_a_thousandth():
    law = Law(1.5, 300.0, 0.4, 2000.0, 0.5)
    found = fitted(law, noise=1e-3)
    assert all(found.loss(*cell) == pytest.approx(law.loss(*cell), rel=1.5e-3) for cell in CELLS)


def test_tokens_are_those_after_which_the_loss_is_there():
    assert HOFFMANN.loss(70e9, 1.4e12) == pytest.approx(1.69 + 406.4 / 70e9**0.34 + 410.7 / 1.4e12**0.28)
    assert HOFFMANN.tokens(70e9, HOFFMANN.loss(70e9, 1.4e12)) == pytest.approx(1.4e12)


def test_below_what_a_size_comes_down_to_no_number_of_tokens_is_enough():
    assert HOFFMANN.tokens(1e9, HOFFMANN.floor(1e9)) == HOFFMANN.tokens(1e9, 1.0) == math.inf
    assert HOFFMANN.tokens(1e9, HOFFMANN.floor(1e9) * (1 + 1e-15)) > 1e40


@pytest.mark.parametrize("b", [20.0, 60.0])
def test_losses_that_do_not_level_off_have_no_floor(b):
    law = Law(0.0, 200.0, 0.5, b, 0.13)
    found = fitted(law)
    assert found.E == 0 and vars(found) == pytest.approx(vars(law), rel=1e-2)


def test_a_start_without_a_floor_finds_one():
    law = Law(1.5, 300.0, 0.4, 2000.0, 0.5)
    assert vars(fitted(law, start=Law(0.0, 300.0, 0.4, 2000.0, 0.5))) == pytest.approx(vars(law), rel=1e-2)
