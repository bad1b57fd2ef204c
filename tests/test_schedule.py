"""Step -> learning-rate multiplier."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from litgpt.pretrain import get_lr

from litgpt_warmstart.schedule import Schedule


def test_constant_is_1_throughout():
    assert {Schedule("constant", 100)(step) for step in range(100)} == {1.0}


def test_warmup_rises_linearly_and_stays():
    assert [Schedule("warmup", 100, 4)(step) for step in (0, 1, 2, 3, 4, 99)] == [0, 0.25, 0.5, 0.75, 1, 1]


def test_cosine_by_hand():
    schedule = Schedule("cosine", total_steps=12, warmup_steps=2, min_lr_ratio=0.1)
    assert [schedule(s) for s in (0, 1, 2)] == [0, 0.5, 1]
    assert schedule(7) == pytest.approx(0.1 + 0.9 * 0.5)
    assert schedule(12) == pytest.approx(0.1)


def test_the_course_names_what_a_resumed_run_must_share():
    assert Schedule("constant", 10).course == Schedule("constant", 99).course
    assert Schedule("warmup", 10, 2).course == Schedule("warmup", 99, 2).course != Schedule("warmup", 10, 3).course
    assert (
        len({Schedule("cosine", *rest).course for rest in ((10, 2, 0.1), (11, 2, 0.1), (10, 3, 0.1), (10, 2, 0.2))})
        == 4
    )


@given(st.integers(0, 200), st.integers(0, 50), st.floats(0, 1))
def test_cosine_equals_litgpts(step, warmup, min_ratio):
    ours = 0.02 * Schedule("cosine", 200, warmup, min_ratio)(step)
    assert math.isclose(ours, get_lr(0.02, step, warmup, 200, 0.02 * min_ratio), rel_tol=1e-12, abs_tol=1e-15)
