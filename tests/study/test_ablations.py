"""Ablations as data: arms, the run from scratch beside each, and what is told of them."""

import math
import os
from pathlib import Path

import pandas
import pytest
import yaml
from litgpt.data import TextFiles

from litgpt_warmstart.commands import warmstart_ablations, warmstart_scratch
from litgpt_warmstart.data import StdlibText
from litgpt_warmstart.report.compare import compare_all
from litgpt_warmstart.report.runs import find
from litgpt_warmstart.run.checkpoint import read_header
from litgpt_warmstart.run.metrics import FILE_NAME, read_metrics
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.spec import EvalArgs, TrainArgs
from litgpt_warmstart.study import ablations
from litgpt_warmstart.study.ablations import table
from litgpt_warmstart.study.arms import expand, labels
from tests.conftest import assert_same_weights
from tests.study.conftest import rows

DEFAULTS = dict(base="5M", target="22M")


def told(*seeds: tuple) -> str:
    """The table of arms, given for each seed the arm, how it and its run from scratch ended, and its tokens of 10."""
    names = ("first_val_loss", "status", "val_loss", "scratch_status", "tokens_to_scratch_val_loss", ablations.DROP)
    beside = dict(scratch_val_loss=5.0, scratch_tokens_to_scratch_val_loss=10.0)
    found = [arm.options | beside | dict(zip(names, ended, strict=True)) for arm, *ended in seeds]
    frame = pandas.DataFrame(found).astype({"tokens_to_scratch_val_loss": float, ablations.DROP: float})
    return table(frame, labels(list(dict.fromkeys(arm for arm, *_ in seeds)))[1]).to_string()


def test_labels_name_what_tells_arms_apart_and_the_table_their_mean_and_deviation():
    arms = expand([dict(shrink=[0.4]), dict(gains="reset", shrink=1)], DEFAULTS)
    shared, names = labels(arms)
    assert shared == "5M -> 22M, 20 tokens per parameter, constant"
    assert names == ["from scratch", "shrink 0.4", "shrink 1, gains reset"]
    scratch, warm, reset = arms
    text = told(
        (scratch, 8.0, "finished", 5.0, "finished", math.nan, 40.0),
        (warm, 7.0, "finished", 4.0, "finished", 3.0, 8.0),
        (warm, 7.2, "finished", 9.2, "diverged", math.nan, 10.0),  # neither slower nor above it
        (warm, 7.1, "finished", 5.1, "finished", math.nan, math.nan),
        (reset, 7.0, "diverged", None, "finished", math.nan, math.nan),
        (reset, None, "skipped", None, "finished", math.nan, math.nan),
    )
    assert "7.1000 ± 0.1000" in text and "6.1000 ± 2.7404" in text
    assert "30% (1 of 2 seeds); 1 ended above it; 1 without a run from scratch" in text
    assert "-; 1 diverged; 1 skipped" in text
    assert "40.0 (1 of 1 seeds)" in text and "9.0 ± 1.4 (2 of 3 seeds)" in text


def test_last_losses_are_compared_seed_by_seed_with_scratch_and_with_the_first_arm():
    arms = expand([dict(shrink=[0.4, 1.0])], DEFAULTS)
    scratch, paper, other = arms
    found = [
        arm.cells
        | dict(seed=seed, status=status, val_loss=loss, scratch_val_loss=5.0 + seed, val_loss_at_scratch_flops=at)
        for arm, seed, status, loss, at in [
            (scratch, 1, "finished", 6.0, 6.0), (scratch, 2, "finished", 7.0, 7.0),
            (paper, 1, "finished", 5.9, 5.95), (paper, 2, "finished", 6.7, 6.85),
            (other, 1, "finished", 5.8, 5.90), (other, 2, "diverged", 9.9, math.nan),
        ]
    ]  # fmt: skip
    told = ablations.comparison(pandas.DataFrame(found), labels(arms)[1])
    assert told[""].tolist() == ["shrink 0.4", "shrink 1"]  # mean of -0.1 and -0.3, and 12.706 times 0.1 around it
    assert told["less scratch's, equal tokens"].tolist() == [
        "-0.2000 (-1.4706 to +1.0706)",
        "-0.2000 (no interval: one seed)",
    ]
    assert told["equal compute, base's counted"][0].startswith("-0.1000 (")
    # Welch: variances 0.32 and 0.5 of two each, and 1.91 degrees of freedom, down to 1
    assert told["less scratch's, equal tokens, over seeds"].tolist() == [
        "-0.2000 (-8.3358 to +7.9358)", "-0.2000 (no interval: one seed)",
    ]  # fmt: skip
    assert told["less the first arm's"].tolist() == ["+0.0000 (+0.0000 to +0.0000)", "-0.1000 (no interval: one seed)"]


ARMS = [dict(shrink=[0.4]), dict(weight_decay=0.1, schedule="wsd")]


@pytest.fixture(scope="module")
def arguments(tiny, settings, tmp_path_factory) -> dict:
    """ARMS over two seeds, in one folder."""
    return settings | dict(
        base=tiny[16], target=tiny[48], seeds="1,2", arms=ARMS, base_tokens_per_param=0.01, tokens_per_param=0.01,
        out_dir=tmp_path_factory.mktemp("ablations"), lr=0.02,
        train=TrainArgs(global_batch_size=8, micro_batch_size=4, lr_warmup_steps=2, cooldown_steps=2),
    )  # fmt: skip


@pytest.fixture(scope="module")
def study(arguments) -> Path:
    warmstart_ablations.setup(**arguments)
    return arguments["out_dir"]


def record_of(folder: Path, run: str) -> Record:
    record = read_header(folder / "runs" / run / "final").record
    assert record
    return record


def test_arms_train_on_after_one_base_and_are_counted_beside_their_scratch_runs(study):
    found = rows(study / "ablations.csv")
    assert len(found) == 4 * 2 and {row["status"] for row in found} == {"finished"}
    runs = {(float(row["shrink"]), row["schedule"], row["seed"]): row for row in found}
    for row in found:
        beside = runs[0.0, row["schedule"], row["seed"]]
        assert row["scratch_val_loss"] == beside["val_loss"] and row["tokens"] == beside["tokens"]
        at_compute, last = float(row["val_loss_at_scratch_flops"]), float(row["val_loss"])
        assert (at_compute == last) == (row is beside)  # the base's compute is a warmstart's, too
    records = {key: record_of(study, row["run"]) for key, row in runs.items()}
    read = record_of(study, "base-neox-16").data.stop_token
    assert {record.data.start_token for record in records.values()} == {read}
    assert records[0.4, "wsd", "2"].training["optimizer"]["init_args"]["weight_decay"] == 0.1
    assert records[0.4, "wsd", "2"].training["schedule"]["name"] == "wsd"
    assert records[0.4, "constant", "1"].growth.seed == 1
    assert (study / "ablations.png").stat().st_size > 10_000


def test_the_scratch_arm_is_the_run_that_warmstart_scratch_makes(study, tiny, settings, tmp_path):
    own = study / "runs" / "neox-16-neox-48-scratch-tokens_per_param-0.01-seed-2" / "final"
    warmstart_scratch.setup(
        target=tiny[48], mup_base=str(study / "runs/base-neox-16/final"), seed=2, tokens_per_param=0.01,
        out_dir=tmp_path, train=TrainArgs(global_batch_size=8, micro_batch_size=4), **settings,
    )  # fmt: skip
    assert_same_weights(tmp_path / "final", own)

    # And its own --config file makes it again, on the same batches.
    given, written = (
        yaml.safe_load((folder / "hyperparameters.yaml").read_text()) for folder in (tmp_path / "final", own)
    )
    assert {k for k, v in written.items() if v != given[k]} <= {"out_dir", "tokenizer_dir"}


def test_a_finished_study_goes_on_with_more_arms(study, arguments, capsys):
    more = dict(seeds=[1, 2], arms=[dict(shrink=[0.4, 1.0])], name="more")
    warmstart_ablations.setup(**(arguments | more))
    out = capsys.readouterr().out
    assert "5 of 7 runs have ended before" in out and "shrink 1 " in out


def test_an_earlier_answer_does_not_stand_where_there_is_none(study, arguments, tmp_path):
    answer = tmp_path / "ablations-horizons.csv"
    answer.write_bytes((study / answer.name).read_bytes())
    diverging = dict(out_dir=tmp_path, lr=1e12, seeds=[1], arms=[dict(shrink=0.4)])
    warmstart_ablations.setup(**(arguments | diverging))
    assert {row["status"] for row in rows(tmp_path / "ablations.csv")} <= {"diverged", "skipped"}
    assert not answer.exists()


def test_a_base_may_be_a_checkpoint(arguments, base, tmp_path, monkeypatch):
    given = arguments | dict(out_dir=tmp_path, arms=[dict(shrink=0.4)], lr=None)
    warmstart_ablations.setup(**(given | dict(base=str(base), seeds=3)))
    record = record_of(tmp_path, rows(tmp_path / "ablations.csv")[1]["run"])
    assert record.lineage[0].path == str(base) and record.base_lr == 0.02
    monkeypatch.chdir(base.parent.parent)
    warmstart_ablations.setup(**(given | dict(base=os.path.relpath(base), seeds=[3, 4])))  # the same one
    assert len(rows(tmp_path / "ablations.csv")) == 4


def test_schedules_with_options_stand_beside_constant(study, arguments):
    schedules = dict(arms=[dict(schedule=["constant", "warmup"])], seeds=1, name="schedules")
    warmstart_ablations.setup(**(arguments | schedules))
    found = (*rows(study / "ablations.csv"), *rows(study / "schedules.csv"))
    told = {row["schedule"]: record_of(study, row["run"]).training["schedule"] for row in found}
    assert {name: (s.get("warmup_steps", 0), len(s.get("cooldowns", ()))) for name, s in told.items()} == {
        "constant": (0, 0), "warmup": (2, 0), "wsd": (2, 1)
    }  # fmt: skip


@pytest.fixture(scope="module")
def lineages(arguments, stdlib_path, tmp_path_factory) -> Path:
    """Two lineages at a constant rate that are cooled down at the end, too, and scratch at two rates."""
    out_dir = tmp_path_factory.mktemp("lineages")
    of_lineages = dict(
        lineages=True, cooldown_at="0.01", arms=[dict(shrink=0.4), dict(shrink=0, lr_factor=[0.5, 1])],
        out_dir=out_dir, train=TrainArgs(global_batch_size=4, micro_batch_size=4, save_interval=None),
    )  # fmt: skip
    warmstart_ablations.setup(**(arguments | of_lineages))
    return out_dir


def test_each_seed_is_a_lineage_with_a_base_an_order_and_numbers_of_its_own(lineages):
    orders = set()
    for seed in (1, 2):
        base = record_of(lineages, f"base-neox-16-seed-{seed}")
        scratch, grown = (record_of(lineages, f"neox-16-neox-48-{arm}-tokens_per_param-0.01-seed-{seed}")
                          for arm in ("scratch", "shrink-0.4"))  # fmt: skip
        assert base.training["seed"] == scratch.training["seed"] == grown.growth.seed == seed
        assert {one.data.order_seed for one in (base, scratch, grown)} == {seed}
        assert scratch.data.start_token == grown.data.start_token == base.data.stop_token > 0
        assert grown.lineage[0].path.endswith(f"base-neox-16-seed-{seed}/final")
        orders.add(grown.lineage[0].sha256)
    assert len(orders) == 2


def test_the_reports_comparisons_are_over_lineages(lineages):
    comparisons = compare_all(find([lineages])).comparisons
    assert {one.scratch[0].settings["schedule"]["name"] for one in comparisons} == {"constant", "wsd"}
    for (arm,) in (one.arms for one in comparisons):
        assert arm.is_of_lineages and [warm.seed for warm in arm.warm] == [1, 2]
        assert all(warm.settings == scratch.settings for warm, scratch in arm.members)


def test_scratch_is_trained_at_shares_of_the_carried_learning_rate(lineages):
    found = {(row["lr_factor"], row["seed"]): row for row in rows(lineages / "ablations.csv") if row["shrink"] == "0.0"}
    rates = {key: record_of(lineages, row["run"]).base_lr for key, row in found.items()}
    assert rates == {("1.0", "1"): 0.02, ("1.0", "2"): 0.02, ("0.5", "1"): 0.01, ("0.5", "2"): 0.01}
    assert found["0.5", "1"]["run"] == "neox-16-neox-48-scratch-tokens_per_param-0.01-lr_factor-0.5-seed-1"
    assert found["0.5", "1"]["val_loss"] != found["1.0", "1"]["val_loss"]


def test_each_run_is_cooled_down_from_its_own_checkpoint_over_a_fifth_of_the_steps(lineages):
    runs = lineages / "runs"
    assert len(list(runs.glob("*-cooldown-at-*"))) == 3 * 2 and len(rows(lineages / "ablations.csv")) == 3 * 2
    trunk = "neox-16-neox-48-shrink-0.4-tokens_per_param-0.01-seed-2"
    before, cooled = (record_of(lineages, name) for name in (trunk, f"{trunk}-cooldown-at-0.01"))
    ((first, end),) = cooled.training["schedule"]["cooldowns"]
    assert (end, end - first) == (before.step_count, round(0.2 * end)) == (cooled.step_count, 3)
    assert [folder.name for folder in (runs / trunk).glob("step-*")] == [f"step-{first:08d}"]
    assert cooled.lineage == before.lineage and cooled.data == before.data
    losses = [
        {
            row["step"]: (row["loss"], row["learning_rate"])
            for row in read_metrics(runs / name / FILE_NAME)
            if "loss" in row
        }
        for name in (trunk, f"{trunk}-cooldown-at-0.01")
    ]
    same = [step for step in range(1, end + 1) if losses[0][step] == losses[1][step]]
    assert same == list(range(1, first + 2))[: len(same)] and first <= len(same) < end
    assert losses[1][first][1] == 0.02 > losses[1][end][1] > 0


def test_what_is_saved_is_told_at_each_horizon_beside_the_best_scratch(lineages):
    found = rows(lineages / "ablations-horizons.csv")
    arms = ("from scratch", "shrink 0.4", "from scratch, 0.5 x the learning rate")
    assert [(row["arm"], row["rate"]) for row in found] == [(a, rate) for rate in ("constant", "cooled") for a in arms]
    for first, warm, other in (found[:3], found[3:]):
        best = min(float(first["loss"]), float(other["loss"]))
        assert float(warm["scratch_loss"]) == best
        assert float(warm["less_scratch"]) == pytest.approx(float(warm["loss"]) - best)
        assert float(warm["limit_tokens"]) > 0 and warm["seeds"] == warm["scratch_seeds"] == "2"
    constant, cooled = (row for row in found if row["arm"].startswith("shrink"))
    ends = [row["val_loss"] for row in rows(lineages / "ablations.csv") if row["shrink"] == "0.4"]
    assert float(constant["loss"]) == pytest.approx(sum(map(float, ends)) / 2) != float(cooled["loss"])
    assert constant["tokens"] == cooled["tokens"] == str(17 * 4 * 64)


def test_forks_are_counted_from_where_they_begin_and_run_from_the_start_where_no_checkpoint_is(
    lineages, arguments, capsys
):
    again = dict(
        lineages=True, cooldown_at=[0.005], arms=[dict(shrink=0.4)], out_dir=lineages, name="more", seeds=1,
        train=TrainArgs(global_batch_size=4, micro_batch_size=4, save_interval=None),
    )  # fmt: skip
    warmstart_ablations.setup(**(arguments | again | dict(plan="tokens")))
    told = capsys.readouterr().out
    warmstart_ablations.setup(**(arguments | again))
    forks = [record_of(lineages, folder.name) for folder in (lineages / "runs").glob("*-cooldown-at-0.005")]
    assert [(one.step_count, one.training["schedule"]["cooldowns"]) for one in forks] == [(8, [[6, 8]])] * 2
    assert f"{2 * 2 * 4 * 64:,}" in told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(base="nowhere"), "unknown scale 'nowhere'"),
        (dict(eval=EvalArgs(final_validation=False)), "--eval.final_validation false would leave"),
        (dict(optimizer={"class_path": "AdamW", "init_args": {"weight_decay": 0.3}}), "vary weight_decay in --arms"),
        (dict(arms=[dict(shrink=[0, 0.4], perturb=[0, 1])]), "leaves no weights"),
        (dict(target="5M", base="22M"), "is wider than the target"),
        (dict(train=TrainArgs(max_tokens=4)), "give --tokens_per_param"),
        (dict(arms=[dict(lr_factor=0)]), "lr_factor 0 must be above 0"),
        (dict(arms=[dict(moments="carried", optimizer="Muon", schedule="constant")]), "AdamW, betas [0.9, 0.95]"),
        (dict(lineages=True, base_seed=3), "--base_seed has no meaning with --lineages true"),
        (dict(lineages=True, data=TextFiles(Path("."))), "--data TextFiles has none"),
        (dict(lineages=True, data=StdlibText(Path("."), order_seed=3)), "--data.order_seed has no meaning with --lin"),
        (dict(arms=[dict(shrink=0.4)], cooldown_at="0.5,2"), "--cooldown_at 2 is beyond the arms' 1 tokens per"),
        (dict(arms=[dict(schedule="wsd")], horizons=[0.5, 1]), "--horizons 0.5: no arm has a loss to compare"),
        (dict(arms=[dict(shrink=0.4)], cooldown_at="1e-3,1"), "--cooldown_at 0.001 is less than one step of 512"),
        (dict(cooldown_at=1), "an arm has --schedule wsd: leave one"),
        (dict(arms=[dict(shrink=0.4)], cooldown_at="nan"), "--cooldown_at nan must be above 0"),
        (dict(arms=[dict(shrink=0.4)], cooldown_at="soon"), "--cooldown_at soon: give float values"),
    ],
)
def test_what_a_study_cannot_do_is_one_line(arguments, tmp_path, refused, changes, told):
    small = dict(out_dir=tmp_path, tokens_per_param=1.0, base_tokens_per_param=1.0)
    assert told in refused(warmstart_ablations.setup, **(arguments | small | changes))


def test_a_checkpoint_is_no_base_of_lineages_and_no_perturbation_is_its_bases_initialization(
    arguments, base, tiny, refused, tmp_path
):
    given = arguments | dict(out_dir=tmp_path, arms=[dict(shrink=0.4)])
    told = refused(warmstart_ablations.setup, **(given | dict(base=str(base), lineages=True)))
    assert f"--lineages true is for bases that are trained first, and --base {str(base)!r} is a checkpoint" in told
    told = refused(warmstart_ablations.setup, **(given | dict(base=str(base), mup_base=tiny[16])))
    assert "--mup_base is for bases that are trained first" in told
    arms = [dict(moments="carried", optimizer=["AdamW", "Adam"])]  # told before the first run
    told = refused(warmstart_ablations.setup, **(given | dict(base=str(base), arms=arms, plan=None)))
    assert f"--moments carried: base {str(base)!r} was trained with AdamW" in told and "this run has Adam" in told
    assert not (tmp_path / "runs").exists()
    told = refused(warmstart_ablations.setup, **(given | dict(target=tiny[16], base_seed=2)))
    assert "seed 2 is that of its base, too" in told
