"""Which runs are compared, and what comes of it, against numbers worked out by hand."""

import math
from dataclasses import asdict, replace

import pytest

from litgpt_warmstart.method.schedule import Schedule
from litgpt_warmstart.report.answers import beyond_growth, sentences
from litgpt_warmstart.report.groups import compare_all, differences
from litgpt_warmstart.report.old_runs import Run, find
from tests.report.conftest import FLOPS_PER_TOKEN, PER_STEP


def compared(make_run):
    return compare_all(find([make_run.folder]).runs)


def told(result) -> dict[str, str]:
    return {run.out_dir.name: why for run, why in result.notes}


def test_the_speed_up_is_the_mean_over_paired_seeds_with_students_interval(study):
    result = compared(study)
    (comparison,), (arm,) = result.comparisons, result.comparisons[0].arms
    assert result.notes == [] and len(comparison.scratch) == 3 and len(arm.reached) == 3
    assert [pair.tokens for pair in arm.pairs] == [20 * PER_STEP, 20 * PER_STEP, 10 * PER_STEP]
    assert [pair.share for pair in arm.pairs] == [0.5, 0.5, 0.25]  # s = 0.25 / sqrt(3), over sqrt(3): 1 / 12
    share, width = 5 / 12, 4.303 / 12
    assert arm.speed_up.mean == pytest.approx(1 / share)
    assert arm.speed_up.interval == pytest.approx((1 / (share + width), 1 / (share - width)))
    base = 10 * PER_STEP * FLOPS_PER_TOKEN[16]
    whole = 40 * PER_STEP * FLOPS_PER_TOKEN[48]
    expected = [0.5 + base / whole] * 2 + [0.25 + base / whole]
    assert [pair.share_with_base for pair in arm.pairs] == pytest.approx(expected)
    assert arm.speed_up_with_base.mean == pytest.approx(3 / sum(expected))
    assert arm.loss_difference(0).mean == -2.0 and arm.loss_difference(0).interval == (-2.0, -2.0)
    assert arm.loss_difference(-1).mean == pytest.approx(-0.9)


def test_a_seed_that_never_reaches_the_loss_is_counted_as_such(study):
    for path in (study.folder / "warm-3").rglob("metrics.csv"):
        path.unlink()
    study.metrics(study.folder / "warm-3", [6.0, 5.9, 5.8, 5.7, 5.6], 40, FLOPS_PER_TOKEN[48])
    (arm,) = compared(study).comparisons[0].arms
    assert len(arm.pairs) == 3 and len(arm.reached) == 2 and arm.speed_up.seeds == 2
    assert arm.speed_up.mean == 2.0 and arm.loss_difference(-1).seeds == 3


def test_a_run_from_scratch_that_left_its_last_loss_again_is_counted_to_where_it_was_there_first(make_run):
    base = make_run("base", [9.0, 7.0], width=16, steps=10)
    make_run("scratch", [8.0, 5.0, 4.0, 4.6, 4.5])
    make_run("warm", [8.0, 5.0, 4.0, 4.6, 4.5], shrink=0.4, base=base)
    (arm,) = compared(make_run).comparisons[0].arms
    assert arm.pairs[0].tokens == 15 * PER_STEP and arm.speed_up.mean == 1.0


def test_a_warmstart_that_starts_below_the_loss_needs_no_compute_of_its_own(make_run):
    base = make_run("base", [9.0, 7.0], width=16, steps=10)
    make_run("scratch", [8.0, 6.0, 4.0])
    make_run("warm", [3.9, 3.8, 3.7], shrink=1.0, base=base)
    (arm,) = compared(make_run).comparisons[0].arms
    assert arm.speed_up.mean == math.inf and arm.speed_up.interval is None
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
    base = make_run("base", [9.0, 7.0], width=16, steps=10, data=change.get("data", "corpus"))
    make_run("scratch", [8.0, 6.0, 4.0])
    make_run("warm", [6.0, 5.0, 3.0], shrink=0.4, base=base)
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
    assert (
        "not finished: step 40 of 90" in told(result)["going"] and told(result)["lost"] == "diverged: the loss is nan"
    )


def test_a_repetition_of_a_seed_is_not_counted_twice(study):
    study("again", [6.0, 3.0, 2.0, 1.5, 1.0], seed=1, shrink=0.4, base=study.folder / "base")
    result = compared(study)
    assert len(result.comparisons[0].arms[0].pairs) == 3 and any("repeats" in why for why in told(result).values())


def test_schedules_of_different_budgets_are_compared_as_they_were_asked_for(study):
    run = Run.read(study.folder / "warm-1")
    found = []
    for fraction, tokens, steps, start in ((0.2, 1000, 10, 8), (0.2, 2000, 20, 16), (0.5, 2000, 20, 10)):
        schedule = asdict(Schedule("wsd", steps, cooldowns=((start, steps),)))
        record = replace(run.record, training={**run.record.training, "max_tokens": tokens, "schedule": schedule})
        asked = {**run.hyperparameters, "schedule": "wsd", "train": dict(cooldown_fraction=fraction)}
        found.append(replace(run, hyperparameters=asked, record=record))
    one, longer, other = found
    assert differences(one, longer) == [] and [name for name, *_ in differences(one, other)] == ["schedule"]
    same_budget = replace(other, record=replace(other.record, training={**other.record.training, "max_tokens": 1000}))
    assert [name for name, *_ in differences(one, same_budget)] == ["schedule"]


def test_shrink_0_counts_as_a_run_from_scratch_and_not_its_bases_compute(study):
    import shutil

    shutil.rmtree(study.folder / "scratch-1")
    study("zero", [8.0, 7.0, 6.0, 5.0, 4.0], seed=1, shrink=0.0, base=study.folder / "base")
    (arm,) = compared(study).comparisons[0].arms
    assert len(arm.pairs) == 3 and arm.pairs[0].share in (0.5, 0.25)
    assert Run.read(study.folder / "zero").from_scratch


def test_the_bases_compute_is_unknown_where_its_record_does_not_tell(study):
    run = Run.read(study.folder / "warm-1")
    foreign = replace(run.record.lineage[0], tokens=0, hoffmann_flops=0)
    assert replace(run, record=replace(run.record, lineage=(foreign,))).base_flops is None
    old = replace(run.record.lineage[0], hoffmann_flops=0)  # of an older version, at the muP base
    assert replace(run, record=replace(run.record, lineage=(old,))).base_flops == run.base_flops


def test_arms_are_told_apart_by_growth_and_source(study):
    base = study.folder / "base"
    longer = study("longer", [9.0, 7.0], width=16, steps=20)
    study("warm-4", [6.0, 5.0, 4.0, 3.5, 3.0], seed=1, shrink=0.2, base=base)
    study("warm-5", [6.0, 5.0, 4.0, 3.5, 3.0], seed=1, shrink=0.4, base=longer)
    labels = [arm.label for arm in compared(study).comparisons[0].arms]
    assert len(set(labels)) == 3 and labels[0].startswith("shrink 0.2")
    assert any("at 10.2 tokens/param" in label for label in labels), labels


def test_a_run_that_ended_above_its_start_and_chance_diverged_and_counts_for_nothing(study):
    study("lost", [8.0, 9.0, 9.5], seed=4, shrink=0.4, base=study.folder / "base")
    study("bad_start", [3.0, 3.5, 3.6], seed=5, shrink=0.4, base=study.folder / "base")  # below ln 96: no divergence
    result = compare_all(find([study.folder]).runs)
    assert told(result)["lost"] == "diverged: its last validation loss is 9.5, its first was 8"
    assert "bad_start" not in told(result) or "diverged" not in told(result)["bad_start"]


def test_a_speed_up_beyond_what_the_bases_tokens_are_worth_is_told_beside_it(make_run):
    """The base had a quarter of the target's tokens: 1 / (1 - 1/4) is all that they can save."""
    base = make_run("base", [9.0, 8.0, 7.0], width=16, steps=10)
    for seed in (1, 2, 3):
        make_run(f"scratch-{seed}", [8.0, 7.0, 6.0, 5.0, 4.0], seed=seed)
        make_run(f"warm-{seed}", [6.0, 5.0, 4.0, 3.5, 3.0], seed=seed, shrink=0.4, base=base)
    (comparison,) = compare_all(find([make_run.folder]).runs).comparisons
    told_beside = beyond_growth(comparison)
    assert comparison.arms[0].speed_up.mean == pytest.approx(2.0)
    assert "25% of the target's tokens" in told_beside and "1.33 at most" in told_beside
    assert told_beside in sentences(comparison)
