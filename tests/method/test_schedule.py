"""Step -> learning-rate multiplier: each schedule against its paper, and what a run does with it."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from litgpt.pretrain import get_lr

from litgpt_warmstart.__main__ import main
from litgpt_warmstart.commands import warmstart_scratch
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.schedule import SCHEDULES, Schedule, ScheduleOptions, cooled, recorded_schedule
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.spec import TrainArgs
from tests.conftest import TRAIN, losses

NAMES = tuple(SCHEDULES)
SHAPES = ("linear", "1-sqrt", "inverse", "exponential")
FIGURES = ("base_lr", "global_batch_size", "tokens_per_step")


def make(name: str, total_steps: int, warmup_steps: int = 0, **given) -> Schedule:
    """A schedule from a user's options and figures of the run."""
    options = ScheduleOptions(warmup_steps, **{key: value for key, value in given.items() if key not in FIGURES})
    return Schedule.of(name, options, total_steps, **{key: given[key] for key in FIGURES if key in given})


def values(schedule: Schedule, *steps: int) -> list[float]:
    return [schedule(step) for step in steps]


# --- each schedule by hand ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (make("constant", 100), {0: 1, 50: 1, 99: 1}),
        (make("warmup", 100, 4), {0: 0, 1: 0.25, 2: 0.5, 3: 0.75, 4: 1, 99: 1}),
        (make("cosine", 12, 2), {0: 0, 1: 0.5, 2: 1, 7: 0.1 + 0.9 * 0.5, 12: 0.1}),
        (make("linear", 12, 2), {0: 0, 1: 0.5, 2: 1, 4: 0.82, 7: 0.55, 12: 0.1}),
        # arXiv 2403.08763: up from the ratio, and back to it along a cosine
        (make("rewarm", 16, 4), {0: 0.1, 2: 0.55, 4: 1, 8: 0.1 + 0.9 * 0.75, 10: 0.55, 12: 0.1 + 0.9 * 0.25, 16: 0.1}),
        # 2405.18392: a fifth, by 1-sqrt, to 0
        (make("wsd", 100, 10), {0: 0, 5: 0.5, 10: 1, 79: 1, 80: 1, 85: 0.5, 99: 1 - math.sqrt(0.95), 100: 0}),
        (make("wsd", 100, cooldown_shape="linear", cooldown_steps=40, min_lr=0.2), {0: 1, 60: 1, 70: 0.8, 100: 0.2}),
        # 2410.05192: a tenth since the one before; halfway 1/lr is between 1 and 10; then straight back to the peak
        (make("wsd-s", 80, 2, cooldown_ends=[20, 40]), {1: 0.5, 2: 1, 18: 1, 19: 1 / 5.5, 20: 1, 38: 1, 39: 1 / 5.5,
         40: 1, 76: 1, 77: 1 / 3.25, 78: 1 / 5.5, 79: 1 / 7.75, 80: 0.1}),
        # it does not rise to a ratio above where it is
        (make("power", 100, power_a=1.0, min_lr=0.5, tokens_per_step=10), {0: 1, 90: 900**-0.51, 100: 900**-0.51}),
    ],
    ids=lambda value: value.name if isinstance(value, Schedule) else "",
)  # fmt: skip
def test_each_schedule_is_its_papers_by_hand(schedule, expected):
    assert values(schedule, *expected) == pytest.approx(list(expected.values()), abs=1e-15)


@given(st.integers(0, 200), st.integers(0, 50), st.floats(0, 1))
def test_cosine_equals_litgpts(step, warmup, min_ratio):
    ours = 0.02 * make("cosine", 200, warmup, min_lr=min_ratio)(step)
    assert math.isclose(ours, get_lr(0.02, step, warmup, 200, 0.02 * min_ratio), rel_tol=1e-12, abs_tol=1e-15)


def test_power_is_the_papers_min_of_lr_max_and_beta_a_n_to_the_b_2408_13359():
    # Its own setting: eta_max 0.02, sequences of 4,096 tokens, a = 4, b = -0.51, exponentially to 0 in the last tenth.
    schedule = make("power", 100_000, 1_000, base_lr=0.02, global_batch_size=128, tokens_per_step=128 * 4096)

    def eta(step: int) -> float:
        return min(0.02, 128 * 4 * (step * 128 * 4096) ** -0.51)

    # 50,000 steps are 2.62144e10 tokens: 512 * exp(-0.51 * 23.98958) = 512 * 4.85896e-6.
    assert 0.02 * schedule(50_000) == pytest.approx(0.00248779, rel=1e-5)
    for step in (1_000, 2_000, 50_000, 90_000):
        assert 0.02 * schedule(step) == pytest.approx(eta(step))
    assert 0.02 * schedule(500) == pytest.approx(0.5 * eta(1_000))  # eq. (8): to where the power law is by then
    assert 0.02 * schedule(95_000) == pytest.approx(eta(90_000) * (math.exp(-0.5) - math.exp(-1)) / (1 - math.exp(-1)))
    assert schedule(100_000) == pytest.approx(0, abs=1e-15)
    # Section 3.2, 10 trillion tokens in batches of 1,024 with the a = 4.6 fitted there: "0.0011".
    run = dict(base_lr=0.02, global_batch_size=1024, tokens_per_step=10**7)
    assert 0.02 * make("power", 10**7, power_a=4.6, cooldown_steps=1, **run)(10**6) == pytest.approx(0.0011, abs=5e-5)


# --- rules that every schedule keeps ------------------------------------------------------------------------------


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Any schedule that the command line can ask for."""
    name = draw(st.sampled_from(NAMES))
    total = draw(st.integers(4, 300))
    warmup = 0 if name == "constant" else draw(st.integers(0, total // 2))
    ends = sorted(draw(st.sets(st.integers(total // 2, total), max_size=3))) if name == "wsd-s" else None
    try:
        return make(
            name, total, warmup, cooldown_shape=draw(st.sampled_from((None, *SHAPES))), cooldown_ends=ends,
            min_lr=draw(st.none() | st.floats(0.01, 1)), cooldown_fraction=draw(st.none() | st.floats(0.01, 0.5)),
            base_lr=draw(st.floats(1e-4, 0.1)), global_batch_size=8, tokens_per_step=draw(st.integers(64, 2**20)),
        )  # fmt: skip
    except UserError:
        assume(False)


@given(schedules())
def test_a_multiplier_lies_in_0_and_1_and_a_warmup_meets_what_comes_after_it(schedule):
    assert all(0 <= schedule(step) <= 1 + 1e-12 for step in range(schedule.total_steps + 1))
    if 1 < schedule.warmup_steps < schedule.total_steps:
        rise = schedule(1) - schedule(0)
        assert schedule(schedule.warmup_steps) == pytest.approx(schedule(0) + schedule.warmup_steps * rise)


@given(schedules())
def test_a_cooldown_begins_at_the_plateau_never_rises_and_ends_at_the_ratio(schedule):
    for first, end in schedule.cooldowns:
        plateau = replace(schedule, cooldowns=())(first)
        cooling = values(schedule, *range(first, end))
        assert cooling[0] == pytest.approx(plateau)
        assert all(b <= a + 1e-12 for a, b in zip(cooling, cooling[1:], strict=False))
        assert end == schedule.total_steps or schedule(end) == replace(schedule, cooldowns=())(end)  # back to the peak
    assume(schedule.warmup_steps < schedule.total_steps and schedule.name not in ("constant", "warmup"))
    ratio = schedule.min_lr_ratio
    if schedule.name == "power":  # whose power law may be below the ratio by then
        ratio = min(ratio, schedule(schedule.cooldowns[-1][0]))
    assert schedule(schedule.total_steps) == pytest.approx(ratio, abs=1e-12)


@given(schedules())
def test_a_schedule_is_the_same_after_a_record_was_written_and_read(schedule):
    assert recorded_schedule(json.loads(json.dumps(schedule.plain))) == schedule


@given(st.sampled_from(SHAPES), st.floats(0.01, 1), st.floats(0.01, 1))
def test_every_shape_meets_both_ends(shape, start, ratio):
    assert cooled(start, start * ratio, 0.0, shape) == pytest.approx(start)
    assert cooled(start, start * ratio, 1.0, shape) == pytest.approx(start * ratio)


def test_what_cools_has_its_papers_defaults_and_checkpoints_are_kept_where_a_run_may_be_lengthened_from():
    defaults = {"wsd": (800, "1-sqrt", 0.0), "wsd-s": (900, "inverse", 0.1), "power": (900, "exponential", 0.0)}
    for name, (first, shape, ratio) in defaults.items():
        schedule = make(name, 1000)
        assert (schedule.cooldowns, schedule.cooldown_shape, schedule.min_lr_ratio) == (((first, 1000),), shape, ratio)
        assert schedule.milestones == (set() if name == "wsd-s" else {first})
    several = make("wsd-s", 80, 2, cooldown_ends=[20, 40])
    assert several.milestones == {20, 40} and make("wsd-s", 80, 2, cooldown_ends=[20, 40, 80]) == several
    assert make("cosine", 100).milestones == make("wsd", 10, cooldown_steps=10).milestones == set()


def test_a_record_from_before_the_cooldowns_still_says_its_schedule():
    old = dict(name="cosine", total_steps=12, warmup_steps=2, min_lr_ratio=0.1)
    assert recorded_schedule(old) == make("cosine", 12, 2) and make("cosine", 12, 2).plain == old
    every = dict(cooldowns=[], cooldown_shape="linear", base_lr=1.0, global_batch_size=1, tokens_per_step=1,
                 power_a=4.0, power_b=-0.51)  # fmt: skip
    assert recorded_schedule(old | every) == make("cosine", 12, 2)  # as version 0.1 told it
    wsd = dict(name="wsd", total_steps=9, cooldowns=[[9, 8]])
    for wrong in (dict(name="cosin", total_steps=1), dict(old, total_steps="12"), wsd):
        with pytest.raises(UserError):
            recorded_schedule(wrong)


@pytest.mark.parametrize(
    ("before", "now", "step"),
    [
        (make("constant", 10), make("constant", 99), None),
        (make("warmup", 10, 2), make("warmup", 99, 2), None),
        (make("warmup", 10, 2), make("warmup", 99, 3), 1),
        (make("cosine", 10, 2), make("cosine", 11, 2), 3),
        (make("wsd", 10, 2), make("wsd", 20, 2), 9),
        (make("wsd", 10, 2), make("warmup", 20, 2), 9),
        (make("wsd-s", 20, 2), make("wsd-s", 40, 2), 19),
        (make("wsd-s", 20, 2), make("wsd-s", 40, 2, cooldown_ends=[20]), None),
    ],
)
def test_the_first_step_with_another_multiplier(before, now, step):
    assert before.first_difference(now, before.total_steps) == step


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


def test_a_wsd_run_logs_its_learning_rates_and_goes_on_longer_from_before_its_cooldown(run, refused, tmp_path, capsys):
    expected = [0, 0.5, 1, 1, 1, 1, 1, 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75)]
    assert run(WSD, "wsd") == pytest.approx(expected)
    assert "schedule wsd, 2 warmup steps, 1-sqrt to 0 in steps 6 to 10" in capsys.readouterr().out
    longer = replace(WSD, max_steps=12)
    told = refused(run, longer, "wsd", resume=True)  # from final/
    assert "wsd, 2 warmup steps, 1-sqrt to 0 in steps 6 to 10, now wsd" in told
    assert f"pass --resume {tmp_path / 'step-00000006'}" in told
    rates = run(longer, "wsd", resume=tmp_path / "step-00000006")
    assert rates == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 1, *expected[6:]])
    assert Record.load(tmp_path / "final/warmstart.yaml").training["schedule"]["cooldowns"] == [[8, 12]]


def test_wsd_s_goes_on_from_its_cooled_end_which_stays(run, refused, tmp_path):
    train = replace(TRAIN, max_steps=4, cooldown_steps=2)
    first = [1, 1, 1, 1 / 5.5]
    assert run(train, "wsd-s") == pytest.approx(first)
    told = refused(run, replace(train, max_steps=8), "wsd-s", resume=True)
    assert "pass --train.cooldown_ends [4] to go on after its end" in told
    assert run(replace(train, max_steps=8, cooldown_ends=[4]), "wsd-s", resume=True) == pytest.approx(first * 2)
    assert Record.load(tmp_path / "step-00000004/warmstart.yaml").step_count == 4  # what was final/
    assert Record.load(tmp_path / "final/warmstart.yaml").step_count == 8


def test_a_longer_cosine_is_refused_in_one_line(run, refused):
    run(replace(TRAIN, max_steps=4), "cosine")
    told = refused(run, replace(TRAIN, max_steps=8), "cosine", resume=True)
    assert "schedule was cosine, to 0.1 in steps 0 to 4, now cosine, to 0.1 in steps 0 to 8" in told
    assert "from step 1 on: pass the schedule that the run was started with" in told


@pytest.mark.parametrize(
    ("schedule", "train", "told"),
    [
        ("constant", dict(lr_warmup_steps=5), "--train.lr_warmup_steps has no meaning with --schedule constant"),
        ("constant", dict(cooldown_steps=2), "--train.cooldown_steps has no meaning with --schedule constant"),
        ("linear", dict(cooldown_shape="linear"), "use --schedule wsd or wsd-s or power"),
        ("wsd", dict(cooldown_ends=[2]), "--train.cooldown_ends has no meaning with --schedule wsd"),
        ("wsd", dict(power_a=3.0), "--train.power_a has no meaning with --schedule wsd"),
        ("warmup", dict(lr_warmup_steps=1, min_lr=0.1), "--train.min_lr has no meaning with --schedule warmup"),
        ("warmup", dict(lr_warmup_steps=7), "a warmup of 7 steps is longer than the run of 6"),
        ("rewarm", dict(), "--schedule rewarm needs --train.lr_warmup_steps"),
        ("cosine", dict(lr_warmup_fraction=2.0), "--train.lr_warmup_fraction must lie in [0, 1], got 2.0"),
        ("cosine", dict(lr_warmup_steps=-5), "--train.lr_warmup_steps must not be negative, got -5"),
        ("cosine", dict(min_lr=2.0), "--train.min_lr must lie in [0, 1], got 2.0"),
        ("wsd", dict(cooldown_steps=1, cooldown_fraction=0.1), "exclude each other"),
        ("wsd", dict(cooldown_steps=0), "--train.cooldown_steps must be above 0"),
        ("wsd", dict(cooldown_fraction=1.5), "--train.cooldown_fraction must lie in [0, 1]"),
        ("wsd", dict(cooldown_steps=7), "a cooldown of 7 steps to step 6 does not fit after step 0"),
        ("wsd", dict(cooldown_steps=4, lr_warmup_steps=3), "4 steps to step 6 does not fit after step 3"),
        ("wsd", dict(cooldown_shape="inverse"), "never reaches 0: set --train.min_lr above 0"),
        ("wsd-s", dict(min_lr=0.0), "never reaches 0"),
        ("wsd-s", dict(cooldown_ends=[3, 2]), "--train.cooldown_ends must be above 0 and increase, got [3, 2]"),
        ("wsd-s", dict(cooldown_ends=[0]), "must be above 0 and increase"),
        ("wsd-s", dict(cooldown_ends=[7]), "--train.cooldown_ends 7 is beyond the run of 6 steps"),
        ("wsd-s", dict(cooldown_ends=[4], cooldown_steps=3), "3 steps to step 6 does not fit after step 4"),
        ("power", dict(power_a=0.0), "--train.power_a must be above 0"),
        ("power", dict(power_b=0.5), "--train.power_b must be below 0, got 0.5"),
        ("power", dict(power_b=0.0), "--train.power_b must be below 0, got 0.0"),
    ],
)
def test_what_cannot_be_or_would_do_nothing_is_refused_in_one_line(run, refused, schedule, train, told):
    assert told in refused(run, replace(TRAIN, **train), schedule)


def test_no_warmup_may_be_said_to_every_schedule_that_needs_none():
    for option in ("lr_warmup_steps", "lr_warmup_fraction"):
        ScheduleOptions(**{option: 0}).check_schedule("constant")


def test_an_unknown_schedule_is_refused_with_the_choices(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["litgpt-warmstart", "warmstart", "--schedule", "cosin"])
    with pytest.raises(SystemExit) as error:
        main()
    (told,) = capsys.readouterr().err.splitlines()
    assert error.value.code == 2 and all(name in told for name in NAMES)


@pytest.mark.parametrize("typed", ["20,40", "[20, 40]", [20, 40]])
def test_cooldown_ends_are_typed_with_commas(typed):
    assert TrainArgs(cooldown_ends=typed).cooldown_ends == [20, 40] and TrainArgs(cooldown_ends=20).cooldown_ends == [
        20
    ]
    with pytest.raises(UserError, match="give steps with commas"):
        TrainArgs(cooldown_ends="soon")
