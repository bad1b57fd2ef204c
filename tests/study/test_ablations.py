"""Ablations as data: arms, the run from scratch beside each, and what is told of them."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import pandas
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from litgpt_warmstart.commands import warmstart_ablations, warmstart_scratch
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method import growth
from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.run.checkpoint import read_header
from litgpt_warmstart.run.optimizer import resolve_optimizer
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.spec import EvalArgs, TrainArgs
from litgpt_warmstart.study import ablations
from litgpt_warmstart.study.ablations import expand, labels, table
from tests.conftest import assert_same_weights
from tests.study.conftest import rows

DEFAULTS = dict(base="5M", target="22M")


def test_an_arm_is_every_combination_of_its_lists_beside_its_run_from_scratch_and_runs_once():
    arms = expand([dict(shrink=[0.2, 0.4], perturb=[0, 1], schedule=["constant", "wsd"])], DEFAULTS)
    assert len(arms) == 2 * 2 * 2 + 2
    assert [(arm.schedule, arm.growth.perturb) for arm in arms if not arm.growth.shrink] == [
        ("constant", 1),
        ("wsd", 1),
    ]
    arms = expand([dict(shrink=[0.2, 0.4]), dict(gains=["shrunk", "reset"])], DEFAULTS)
    growths = [(arm.growth.shrink, arm.growth.gains) for arm in arms]
    assert growths == [(0, "shrunk"), (0.2, "shrunk"), (0.4, "shrunk"), (0.4, "reset")]


def test_shrink_0_is_the_run_from_scratch_but_where_the_perturbation_is_scaled():
    arms = expand([dict(shrink=[0, 0.4], perturb=[0.5, 1], gains=["reset", "copied"])], DEFAULTS)
    none = [(arm.growth.perturb, arm.growth.gains, arm.growth.from_scratch) for arm in arms if not arm.growth.shrink]
    assert none == [(1.0, "shrunk", True), (0.5, "shrunk", False)] and len(arms) == 2 + 4


def test_a_new_option_of_growth_that_is_not_of_the_source_is_varied_at_shrink_0_too(monkeypatch):
    @dataclass(frozen=True)
    class Noisy(growth.Growth):
        noise: str = "normal"

    monkeypatch.setattr(growth, "Growth", Noisy)
    monkeypatch.setattr(ablations, "Growth", Noisy)
    monkeypatch.setitem(ablations.DEFAULTS, "noise", "normal")
    arms = expand([dict(shrink=0, noise=["normal", "uniform"])], DEFAULTS)
    assert [(arm.growth.noise, arm.growth.from_scratch) for arm in arms] == [("normal", True), ("uniform", False)]


def test_an_arms_folder_is_named_as_in_the_first_landing():
    options = dict(shrink=0.2, perturb=0.5, alignment="blocks", gains="reset", tokens_per_param=30, weight_decay=0.1)
    scratch, arm = expand([options | dict(schedule="wsd")], DEFAULTS)
    assert arm.name == "5M-22M-shrink-0.2-perturb-0.5-blocks-reset-tokens_per_param-30-wsd-weight_decay-0.1"
    assert scratch.name == "5M-22M-scratch-tokens_per_param-30-wsd-weight_decay-0.1"


def test_optimizer_beta2_and_the_optimizers_arguments_are_varied():
    given_arms = [{"optimizer": ["Adam", {"class_path": "Muon", "momentum": 0.9}], "beta2": [0.9, 0.99]},
                  {"optimizer.eps": [1e-6, 1e-4], "weight_decay": 0.1}]  # fmt: skip
    arms = [arm for arm in expand(given_arms, DEFAULTS) if arm.growth.shrink]
    found = [resolve_optimizer(arm.trained_with("AdamW")) for arm in arms]
    assert [(one.class_path.rpartition(".")[2], one.init_args) for one in found] == [
        ("Adam", {"betas": [0.9, 0.9], "weight_decay": 0.0}), ("Adam", {"betas": [0.9, 0.99], "weight_decay": 0.0}),
        ("Muon", {"betas": [0.9, 0.9], "weight_decay": 0.0, "momentum": 0.9}),
        ("Muon", {"betas": [0.9, 0.99], "weight_decay": 0.0, "momentum": 0.9}),
        ("AdamW", {"betas": [0.9, 0.95], "weight_decay": 0.1, "eps": 1e-6}),
        ("AdamW", {"betas": [0.9, 0.95], "weight_decay": 0.1, "eps": 1e-4}),
    ]  # fmt: skip
    assert arms[2].name == "5M-22M-shrink-0.4-Muon-momentum-0.9-beta2-0.9"
    assert len({arm.name for arm in arms}) == len(set(labels(arms)[1])) == 6
    assert arms[0].scratch.beta2 == 0.9 and expand([{}], DEFAULTS)[0].trained_with("NAdam") == "NAdam"


def test_an_arm_may_have_a_preset_an_operator_and_shrink_by_class():
    given_arms = [
        dict(growth=["paper", "quiet"], shrink=[0.4, 0.7]), dict(operator="tile", shrink=1), dict(shrink={"gains": 1}),
        dict(growth="quiet", shrink=0),
    ]  # fmt: skip
    arms = expand(given_arms, DEFAULTS)
    assert [arm.name.removeprefix("5M-22M-") for arm in arms] == [
        "scratch", "shrink-0.4", "shrink-0.7", "shrink-0.4-quiet", "shrink-0.7-quiet", "shrink-1-tile",
        "shrink-0.4-shrink-of-gains-1",
    ]  # fmt: skip
    assert arms[0].growth == Growth(0.0) and arms[3].growth == Growth(growth="quiet")
    assert labels(arms)[1][-1] == "shrink 0.4, shrink of gains 1"
    frame = pandas.DataFrame([arm.cells for arm in arms])
    assert ablations.from_scratch(frame).tolist() == [True] + [False] * 6
    assert [name for name, _ in ablations.by_arm(frame, labels(arms)[1])] == labels(arms)[1]


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional=dict(
                shrink=st.lists(st.sampled_from([0, 0.2, 1]), min_size=1), target=st.sampled_from(["22M", "70M"]),
                tokens_per_param=st.sampled_from([20, 30]), alignment=st.sampled_from(["heads", "literal"]),
                weight_decay=st.lists(st.sampled_from([0, 0.1]), min_size=1),
            ),
        ),
        min_size=1, max_size=4,
    )
)  # fmt: skip
def test_arms_have_names_of_their_own_and_each_has_its_scratch_run_before_it(given_arms):
    arms = expand(given_arms, DEFAULTS)
    assert len({arm.name for arm in arms}) == len(set(arms)) == len(arms)
    for i, arm in enumerate(arms):
        assert arm.scratch in arms[: i + 1]
        assert all("/" not in part for part in arm.name)


@pytest.mark.parametrize(
    ("arms", "told"),
    [
        ([], "is empty"),
        ([dict(shirnk=1)], "no 'shirnk' to vary: choose from base, target, shrink"),
        ([dict(shrink=2)], "--shrink must lie in [0, 1]"),
        ([dict(shrink="much")], "could not convert"),
        ([dict(shrink={"heads": 1})], "--shrink has no class 'heads'"),
        ([dict(shrink={"hidden": "much"})], "--arms: "),
        ([dict(operator="pat")], "--operator 'pat' is none of pad, tile"),
        ([dict(growth="quiet", operator="tile")], "--growth quiet would perturb nothing"),
        ([dict(beta2=1.5)], "--arms: beta2 1.5 must lie between 0 and 1"),
        ([dict(beta2="much")], "--arms: "),
        ([dict(gains="lost")], "gains 'lost' is none of shrunk, added, copied, reset"),
        ([dict(schedule="steep")], "schedule 'steep' is none of constant, "),
        ([dict(tokens_per_param=0)], "tokens_per_param must be above 0"),
        (["shrink"], "is no mapping"),
    ],
)
def test_an_arm_that_cannot_be_is_refused_by_name(arms, told):
    with pytest.raises(UserError) as error:
        expand(arms, DEFAULTS)
    assert told in str(error.value) and "\n" not in str(error.value)


def told(*seeds: tuple) -> str:
    """The table of arms, given for each seed the arm, how it and its run from scratch ended, and its tokens of 10."""
    names = ("first_val_loss", "status", "val_loss", "scratch_status", "tokens_to_scratch_val_loss")
    beside = dict(scratch_val_loss=5.0, scratch_tokens_to_scratch_val_loss=10.0)
    found = [arm.options | beside | dict(zip(names, ended, strict=True)) for arm, *ended in seeds]
    frame = pandas.DataFrame(found).astype({"tokens_to_scratch_val_loss": float})
    return table(frame, labels(list(dict.fromkeys(arm for arm, *_ in seeds)))[1]).to_string()


def test_labels_name_what_tells_arms_apart_and_the_table_their_mean_and_deviation():
    arms = expand([dict(shrink=[0.4]), dict(gains="reset", shrink=1)], DEFAULTS)
    shared, names = labels(arms)
    assert shared == "5M -> 22M, 20 tokens per parameter, constant"
    assert names == ["from scratch", "shrink 0.4", "shrink 1, gains reset"]
    scratch, warm, reset = arms
    text = told(
        (scratch, 8.0, "finished", 5.0, "finished", math.nan),
        (warm, 7.0, "finished", 4.0, "finished", 3.0),
        (warm, 7.2, "finished", 9.2, "diverged", math.nan),  # neither slower nor above it
        (warm, 7.1, "finished", 5.1, "finished", math.nan),
        (reset, 7.0, "diverged", None, "finished", math.nan),
        (reset, None, "skipped", None, "finished", math.nan),
    )
    assert "7.1000 ± 0.1000" in text and "6.1000 ± 2.7404" in text
    assert "30% (1 of 2 seeds); 1 ended above it; 1 without a run from scratch" in text
    assert "-; 1 diverged; 1 skipped" in text


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


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(base="nowhere"), "unknown scale 'nowhere'"),
        (dict(eval=EvalArgs(final_validation=False)), "--eval.final_validation false would leave"),
        (dict(optimizer={"class_path": "AdamW", "init_args": {"weight_decay": 0.3}}), "vary weight_decay in --arms"),
        (dict(arms=[dict(shrink=[0, 0.4], perturb=[0, 1])]), "leaves no weights"),
        (dict(target="5M", base="22M"), "is wider than the target"),
        (dict(seeds="a"), "--seeds a: give int values"),
        (dict(train=TrainArgs(max_tokens=4)), "give --tokens_per_param"),
    ],
)
def test_what_a_study_cannot_do_is_one_line(arguments, tmp_path, refused, changes, told):
    small = dict(out_dir=tmp_path, tokens_per_param=1.0, base_tokens_per_param=1.0)
    assert told in refused(warmstart_ablations.setup, **(arguments | small | changes))
