"""Step -> learning-rate multiplier: each schedule against its paper, and what a run does with it."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from litgpt.pretrain import get_lr

from litgpt_warmstart.commands import warmstart_scratch
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method import parametrization
from litgpt_warmstart.method.cooldowns import cooled
from litgpt_warmstart.method.schedule import (
    SCHEDULES,
    Constant,
    Cooling,
    Cosine,
    LinearWarmup,
    RunFigures,
    Schedule,
    ScheduleOptions,
    recorded_schedule,
)
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.spec import TrainArgs
from tests.conftest import TRAIN, build, losses, neox

NAMES = tuple(SCHEDULES)
SHAPES = ("linear", "1-sqrt", "inverse", "exponential")


def make_schedule(name: str, total_steps: int, warmup_steps: int = 0, **given: object) -> Schedule:
    """A schedule from a user's options and figures of the run."""
    run = {key: given.pop(key) for key in ("base_lr", "global_batch_size", "tokens_per_step") if key in given}
    options = ScheduleOptions(lr_warmup_steps=warmup_steps, min_lr=given.pop("min_lr_ratio", None), **given)
    return SCHEDULES[name].of(options, RunFigures(total_steps, **run))


def values(schedule: Schedule, *steps: int) -> list[float]:
    return [schedule(step) for step in steps]


# --- each schedule by hand ----------------------------------------------------------------------------------------


def test_constant_is_1_throughout():
    assert {Constant(100)(step) for step in range(100)} == {1.0}


def test_warmup_rises_linearly_and_stays():
    assert values(LinearWarmup(100, 4), 0, 1, 2, 3, 4, 99) == [0, 0.25, 0.5, 0.75, 1, 1]


def test_cosine_by_hand():
    schedule = make_schedule("cosine", 12, 2)
    assert values(schedule, 0, 1, 2, 7, 12) == pytest.approx([0, 0.5, 1, 0.1 + 0.9 * 0.5, 0.1])


@given(st.integers(0, 200), st.integers(0, 50), st.floats(0, 1))
def test_cosine_equals_litgpts(step, warmup, min_ratio):
    ours = 0.02 * Cosine(200, warmup, min_ratio)(step)
    assert math.isclose(ours, get_lr(0.02, step, warmup, 200, 0.02 * min_ratio), rel_tol=1e-12, abs_tol=1e-15)


def test_linear_by_hand():
    assert values(make_schedule("linear", 12, 2), 0, 1, 2, 7, 12) == pytest.approx([0, 0.5, 1, 0.55, 0.1])


def test_rewarm_rises_from_the_ratio_and_falls_back_to_it_2403_08763():
    schedule = make_schedule("rewarm", 14, 4)
    assert values(schedule, 0, 2, 4, 9, 14) == pytest.approx([0.1, 0.55, 1, 0.55, 0.1])
    cosine = make_schedule("cosine", 14, 4)
    assert values(schedule, *range(4, 15)) == values(cosine, *range(4, 15))


def test_wsd_cools_for_a_fifth_by_1_minus_sqrt_to_0_2405_18392():
    schedule = make_schedule("wsd", 100, 10)
    assert schedule.cooldowns == ((80, 100),)
    assert values(schedule, 0, 5, 10, 79, 80, 85, 99, 100) == pytest.approx(
        [0, 0.5, 1, 1, 1, 1 - math.sqrt(5 / 20), 1 - math.sqrt(19 / 20), 0]
    )


def test_wsd_with_a_linear_cooldown_to_a_ratio():
    schedule = make_schedule("wsd", 100, cooldown_shape="linear", cooldown_steps=40, min_lr_ratio=0.2)
    assert values(schedule, 0, 60, 70, 80, 100) == pytest.approx([1, 1, 0.8, 0.6, 0.2])


def test_wsd_s_cools_by_the_inverse_and_goes_straight_back_to_the_peak_2410_05192():
    schedule = make_schedule("wsd-s", 80, 2, cooldown_ends=[20, 40])
    assert schedule.cooldowns == ((18, 20), (38, 40), (76, 80))  # a tenth since the one before
    # Halfway 1/lr is halfway between 1 and 10.
    assert values(schedule, 1, 2, 18, 19, 20, 38, 39, 40) == pytest.approx([0.5, 1, 1, 1 / 5.5, 1, 1, 1 / 5.5, 1])
    assert values(schedule, 76, 77, 78, 79, 80) == pytest.approx([1, 1 / 3.25, 1 / 5.5, 1 / 7.75, 0.1])
    assert make_schedule("wsd-s", 80, 2, cooldown_ends=[20, 40, 80]) == schedule


def test_power_is_the_papers_min_of_lr_max_and_beta_a_n_to_the_b_2408_13359():
    # Its own setting: eta_max 0.02, sequences of 4,096 tokens, a = 4, b = -0.51, exponentially to 0 in the last tenth.
    schedule = make_schedule("power", 100_000, 1_000, base_lr=0.02, global_batch_size=128, tokens_per_step=128 * 4096)

    def eta(step: int) -> float:
        return min(0.02, 128 * 4 * (step * 128 * 4096) ** -0.51)

    # 50,000 steps are 2.62144e10 tokens: 512 * exp(-0.51 * 23.98958) = 512 * 4.85896e-6.
    assert 0.02 * schedule(50_000) == pytest.approx(0.00248779, rel=1e-5)
    for step in (1_000, 2_000, 50_000, 90_000):
        assert 0.02 * schedule(step) == pytest.approx(eta(step))
    assert 0.02 * schedule(500) == pytest.approx(0.5 * eta(1_000))  # eq. (8): to where the power law is by then
    assert 0.02 * schedule(95_000) == pytest.approx(eta(90_000) * (math.exp(-0.5) - math.exp(-1)) / (1 - math.exp(-1)))
    assert schedule(100_000) == pytest.approx(0, abs=1e-15)


def test_power_predicts_the_papers_rate_of_10_trillion_tokens_in_batches_of_1024():
    # Section 3.2, with the a = 4.6 fitted there: "0.0011".
    schedule = make_schedule(
        "power", 10**7, base_lr=0.02, global_batch_size=1024, tokens_per_step=10**7, power_a=4.6, cooldown_steps=1
    )
    assert 0.02 * schedule(10**6) == pytest.approx(0.0011, abs=5e-5)


def test_power_without_warmup_starts_at_the_peak_and_does_not_rise_to_a_ratio_above_it():
    schedule = make_schedule("power", 100, min_lr_ratio=0.5, base_lr=1.0, power_a=1.0, tokens_per_step=10)
    assert schedule(0) == 1.0
    assert values(schedule, 90, 95, 100) == pytest.approx([900**-0.51] * 3)


# --- rules that every schedule keeps ------------------------------------------------------------------------------


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Any schedule that the command line can ask for."""
    name = draw(st.sampled_from(NAMES))
    total = draw(st.integers(4, 300))
    warmup = 0 if name == "constant" else draw(st.integers(0, total // 2))
    ends = sorted(draw(st.sets(st.integers(total // 2, total), max_size=3))) if name == "wsd-s" else ()
    settings = dict(
        cooldown_shape=draw(st.sampled_from((None, *SHAPES))), cooldown_ends=ends,
        min_lr_ratio=draw(st.none() | st.floats(0.01, 1)),
        cooldown_fraction=draw(st.none() | st.floats(0.01, 0.5)), base_lr=draw(st.floats(1e-4, 0.1)),
        global_batch_size=8, tokens_per_step=draw(st.integers(64, 2**20)),
    )  # fmt: skip
    if settings["min_lr_ratio"] is None and name in ("wsd", "power") and settings["cooldown_shape"] == "inverse":
        settings["cooldown_shape"] = None
    try:
        return make_schedule(name, total, warmup, **settings)
    except UserError:
        assume(False)


@given(schedules())
def test_a_multiplier_lies_in_0_and_1(schedule):
    assert all(0 <= schedule(step) <= 1 + 1e-12 for step in range(schedule.total_steps + 1))


@given(schedules())
def test_a_cooldown_begins_at_the_plateau_never_rises_and_ends_at_the_ratio(schedule):
    assume(isinstance(schedule, Cooling))
    for first, end in schedule.cooldowns:
        plateau = replace(schedule, cooldowns=())(first)
        cooling = values(schedule, *range(first, end))
        assert cooling[0] == pytest.approx(plateau)
        assert all(b <= a + 1e-12 for a, b in zip(cooling, cooling[1:], strict=False))
        assert end == schedule.total_steps or schedule(end) == replace(schedule, cooldowns=())(end)  # back to the peak


@given(schedules())
def test_a_decay_ends_with_the_run_at_the_ratio(schedule):
    assume(schedule.warmup_steps < schedule.total_steps and schedule.name not in ("constant", "warmup"))
    end = schedule.min_lr_ratio
    if schedule.name == "power":  # whose power law may be below the ratio by then
        end = min(end, schedule(schedule.cooldowns[-1][0]))
    assert schedule(schedule.total_steps) == pytest.approx(end, abs=1e-12)


@given(schedules())
def test_a_warmup_meets_what_comes_after_it(schedule):
    assume(1 < schedule.warmup_steps < schedule.total_steps and schedule.name != "constant")
    warmup = schedule.warmup_steps
    rise = schedule(1) - schedule(0)
    assert schedule(warmup) == pytest.approx(schedule(0) + warmup * rise)


@given(schedules())
def test_a_schedule_is_the_same_after_a_record_was_written_and_read(schedule):
    assert recorded_schedule(json.loads(json.dumps(schedule.plain))) == schedule


@given(st.sampled_from(SHAPES), st.floats(0.01, 1), st.floats(0.01, 1))
def test_every_shape_meets_both_ends(shape, start, ratio):
    assert cooled(start, start * ratio, 0.0, shape) == pytest.approx(start)
    assert cooled(start, start * ratio, 1.0, shape) == pytest.approx(start * ratio)


def test_checkpoints_are_kept_where_a_run_may_be_lengthened_from():
    assert make_schedule("wsd", 100).milestones == {80}
    assert make_schedule("power", 100).milestones == {90}
    assert make_schedule("wsd-s", 80, cooldown_ends=[20, 40]).milestones == {20, 40}
    assert make_schedule("cosine", 100).milestones == make_schedule("wsd", 10, cooldown_steps=10).milestones == set()


def test_a_record_from_before_the_cooldowns_still_says_its_schedule():
    old = dict(name="cosine", total_steps=12, warmup_steps=2, min_lr_ratio=0.1)
    assert recorded_schedule(old) == make_schedule("cosine", 12, 2)
    every = dict(cooldowns=[], cooldown_shape="linear", base_lr=1.0, global_batch_size=1, tokens_per_step=1,
                 power_a=4.0, power_b=-0.51)  # fmt: skip
    assert recorded_schedule(old | every) == make_schedule("cosine", 12, 2)  # as version 0.1 told it
    for wrong in (dict(name="cosin", total_steps=1), dict(old, total_steps="12"), dict(name="wsd", total_steps=9,
                  cooldowns=[[9, 8]])):  # fmt: skip
        with pytest.raises(UserError):
            recorded_schedule(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_mup_ratios_hold_under_each_schedule(name):
    model = build(neox(48, 6, n_layer=1), neox(16, 2, n_layer=1))
    optimizer = parametrization.build_optimizer(model, torch.optim.AdamW, {}, 0.02)
    schedule = make_schedule(
        name, 20, 4 * (name != "constant"), base_lr=0.02, global_batch_size=1, tokens_per_step=100_000
    )
    for step in (1, 4, 10, 17, 19):
        parametrization.set_learning_rate(optimizer, 0.02, schedule(step))
        rates = {round(g["lr"] / (0.02 * schedule(step)), 9) for g in optimizer.param_groups if g["params"]}
        assert rates == {1.0, round(1 / 3, 9)}, step
        assert all(g["lr"] == pytest.approx(0.02 * schedule(step) * g["lr_scale"]) for g in optimizer.param_groups)


# --- which steps two schedules share ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "now", "step"),
    [
        (make_schedule("constant", 10), make_schedule("constant", 99), None),
        (make_schedule("warmup", 10, 2), make_schedule("warmup", 99, 2), None),
        (make_schedule("warmup", 10, 2), make_schedule("warmup", 99, 3), 1),
        (make_schedule("cosine", 10, 2), make_schedule("cosine", 11, 2), 3),
        (make_schedule("wsd", 10, 2), make_schedule("wsd", 20, 2), 9),
        (make_schedule("wsd", 10, 2), make_schedule("warmup", 20, 2), 9),
        (make_schedule("wsd-s", 20, 2), make_schedule("wsd-s", 40, 2), 19),
        (make_schedule("wsd-s", 20, 2), make_schedule("wsd-s", 40, 2, cooldown_ends=[20]), None),
    ],
)  # fmt: skip
def test_the_first_step_with_another_multiplier(before, now, step):
    assert before.first_difference(now, 10 if before.total_steps == 10 else 20) == step


@given(schedules(), schedules(), st.integers(0, 400))
def test_no_first_difference_means_the_same_multipliers(before, now, steps):
    differ = [s for s in range(steps) if abs(before(s) - now(s)) > 1e-8]
    first = before.first_difference(now, steps)
    assert first <= differ[0] if differ else first is None or math.isclose(before(first), now(first), abs_tol=1e-8)


# --- runs ---------------------------------------------------------------------------------------------------------

WSD = replace(TRAIN, max_steps=10, lr_warmup_steps=2, cooldown_steps=4)


@pytest.fixture
def run(tiny, tiny_settings, tmp_path):
    """Train from scratch with a learning rate of 0.02; returns the logged learning rates over it."""

    def start(train: TrainArgs, schedule: str, **more) -> list[float]:
        shared = dict(target=tiny[16], lr=0.02, out_dir=tmp_path, **tiny_settings)
        warmstart_scratch.setup(train=train, schedule=schedule, **shared | more)
        return [rate / 0.02 for rate in losses(tmp_path, "learning_rate")]

    return start


def test_a_wsd_run_logs_its_learning_rates_and_goes_on_longer_from_before_its_cooldown(run, tmp_path, capsys):
    expected = [0, 0.5, 1, 1, 1, 1, 1, 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75)]
    assert run(WSD, "wsd") == pytest.approx(expected)
    assert "schedule wsd, 2 warmup steps, 1-sqrt to 0 in steps 6 to 10" in capsys.readouterr().out
    longer = replace(WSD, max_steps=12)
    with pytest.raises(SystemExit):
        run(longer, "wsd", resume=True)  # from final/
    told = capsys.readouterr().err
    assert "wsd, 2 warmup steps, 1-sqrt to 0 in steps 6 to 10, now wsd" in told and len(told.splitlines()) == 1
    assert f"pass --resume {tmp_path / 'step-00000006'}" in told
    rates = run(longer, "wsd", resume=tmp_path / "step-00000006")
    assert rates == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 1, *expected[6:]])
    assert Record.load(tmp_path / "final/warmstart.yaml").training["schedule"]["cooldowns"] == [[8, 12]]


def test_wsd_s_goes_on_from_its_cooled_end_which_stays(run, tmp_path, capsys):
    train = replace(TRAIN, max_steps=4, cooldown_steps=2)
    first = [1, 1, 1, 1 / 5.5]
    assert run(train, "wsd-s") == pytest.approx(first)
    with pytest.raises(SystemExit):
        run(replace(train, max_steps=8), "wsd-s", resume=True)
    assert "pass --train.cooldown_ends [4] to go on after its end" in capsys.readouterr().err
    assert run(replace(train, max_steps=8, cooldown_ends=[4]), "wsd-s", resume=True) == pytest.approx(first * 2)
    assert Record.load(tmp_path / "step-00000004/warmstart.yaml").step_count == 4  # what was final/
    assert Record.load(tmp_path / "final/warmstart.yaml").step_count == 8


def test_a_longer_cosine_is_refused_in_one_line(run, capsys):
    run(replace(TRAIN, max_steps=4), "cosine")
    with pytest.raises(SystemExit):
        run(replace(TRAIN, max_steps=8), "cosine", resume=True)
    told = capsys.readouterr().err
    assert "schedule was cosine, to 0.1 in 4 steps, now cosine, to 0.1 in 8 steps" in told
    assert "from step 1 on: pass the schedule that the run was started with" in told and len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("schedule", "train", "told"),
    [
        ("constant", dict(cooldown_steps=2), "--train.cooldown_steps has no meaning with --schedule constant"),
        ("cosine", dict(cooldown_fraction=0.2), "--train.cooldown_fraction has no meaning with --schedule cosine"),
        ("linear", dict(cooldown_shape="linear"), "use --schedule wsd or wsd-s or power"),
        ("wsd", dict(cooldown_ends=[2]), "--train.cooldown_ends has no meaning with --schedule wsd"),
        ("wsd", dict(power_a=3.0), "--train.power_a has no meaning with --schedule wsd"),
        ("warmup", dict(lr_warmup_steps=1, min_lr=0.1), "--train.min_lr has no meaning with --schedule warmup"),
        ("rewarm", dict(), "--schedule rewarm needs --train.lr_warmup_steps"),
        ("wsd", dict(cooldown_steps=1, cooldown_fraction=0.1), "exclude each other"),
        ("wsd", dict(cooldown_steps=0), "--train.cooldown_steps must be above 0"),
        ("wsd", dict(cooldown_fraction=1.5), "--train.cooldown_fraction must lie in (0, 1]"),
        ("wsd", dict(cooldown_steps=7), "a cooldown of 7 steps do not fit into 6 steps"),
        ("wsd", dict(cooldown_steps=4, lr_warmup_steps=3), "a warmup of 3 and a cooldown of 4 steps do not fit into 6"),
        ("wsd", dict(cooldown_shape="inverse"), "never reaches 0: set --train.min_lr above 0"),
        ("wsd-s", dict(min_lr=0.0), "never reaches 0"),
        ("wsd-s", dict(cooldown_ends=[3, 2]), "--train.cooldown_ends must be above 0 and increase, got [3, 2]"),
        ("wsd-s", dict(cooldown_ends=[0]), "must be above 0 and increase"),
        ("wsd-s", dict(cooldown_ends=[7]), "--train.cooldown_ends 7 is beyond the run of 6 steps"),
        ("wsd-s", dict(cooldown_ends=[3], cooldown_steps=4), "do not fit into 3 steps"),
        ("wsd-s", dict(cooldown_ends=[4], cooldown_steps=3), "3 steps to step 6 overlaps the one that ends at 4"),
        ("power", dict(power_a=0.0), "--train.power_a must be above 0"),
        ("power", dict(power_b=0.5), "--train.power_b must be below 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_or_would_do_nothing_is_refused_in_one_line(run, capsys, schedule, train, told):
    with pytest.raises(SystemExit) as error:
        run(replace(TRAIN, **train), schedule)
    output = capsys.readouterr().err
    assert error.value.code == 1 and told in output and len(output.splitlines()) == 1


def test_an_unknown_schedule_is_refused_with_the_choices(monkeypatch, capsys):
    from litgpt_warmstart.__main__ import main

    monkeypatch.setattr("sys.argv", ["litgpt-warmstart", "warmstart", "--schedule", "cosin"])
    with pytest.raises(SystemExit) as error:
        main()
    told = capsys.readouterr().err
    assert error.value.code == 2 and len(told.splitlines()) == 1
    assert all(name in told for name in NAMES)


def test_every_schedule_that_cools_has_defaults_of_its_own():
    defaults = {"wsd": (800, "1-sqrt", 0.0), "wsd-s": (900, "inverse", 0.1), "power": (900, "exponential", 0.0)}
    assert defaults.keys() == {name for name, cls in SCHEDULES.items() if issubclass(cls, Cooling)}
    for name, (first, shape, ratio) in defaults.items():
        schedule = make_schedule(name, 1000)
        assert schedule.cooldowns == ((first, 1000),)
        assert (schedule.cooldown_shape, schedule.min_lr_ratio) == (shape, ratio)


def test_cooldown_ends_are_typed_with_commas():
    assert (
        TrainArgs(cooldown_ends="20,40").cooldown_ends == TrainArgs(cooldown_ends="[20, 40]").cooldown_ends == [20, 40]
    )
    assert TrainArgs(cooldown_ends=20).cooldown_ends == [20]
    with pytest.raises(UserError, match="give steps with commas"):
        TrainArgs(cooldown_ends="soon").check("wsd-s")
