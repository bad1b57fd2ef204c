"""``warmstart_fit``: which runs and losses make a law, what warmstarts are worth by it, and what is refused."""

import math
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from litgpt.utils import save_config

from litgpt_warmstart.commands import warmstart, warmstart_fit, warmstart_scratch
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.flops import matmul_parameters
from litgpt_warmstart.method.laws import Law
from litgpt_warmstart.method.schedule import Schedule
from litgpt_warmstart.report.laws import budgets
from litgpt_warmstart.report.write import write_report
from litgpt_warmstart.run.checkpoint import HYPERPARAMETERS, RECORD
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.spec import TrainArgs
from litgpt_warmstart.study import kinds
from tests.conftest import neox
from tests.report.conftest import FLOPS_PER_TOKEN, PER_STEP, Maker
from tests.study.conftest import rows

LAW = Law(E=1.2, A=150.0, alpha=0.5, B=300.0, beta=0.55)
N = {width: matmul_parameters(neox(width, 2)) for width in (16, 48, 96)}
BUDGETS = (40, 80, 160, 320)
"""Optimizer steps."""


@pytest.fixture
def make_run(tmp_path) -> Maker:
    return Maker(tmp_path / "runs")


def loss(width: int, steps: int) -> float:
    """By the law, from scratch."""
    return LAW.loss(N[width], steps * PER_STEP)


def curve(width: int, steps: int, factor: float = 1.0) -> list[float]:
    """A run's validations, at its start and eight times after it; the start is the vocabulary's logarithm."""
    return [math.log(96), *(loss(width, steps * eighth // 8) * factor for eighth in range(1, 9))]


def add_scratch(make_run: Maker, noise: float = 0.0, seeds: int = 1, budgets: tuple[int, ...] = BUDGETS) -> None:
    """Runs from scratch of three sizes with losses by the law, times e^noise."""
    draws = random.Random(0)
    for width in N:
        for steps in budgets:
            for seed in range(seeds):
                losses = curve(width, steps, math.exp(draws.gauss(0, noise)))
                make_run(f"scratch-{width}-{steps}-{seed}", losses, width=width, steps=steps, seed=seed)


def add_warmstart(make_run: Maker, ahead: float, name: str = "warm", steps: int = 80, seed: int = 1) -> None:
    """Width 48 grown to 96, at the loss that scratch has after so many times its tokens."""
    base = make_run.folder / "scratch-48-40-0"
    losses = [math.log(96), LAW.loss(N[96], ahead * steps * PER_STEP)]
    make_run(name, losses, width=96, steps=steps, shrink=0.4, base=base, seed=seed)


def fit(runs: Path, out_dir: Path, **options: object) -> None:
    warmstart_fit.setup.__wrapped__([runs], out_dir, **options)


def constants(out_dir: Path) -> dict[str, dict[str, float]]:
    return {row.pop("constant"): {k: float(v or "nan") for k, v in row.items()} for row in rows(out_dir / "law.csv")}


def test_a_law_is_found_again_from_runs_and_a_warmstart_is_worth_what_it_is(make_run, tmp_path, capsys):
    add_scratch(make_run)
    add_warmstart(make_run, 1.6)
    fit(make_run.folder, tmp_path / "out", resamples=20)
    found = constants(tmp_path / "out")
    assert {name: row["value"] for name, row in found.items()} == pytest.approx(
        vars(LAW) | {"a": 0.55 / 1.05}, rel=1e-2
    )
    (warm,) = rows(tmp_path / "out/warmstarts.csv")
    scratch, base = (steps * PER_STEP * FLOPS_PER_TOKEN[width] for steps, width in ((80, 96), (40, 48)))
    assert float(warm["speed_up"]) == pytest.approx(1.6, rel=1e-3)
    assert float(warm["share_of_scratch_hoffmann_flops"]) == pytest.approx(1 / 1.6, rel=1e-3)
    assert float(warm["speed_up_with_base"]) == pytest.approx(1.6 * scratch / (scratch + base), rel=1e-3)
    assert float(warm["tokens_from_scratch"]) == pytest.approx(1.6 * 80 * PER_STEP, rel=1e-3)
    assert float(warm["speed_up_limit"]) == pytest.approx(1 / (1 - 40 / (1.6 * 80)), rel=1e-3)
    assert warm["distrust"] == "True" and warm["extrapolated"] == "False"  # 128 steps' worth of 80, after a base's 40
    told = capsys.readouterr().out
    assert "12 losses of 12 runs from scratch of 3 sizes, --schedule constant" in told
    assert "1.60 (1.60 to 1.60)" in told and "distrust" in told and "62.5%" in told
    assert (tmp_path / "out/law.png").read_bytes().startswith(b"\x89PNG")
    points = rows(tmp_path / "out/points.csv")
    assert {int(row["matmul_parameters"]) for row in points} == set(N.values())
    assert all(abs(float(row["residual"])) < 1e-4 for row in points)


@pytest.mark.parametrize(("ahead", "distrust"), [(1.45, False), (1.55, True)])
def test_more_than_the_bases_tokens_are_worth_is_one_to_distrust(make_run, tmp_path, ahead, distrust):
    """The base had 40 steps' tokens, the warmstart 80: what is worth more than 120 from scratch is not growth's."""
    add_scratch(make_run)
    add_warmstart(make_run, ahead)
    fit(make_run.folder, tmp_path / "out", resamples=20)
    assert rows(tmp_path / "out/warmstarts.csv")[0]["distrust"] == str(distrust)


def test_with_noise_the_intervals_cover_the_law_and_the_warmstarts_worth(make_run, tmp_path):
    add_scratch(make_run, noise=0.01, seeds=3)
    for seed, ahead in enumerate((1.3, 1.2, 1.1)):
        add_warmstart(make_run, ahead, f"warm-{seed}", seed=seed)
    fit(make_run.folder, tmp_path / "out", resamples=40)
    for name, row in constants(tmp_path / "out").items():
        true = (vars(LAW) | {"a": 0.55 / 1.05})[name]
        assert row["low"] <= true <= row["high"] and row["low"] < row["value"] < row["high"], name
    (warm,) = rows(tmp_path / "out/warmstarts.csv")
    assert warm["seeds"] == "3" and float(warm["speed_up_low"]) < 1.2 < float(warm["speed_up_high"])
    again = tmp_path / "again"
    fit(make_run.folder, again, resamples=40)
    assert (again / "law.csv").read_bytes() == (tmp_path / "out/law.csv").read_bytes()  # the same seed
    fit(make_run.folder, again, resamples=40, seed=1)
    assert (again / "law.csv").read_bytes() != (tmp_path / "out/law.csv").read_bytes()


def test_below_what_scratch_comes_down_to_a_warmstart_is_worth_more_than_any_number_of_tokens(
    make_run, tmp_path, capsys
):
    add_scratch(make_run)
    add_warmstart(make_run, math.inf)
    losses = [math.log(96), 0.9 * LAW.floor(N[96])]
    make_run("deep", losses, width=96, steps=160, shrink=0.6, base=make_run.folder / "scratch-48-40-0")
    fit(make_run.folder, tmp_path / "out", resamples=20)
    deep = next(row for row in rows(tmp_path / "out/warmstarts.csv") if "shrink 0.6" in row["warmstart"])
    assert deep["speed_up"] == "inf" and float(deep["share_of_scratch_hoffmann_flops"]) == 0
    assert deep["distrust"] == deep["extrapolated"] == "True" and "unbounded" in capsys.readouterr().out


def test_of_runs_that_differ_in_learning_rate_or_batch_alone_the_best_is_taken(make_run, tmp_path, capsys):
    add_scratch(make_run)
    for width in N:
        for steps in BUDGETS:  # at a learning rate that is too high
            make_run(f"high-{width}-{steps}", curve(width, steps, 1.1), width=width, steps=steps, base_lr=0.08)
    fit(make_run.folder, tmp_path / "out", resamples=20)
    assert constants(tmp_path / "out")["E"]["value"] == pytest.approx(LAW.E, rel=1e-2)
    assert "12 losses of 12 runs" in (told := capsys.readouterr().out) and "12 left out for a better" in told


def test_budgets_that_batches_cut_to_whole_steps_are_one():
    assert budgets([1000, 1019, 990, 1021, 1041], ["a", "b", "c", "d", "e"]) == [990, 1019, 990, 1019, 1041]


def test_validations_of_one_run_are_no_one_budget_however_close():
    assert budgets([1000, 1010, 1000, 1005, 1010], ["a", "a", "b", "c", "b"]) == [1000, 1010, 1000, 1000, 1010]


def test_of_many_validations_of_a_warmstart_some_are_shown_and_all_written(make_run, tmp_path, capsys):
    add_scratch(make_run, budgets=(320,))
    losses = [math.log(96), *(loss(96, step) / 1.01 for step in range(10, 330, 10))]
    for seed in (0, 1):
        base = make_run.folder / "scratch-48-320-0"
        make_run(f"warm-{seed}", losses, width=96, steps=320, shrink=0.4, base=base, seed=seed)
    fit(make_run.folder, tmp_path / "out", points="validations", from_tokens_per_param=0.1, resamples=20)
    written = rows(tmp_path / "out/warmstarts.csv")
    assert [row["seeds"] for row in written] == ["2"] * 32
    told = capsys.readouterr().out
    assert "8 of 32 rows; warmstarts.csv has all" in told
    losses = [float(row.split()[10]) for row in told.splitlines() if row.startswith("shrink 0.4, ")]
    assert losses == pytest.approx([loss(96, step) / 1.01 for step in (10, 20, 30, 40, 70, 120, 200, 320)], abs=1e-4)


def test_validations_are_points_at_a_constant_rate_each_once(make_run, tmp_path):
    add_scratch(make_run, budgets=(320,))
    make_run("scratch-48-40-0", curve(48, 40), width=48, steps=40, seed=0)  # the first eighth of another
    add_warmstart(make_run, 1.3)
    with pytest.raises(UserError, match="4 points, 1 of 3 sizes .* --points validations"):
        fit(make_run.folder, tmp_path / "out", resamples=20)
    fit(make_run.folder, tmp_path / "out", points="validations", from_tokens_per_param=0, resamples=20)
    found = {name: row["value"] for name, row in constants(tmp_path / "out").items()}
    assert found == pytest.approx(vars(LAW) | {"a": 0.55 / 1.05}, rel=1e-2)
    points = [(row["model"], row["tokens"]) for row in rows(tmp_path / "out/points.csv")]
    assert len(points) == len(set(points)) == 3 * 8 + 7
    assert float(rows(tmp_path / "out/warmstarts.csv")[0]["speed_up"]) == pytest.approx(1.3, rel=1e-3)
    fit(make_run.folder, tmp_path / "out", points="validations", resamples=20)
    least = min(int(row["tokens"]) / int(row["parameters"]) for row in rows(tmp_path / "out/points.csv"))
    assert least == 1  # by default where the start is over


def test_where_each_size_has_one_run_there_are_no_intervals_and_that_is_told(make_run, tmp_path, capsys):
    add_scratch(make_run, budgets=(320,))
    fit(make_run.folder, tmp_path / "out", points="validations", from_tokens_per_param=0)
    assert math.isnan(constants(tmp_path / "out")["E"]["low"]) and not (tmp_path / "out/warmstarts.csv").exists()
    assert "3 of 3 sizes have one run" in capsys.readouterr().out


def test_runs_that_tell_nothing_are_named_and_not_counted(make_run, tmp_path, capsys):
    add_scratch(make_run)
    make_run("going", [5.0, 4.0], steps=30, planned=40, checkpoint="step-00000030")
    make_run("nan", [5.0, math.nan])
    make_run("on", [5.0, 4.0], base=make_run.folder / "scratch-48-40-0")
    fit(make_run.folder, tmp_path / "out", resamples=20)
    told = capsys.readouterr().out
    assert "12 losses" in told and "Not counted: going: not finished: step 30 of 40" in told
    assert "Not counted: nan: diverged" in told and "Not counted: on: it is continued" in told


def test_the_page_shows_the_law_of_a_folder_and_not_that_of_a_damaged_one(make_run, tmp_path):
    add_scratch(make_run)
    add_warmstart(make_run, 1.2)
    fit(make_run.folder, tmp_path / "out", resamples=20)
    shutil.copytree(tmp_path / "out", tmp_path / "torn")
    (tmp_path / "torn/points.csv").write_text("run,tokens\na,1\n")
    sections = write_report([make_run.folder, tmp_path / "out", tmp_path / "torn"], tmp_path / "page", kinds())
    (shown,) = [section for section in sections if section.title == "Laws"]
    assert len(shown.parts) == 1 and "torn: damaged" in shown.notes[0]
    page = (tmp_path / "page/index.html").read_text()
    assert "1.20 (1.20 to 1.20)" in page and 'id="law-1-' in page
    assert len(rows(tmp_path / "page/tables/law_points_1.csv")) == 12
    points = shown.parts[0].figures[0].points
    assert any("by the law" in words for *_, words in points) and any("shrink 0.4" in words for *_, words in points)


def changed(make_run: Maker, name: str, **training: object) -> None:
    """One more run, whose record says something else of its training."""
    record = Record.load(make_run.folder / "scratch-48-40-0/final" / RECORD)
    make_run(name, curve(48, 40), training=record.training | training)


LINEAR = Schedule("linear", 40, min_lr_ratio=0.1).plain
OTHERS = {
    "data": lambda make_run: make_run("other", curve(48, 40), data="another text"),
    "vocabulary": lambda make_run: make_run("other", curve(48, 40), vocabulary=128),
    "validation blocks": lambda make_run: make_run("other", curve(48, 40), max_iters=11),
    "block size": lambda make_run: changed(make_run, "other", block_size=32),
    "schedule": lambda make_run: changed(make_run, "other", schedule=LINEAR),
    "optimizer": lambda make_run: changed(make_run, "other", optimizer="Adam"),
    "precision": lambda make_run: changed(make_run, "other", precision="bf16-mixed"),
    "parametrization": lambda make_run: make_run("other", curve(48, 40), parametrization="sp"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_runs_that_are_not_of_one_law_are_named_with_what_differs(make_run, tmp_path, what):
    add_scratch(make_run, budgets=(40, 80))
    OTHERS[what](make_run)
    with pytest.raises(UserError, match=f"their {what} differs") as error:
        fit(make_run.folder, tmp_path / "out")
    assert "other'" in str(error.value) and "scratch-16-40-0'" in str(error.value)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_warmstart_of_other_data_is_refused_as_well(make_run, tmp_path):
    add_scratch(make_run, budgets=(40, 80))
    base = make_run.folder / "scratch-48-40-0"
    make_run("warm", curve(96, 80), width=96, shrink=0.4, base=base, data="another text")
    with pytest.raises(UserError, match="their data differs"):
        fit(make_run.folder, tmp_path / "out")


def test_cooldowns_of_one_fraction_are_one_schedule_though_their_steps_differ(make_run, tmp_path, capsys):
    add_scratch(make_run)
    for final in make_run.folder.glob("*/final"):
        record = Record.load(final / RECORD)
        cooled = Schedule("wsd", record.step_count, cooldowns=((record.step_count * 4 // 5, record.step_count),))
        replace(record, training=record.training | {"schedule": cooled.plain}).save(final / RECORD)
        asked = {"eval": {"max_iters": 10}, "schedule": "wsd", "train": {"cooldown_fraction": 0.2}}
        (final / HYPERPARAMETERS).write_text(yaml.safe_dump(asked))
    fit(make_run.folder, tmp_path / "out", resamples=20)
    assert "12 losses of 12 runs from scratch of 3 sizes, --schedule wsd" in capsys.readouterr().out


def test_of_several_schedules_one_may_be_taken(make_run, tmp_path, capsys):
    add_scratch(make_run)
    changed(make_run, "cooled", schedule=LINEAR)
    with pytest.raises(UserError, match="their schedule differs.* such as --schedule constant"):
        fit(make_run.folder, tmp_path / "out")
    fit(make_run.folder, tmp_path / "out", schedule="constant", resamples=20)
    assert "12 losses" in (told := capsys.readouterr().out) and "1 run with another schedule" in told
    with pytest.raises(UserError, match="none of the 13 runs that were found has --schedule wsd"):
        fit(make_run.folder, tmp_path / "out", schedule="wsd")


def test_too_few_points_are_told_with_what_is_there_and_what_it_takes(make_run, tmp_path):
    add_scratch(make_run, budgets=(40, 80))
    told = "6 points, 3 of 3 sizes with two budgets or more, 2 budgets in all, are too few"
    with pytest.raises(UserError, match=told):
        fit(make_run.folder, tmp_path / "out")
    shutil.rmtree(make_run.folder / "scratch-96-40-0")
    make_run("scratch-48-160-0", curve(48, 160), steps=160)
    with pytest.raises(UserError, match="6 points, 2 of 3 sizes .*, 3 budgets in all, .* it takes 6 points, 3 sizes"):
        fit(make_run.folder, tmp_path / "out")


def test_validations_of_a_rate_that_comes_down_are_no_points(make_run, tmp_path):
    make_run("scratch-48-40-0", curve(48, 40))
    changed(make_run, "linear", schedule=LINEAR)
    with pytest.raises(UserError, match="--points validations is for a constant learning rate.*linear"):
        fit(make_run.folder / "linear", tmp_path / "out", points="validations")


def test_without_a_run_from_scratch_or_one_that_finished_there_is_no_law(make_run, tmp_path):
    base = make_run("aside", curve(48, 40))
    make_run("study/warm", [5.0, 4.0], width=96, shrink=0.4, base=base)
    with pytest.raises(UserError, match="no run from scratch has finished among the 1 that were found"):
        fit(make_run.folder / "study", tmp_path / "out")
    make_run("going", [5.0, 4.0], steps=30, planned=40, checkpoint="step-00000030")
    with pytest.raises(UserError, match="has finished: Not counted: going: not finished"):
        fit(make_run.folder / "going", tmp_path / "out")


def test_losses_that_do_not_fall_with_tokens_are_no_law(make_run, tmp_path):
    for width in N:
        for steps in BUDGETS:
            make_run(f"{width}-{steps}", [9.0, 3.0 + steps / 1000], width=width, steps=steps)
    with pytest.raises(UserError, match="do not fall with tokens"):
        fit(make_run.folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "told"),
    [(dict(resamples=0), "--resamples 0: give 20"), (dict(resamples=-5), "--resamples -5"),
     (dict(resamples=10**6), "--resamples 1,000,000"), (dict(from_tokens_per_param=-1.0), "--from_tokens_per_param -1"),
     (dict(seed=-1), "--seed -1")],
)  # fmt: skip
def test_nonsense_is_refused(tmp_path, options, told):
    with pytest.raises(UserError, match=told):
        fit(tmp_path, tmp_path / "out", **options)


def test_what_is_not_ours_is_not_replaced(make_run, tmp_path):
    add_scratch(make_run)
    out_dir = tmp_path / "out"
    out_dir.mkdir()
    (out_dir / "points.csv").write_text("mine")
    with pytest.raises(UserError, match="points.csv' was not written by this command"):
        fit(make_run.folder, out_dir)
    with pytest.raises(UserError, match="is the folder of a run"):
        fit(make_run.folder, make_run.folder / "scratch-48-40-0")
    assert (out_dir / "points.csv").read_text() == "mine" and len(list(out_dir.iterdir())) == 1


def shell(*words: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "litgpt_warmstart", "warmstart_fit", *words]
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_command_fits_runs_that_were_trained(tiny_settings, tmp_path):
    """Three widths of two budgets, three in all, and a warmstart."""
    for width, steps in ((16, 8), (16, 16), (32, 8), (32, 16), (48, 8), (48, 24)):
        folder = tmp_path / f"models/{width}"
        folder.mkdir(parents=True, exist_ok=True)
        save_config(neox(width, 2, vocab_size=4096, padded_vocab_size=4096), folder)
        train = TrainArgs(global_batch_size=8, max_steps=steps)
        out_dir = tmp_path / f"runs/scratch-{width}-{steps}"
        warmstart_scratch.setup(target=str(folder), lr=0.02, train=train, out_dir=out_dir, **tiny_settings)
    warmstart.setup(
        base=tmp_path / "runs/scratch-16-16/final", target=str(tmp_path / "models/48"), lr=0.02,
        train=TrainArgs(global_batch_size=8, max_steps=8), out_dir=tmp_path / "runs/warm", **tiny_settings,
    )  # fmt: skip
    done = shell(tmp_path / "runs", "--out_dir", tmp_path / "out", "--resamples", 20)
    assert done.returncode == 0, done.stderr
    assert "6 losses of 6 runs from scratch of 3 sizes" in done.stdout and "shrink 0.4" in done.stdout
    assert {path.name for path in (tmp_path / "out").glob("*.*")} >= {
        "law.csv", "points.csv", "warmstarts.csv", "law.png"
    }  # fmt: skip
    refused = shell(tmp_path / "nowhere", "--out_dir", tmp_path / "out")
    line = f"litgpt warmstart_fit: error: '{tmp_path / 'nowhere'}' does not exist: give the folder of a run"
    assert refused.returncode == 1 and refused.stderr.startswith(line) and len(refused.stderr.splitlines()) == 1
