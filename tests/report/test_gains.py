"""Where along the budget a warmstart is ahead, against numbers worked out by hand."""

import pytest

from litgpt_warmstart.report.gains import Gain, at_equal_compute, at_equal_tokens, loss_at, spans
from litgpt_warmstart.report.groups import compare_all
from litgpt_warmstart.report.old_runs import find
from litgpt_warmstart.report.write import write_report
from tests.report.conftest import FLOPS_PER_TOKEN, PER_STEP


def arm_of(make_run):
    return compare_all(find([make_run.folder]).runs).comparisons[0].arms[0]


def test_at_equal_tokens_losses_are_subtracted_seed_by_seed(study):
    gains = at_equal_tokens(arm_of(study))
    assert [gain.at for gain in gains] == [step * PER_STEP for step in (10, 20, 30, 40)]
    assert [gain.values for gain in gains[:2]] == [(-2.0, -2.0, -3.0), (-2.0, -2.0, pytest.approx(-2.1))]
    mean, half = 7 / 3, 4.303 / 3  # s = 1 / sqrt(3), over sqrt(3)
    assert gains[0].difference.interval == pytest.approx((-mean - half, -mean + half))
    assert all(gain.ahead for gain in gains)


def test_at_equal_compute_the_bases_is_counted_and_the_warmstart_interpolated(study):
    gains = at_equal_compute(arm_of(study))
    base, per_step = 10 * PER_STEP * FLOPS_PER_TOKEN[16], PER_STEP * FLOPS_PER_TOKEN[48]
    late = base / per_step  # steps of the warmstart that its base took
    assert 0 < late < 10
    # at step 10 the warmstart is in its first 10 steps, whose loss is no line
    assert [gain.at for gain in gains] == pytest.approx([step * per_step for step in (20, 30, 40)])
    assert gains[0].values[0] == pytest.approx(5.0 - (20 - late - 10) / 10 - 6.0)


def test_between_validations_a_warmstart_is_not_made_better_than_it_is(make_run):
    base = make_run("base", [9.0, 7.0], width=16, steps=10)
    late = 10 * FLOPS_PER_TOKEN[16] / FLOPS_PER_TOKEN[48]
    true = [4 + 6 / (1 + step / 4) for step in range(0, 41, 4)]
    make_run("scratch", true)
    make_run("warm", true, shrink=0.4, base=base)
    for gain in at_equal_compute(arm_of(make_run)):
        step = gain.at / (PER_STEP * FLOPS_PER_TOKEN[48])
        assert gain.values[0] >= 6 / (1 + (step - late) / 4) - 6 / (1 + step / 4)


def test_a_base_that_took_more_than_scratch_is_told(make_run):
    base = make_run("base", [9.0, 7.0], width=16, steps=1000)
    make_run("scratch", [8.0, 6.0, 5.0, 4.0])
    make_run("warm", [7.0, 5.0, 4.5, 4.1], shrink=0.4, base=base)
    assert at_equal_compute(arm_of(make_run)) == []
    text = write_report([make_run.folder], make_run.folder.parent / "report").page.read_text(encoding="utf-8")
    assert "nothing to compare, since the base alone took" in text


def test_a_base_that_does_not_tell_its_compute_leaves_equal_tokens_alone(make_run):
    base = make_run("base", [9.0, 7.0], width=16, steps=10, tokens=0, hoffmann_flops=0)
    make_run("scratch", [8.0, 6.0, 5.0, 4.0])
    make_run("warm", [7.0, 5.0, 4.5, 4.1], shrink=0.4, base=base)
    assert at_equal_compute(arm_of(make_run)) == [] and len(at_equal_tokens(arm_of(make_run))) == 3


def test_a_loss_between_two_points_is_linear_and_beyond_the_ends_there_is_none():
    curve = [(0, 8.0), (10, 6.0), (20, 5.0)]
    assert [loss_at(curve, x) for x in (0, 5, 10, 16, 20)] == [8.0, 7.0, 6.0, 5.4, 5.0]
    assert loss_at(curve, -1) is loss_at(curve, 21) is None


def test_ahead_means_the_whole_interval_or_the_difference_of_the_one_seed():
    assert Gain(1, (-0.1,)).ahead and not Gain(1, (0.0,)).ahead
    assert Gain(1, (-0.1, -0.11, -0.09)).ahead
    assert not Gain(1, (-0.3, -0.1, 0.1)).ahead  # on average it is


def test_spans_are_unbroken_rows_of_places_ahead():
    gains = [Gain(at, (sign * 1.0,)) for at, sign in enumerate((-1, -1, 1, -1, 1, 1))]
    assert [(a.at, b.at) for a, b in spans(gains)] == [(0, 1), (3, 3)]
    assert spans(gains[4:]) == [] and [(a.at, b.at) for a, b in spans(gains[:2])] == [(0, 1)]


def test_the_page_says_where_the_gain_ends(make_run):
    base = make_run("base", [9.0, 7.0], width=16, steps=1)
    for seed in (1, 2, 3):
        make_run(f"scratch-{seed}", [8.0, 7.0, 6.0, 5.0, 4.0], seed=seed)
        make_run(f"warm-{seed}", [7.5, 6.5, 5.5, 5.2, 4.1 + seed / 100], seed=seed, shrink=0.4, base=base)
    text = write_report([make_run.folder], make_run.folder.parent / "report").page.read_text(encoding="utf-8")
    assert (
        "shrink 0.4, at equal tokens: ahead from the first validation to 1 tokens per parameter;"
        " +0.1200 (+0.0952 to +0.1448) at 2 tokens per parameter." in text
    )
