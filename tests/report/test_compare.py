"""Which runs are compared, and what comes of it, against numbers worked out by hand."""

import math
import shutil
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from litgpt_warmstart.method.schedule import Schedule
from litgpt_warmstart.report.compare import compare_all, differences
from litgpt_warmstart.report.runs import Run, find
from litgpt_warmstart.report.sections import beyond_growth, gain_table, headline, sentences
from litgpt_warmstart.run.record import Ancestor
from tests.report.conftest import FLOPS_PER_TOKEN, PER_STEP


def compared(make_run):
    return compare_all(find([make_run.folder]))


def told(result) -> dict[str, str]:
    return {run.name: why for run, why in result.notes}


def runs(make_run) -> dict[str, Run]:
    return {run.name: run for run in find([make_run.folder]).runs}


def test_the_speed_up_is_the_mean_over_paired_seeds_with_students_interval(study):
    result = compared(study)
    (comparison,), (arm,) = result.comparisons, result.comparisons[0].arms
    assert result.notes == [] and len(comparison.scratch) == 3 and arm.reached == 3 and arm.whole
    assert arm.pairs["tokens_to_scratch_loss"].tolist() == [20 * PER_STEP, 20 * PER_STEP, 10 * PER_STEP]
    shares = arm.pairs["share_of_scratch_hoffmann_flops"].tolist()
    assert shares == [0.5, 0.5, 0.25]  # s = 0.25 / sqrt(3), over sqrt(3): 1 / 12
    share, width = 5 / 12, 4.303 / 12
    assert arm.speed_up.mean == pytest.approx(1 / share)
    assert (arm.speed_up.low, arm.speed_up.high) == pytest.approx((1 / (share + width), 1 / (share - width)))
    base = 10 * PER_STEP * FLOPS_PER_TOKEN[16]
    whole = 40 * PER_STEP * FLOPS_PER_TOKEN[48]
    expected = [0.5 + base / whole] * 2 + [0.25 + base / whole]
    assert arm.pairs["share_of_scratch_hoffmann_flops_with_base"].tolist() == pytest.approx(expected)
    assert arm.speed_up_with_base.mean == pytest.approx(3 / sum(expected))
    first = arm.loss_difference("first_val_loss")
    assert first.mean == first.low == first.high == -2.0
    assert arm.loss_difference("val_loss").mean == pytest.approx(-0.9)
    # The base had a quarter of the target's tokens: 1 / (1 - 1/4) is all that they can save, less with its compute.
    most = arm.at_most
    assert (most["tokens"], most["tokens_with_base"]) == pytest.approx((4 / 3, 1 / (0.75 + base / whole)))
    assert 1 < most["loss"] < most["tokens"] and most["loss_with_base"] < most["loss"]
    assert arm.is_beyond_growth  # 2.4 times
    assert headline([comparison]).endswith("faster; that is more than growth can give: see below.")


def test_a_seed_that_never_reaches_the_loss_is_counted_as_such(study):
    (study.folder / "warm-3/metrics.csv").unlink()
    study.metrics(study.folder / "warm-3", [6.0, 5.9, 5.8, 5.7, 5.6], 40, FLOPS_PER_TOKEN[48])
    (arm,) = compared(study).comparisons[0].arms
    assert len(arm.pairs) == 3 and arm.reached == 2 and arm.speed_up.seeds == 2
    assert arm.speed_up.mean == 2.0 and arm.loss_difference("val_loss").seeds == 3


def test_a_run_from_scratch_that_left_its_last_loss_again_is_counted_to_where_it_was_there_first(make_run):
    make_run.pair([8.0, 5.0, 4.0, 4.6, 4.5], [8.0, 5.0, 4.0, 4.6, 4.5])
    (arm,) = compared(make_run).comparisons[0].arms
    assert arm.pairs["tokens_to_scratch_loss"].item() == 15 * PER_STEP and arm.speed_up.mean == 1.0
    assert not arm.is_beyond_growth and "can give" not in headline(compared(make_run).comparisons)


@pytest.mark.parametrize(
    ("tokens", "said"), [(4 / 3, "had 25% of"), (math.inf, "had as many tokens as the target or more")]
)
def test_what_growth_can_give_at_most_is_told_without_an_infinite_rate(tokens, said):
    arm = SimpleNamespace(is_beyond_growth=True, at_most={"tokens": tokens, "tokens_with_base": 0.5})
    comparison: Any = SimpleNamespace(arms=[arm])
    said_of_it = beyond_growth(comparison)
    assert said in said_of_it and "0.50 with the base counted" in said_of_it and "inf" not in said_of_it


def test_a_warmstart_that_starts_below_the_loss_needs_no_compute_of_its_own(make_run):
    make_run.pair([8.0, 6.0, 4.0], [3.9, 3.8, 3.7])
    (arm,) = compared(make_run).comparisons[0].arms
    assert arm.speed_up.mean == math.inf and not arm.speed_up.has_interval
    whole, before = 40 * PER_STEP * FLOPS_PER_TOKEN[48], 10 * PER_STEP * FLOPS_PER_TOKEN[16]
    assert arm.speed_up_with_base.mean == pytest.approx(whole / before)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (dict(data="other"), "their data differs: corpus and other"),
        (dict(start_token=5), "their first token differs: 0 and 5"),
        (dict(max_iters=11), "their validation blocks differs: 10 and 11"),
        (dict(vocabulary=128), "their vocabulary differs: 96 and 128"),
        (dict(base_lr=0.5), "their learning rate differs: 0.02 and 0.5"),
        (dict(global_batch_size=4), "their batch size differs: 8 and 4"),
        (dict(steps=80), f"their budget in tokens differs: {40 * PER_STEP} and {80 * PER_STEP}"),
        (dict(seed=7), "no run from scratch with its seed, 7"),
    ],
)
def test_a_warmstart_that_cannot_be_compared_is_told_by_what_differs(make_run, change, why):
    base = make_run.pair([8.0, 6.0, 4.0], [6.0, 5.0, 3.0])
    make_run("other", [6.0, 5.0, 3.0], **{"shrink": 0.2, "base": base, **change})
    result = compared(make_run)
    assert [arm.label for arm in result.comparisons[0].arms] == ["shrink 0.4"]
    assert why in told(result)["other"]


def test_without_any_run_from_scratch_that_is_what_is_told(make_run):
    base = make_run("base", [9.0, 7.0], width=16, steps=10, parametrization="sp")
    make_run("warm", [6.0, 5.0, 3.0], shrink=0.4, base=base)
    result = compared(make_run)
    assert result.comparisons == [] and "no run from scratch to compare it with" in told(result)["warm"]


def test_runs_that_go_on_broke_off_or_diverged_are_noted_and_not_counted(study):
    base = study.folder / "base"
    study("going", [6.0, 5.0, 3.0], seed=1, shrink=0.2, base=base, planned=90, checkpoint="step-00000040")
    study("lost", [6.0, 5.0, 3.0], seed=1, shrink=0.6, base=base)
    (study.folder / "lost" / "outcome.json").write_text('{"status": "diverged", "reason": "the loss is nan"}')
    result = compared(study)
    assert [arm.label for arm in result.comparisons[0].arms] == ["shrink 0.4"]
    assert "not finished: step 40 of 90" in told(result)["going"]
    assert told(result)["lost"] == "diverged: the loss is nan"


def test_a_repetition_of_a_seed_is_not_counted_twice(study):
    study("again", [6.0, 3.0, 2.0, 1.5, 1.0], seed=1, shrink=0.4, base=study.folder / "base")
    result = compared(study)
    assert len(result.comparisons[0].arms[0].pairs) == 3 and len(result.repeated) == 1
    assert any("repeats" in why for why in told(result).values())


def test_schedules_of_different_budgets_are_compared_as_they_were_asked_for(study):
    run = runs(study)["warm-1"]
    found = []
    for fraction, tokens, steps, start in ((0.2, 1000, 10, 8), (0.2, 2000, 20, 16), (0.5, 2000, 20, 10)):
        schedule = Schedule("wsd", steps, cooldowns=((start, steps),)).plain
        asked = dict(name="wsd", cooldown_fraction=fraction)
        settings = {**run.settings, "schedule": schedule}
        found.append(replace(run, max_tokens=tokens, settings=settings, asked_schedule=asked))
    one, longer, other = found
    assert differences(one, longer) == [] and [name for name, *_ in differences(one, other)] == ["schedule"]
    assert [name for name, *_ in differences(one, replace(other, max_tokens=1000))] == ["schedule"]


def test_shrink_0_counts_as_a_run_from_scratch_and_not_its_bases_compute(study):
    shutil.rmtree(study.folder / "scratch-1")
    study("zero", [8.0, 7.0, 6.0, 5.0, 4.0], seed=1, shrink=0.0, base=study.folder / "base")
    (arm,) = compared(study).comparisons[0].arms
    assert len(arm.pairs) == 3 and set(arm.pairs["share_of_scratch_hoffmann_flops"]) == {0.5, 0.25}
    assert runs(study)["zero"].kind == "scratch"


def test_the_bases_compute_is_unknown_where_its_record_does_not_tell(make_run):
    known = make_run("base", [9.0, 7.0], width=16, steps=10)
    old = make_run("old", [9.0, 7.0], width=16, steps=10, hoffmann_flops=0)  # an older version's, at the muP base
    foreign = make_run("foreign", [9.0, 7.0], width=48, steps=10, hoffmann_flops=0)
    for base in (known, old, foreign):
        make_run(f"from-{base.name}", [6.0, 5.0], width=96, shrink=0.4, base=base)
    flops = {name: run.base_flops for name, run in runs(make_run).items()}
    assert flops["from-old"] == flops["from-base"] > 0 and math.isnan(flops["from-foreign"]) and flops["base"] == 0


def test_arms_are_told_apart_by_growth_and_source(study):
    base = study.folder / "base"
    longer = study("longer", [9.0, 7.0], width=16, steps=20)
    study("warm-4", [6.0, 5.0, 4.0, 3.5, 3.0], seed=1, shrink=0.2, base=base)
    study("warm-5", [6.0, 5.0, 4.0, 3.5, 3.0], seed=1, shrink=0.4, base=longer)
    labels = [arm.label for arm in compared(study).comparisons[0].arms]
    assert len(set(labels)) == 3 and labels[0].startswith("shrink 0.2")
    assert any("at 10.2 tokens/param" in label for label in labels), labels


def test_differences_along_the_budget_are_taken_at_shared_validations_and_at_equal_compute(study):
    (arm,) = compared(study).comparisons[0].arms
    assert arm.at_tokens.index.tolist() == [10 * PER_STEP * n for n in (1, 2, 3, 4)]
    assert arm.at_tokens.iloc[0].tolist() == [5.0, 7.0, 5.0, 7.0, 4.0, 7.0]  # each seed's own, and scratch's
    flops, base = PER_STEP * FLOPS_PER_TOKEN[48], 10 * PER_STEP * FLOPS_PER_TOKEN[16]
    assert arm.at_compute.index.tolist() == pytest.approx([20 * flops, 30 * flops, 40 * flops])  # at 10 its own began
    later = (20 * flops - base) / flops  # steps of the warmstart's own
    assert arm.at_compute.iloc[0].iloc[:2].tolist() == pytest.approx([5.0 - (later - 10) / 10, 6.0])


def test_seeds_that_are_lineages_are_one_comparison_of_pairs_that_share_their_order(make_run):
    for seed, last in ((1, 4.2), (2, 4.0), (3, 3.8)):
        base = make_run(f"base-{seed}", [9.0, 8.0, 7.0], width=16, steps=10, seed=seed, order=seed)
        make_run(f"scratch-{seed}", [8.0, 6.0, last], seed=seed, order=seed, start_token=5200)
        make_run(f"warm-{seed}", [6.0, 5.0, last - 1], seed=seed, order=seed, start_token=5200, shrink=0.4, base=base)
    result = compared(make_run)
    (comparison,) = result.comparisons
    (arm,) = comparison.arms
    pairs = [(warm.name, scratch.name) for warm, scratch in arm.members]
    assert pairs == [(f"warm-{seed}", f"scratch-{seed}") for seed in (1, 2, 3)]
    assert arm.is_of_lineages and len(comparison.scratch) == 3
    # Of pairs there would be no spread. Welch: variances 0.04 of three each, four degrees of freedom.
    difference = arm.loss_difference("val_loss")
    assert (difference.mean, difference.high + 1) == pytest.approx((-1.0, 2.776 * math.sqrt(0.08 / 3)))
    last = gain_table(arm, arm.at_tokens).iloc[-1]
    assert (last["val_loss_minus_scratch"], last["low"]) == pytest.approx((difference.mean, difference.low))
    assert any("Seeds are lineages" in sentence for sentence in sentences(comparison))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (dict(order=2), "their order of blocks differs: 1 and 2"),
        (dict(order=1, start_token=9), "their first token differs: 0 and 9"),
        (dict(order=2, seed=2), "no run from scratch with its seed, 2"),
    ],
)
def test_a_pair_shares_its_order_and_where_its_data_begins(make_run, change, why):
    base = make_run("base", [9.0, 7.0], width=16, steps=10)
    make_run("scratch", [8.0, 6.0, 4.0], order=1)
    make_run("other", [8.0, 6.0, 4.0], order=2, seed=3)
    make_run("warm", [6.0, 5.0, 3.0], shrink=0.4, base=base, **change)
    result = compared(make_run)
    assert result.comparisons == [] and why in told(result)["warm"]


def test_paired_seeds_of_one_order_keep_their_paired_interval(study):
    (comparison,) = compared(study).comparisons
    (arm,) = comparison.arms
    assert not arm.is_of_lineages and not any("lineages" in sentence for sentence in sentences(comparison))
    last = gain_table(arm, arm.at_tokens).iloc[-1]
    assert last["high"] == pytest.approx(-0.9 + 4.303 * 0.1 / math.sqrt(3))


def test_where_no_record_tells_what_the_base_took_nothing_is_told_at_equal_compute_nor_what_growth_can_give(make_run):
    make_run("scratch", [9.0, 6.0, 5.0])
    unknown = Ancestor("pythia-14m", "checkpoints/EleutherAI/pythia-14m", "0" * 64, 10)
    make_run("warm", [8.0, 4.0, 3.0], shrink=0.4, lineage=(unknown,))
    (arm,) = compared(make_run).comparisons[0].arms
    assert arm.speed_up.mean > 1.5 and not arm.is_beyond_growth
    assert all(math.isnan(limit) for limit in arm.at_most.values())
    assert arm.at_compute.empty and not arm.at_tokens.empty and arm.speed_up_with_base.seeds == 0
