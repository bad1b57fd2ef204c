"""Ablations as data: arms, the run from scratch beside each, and what is told of them."""

import csv
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
from litgpt_warmstart.data import StdlibText
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method import growth
from litgpt_warmstart.run.checkpoint import read_header
from litgpt_warmstart.run.spec import EvalArgs, TrainArgs
from litgpt_warmstart.study import ablations
from litgpt_warmstart.study.ablations import expand, labels, table
from tests.conftest import assert_same_weights

DEFAULTS = dict(base="5M", target="22M")


def test_an_arm_is_every_combination_of_its_lists_beside_its_run_from_scratch():
    arms = expand([dict(shrink=[0.2, 0.4], perturb=[0, 1], schedule=["constant", "wsd"])], DEFAULTS)
    assert len(arms) == 2 * 2 * 2 + 2
    assert [arm.schedule for arm in arms if not arm.growth.shrink] == ["constant", "wsd"]
    assert all(arm.growth.perturb == 1 for arm in arms if not arm.growth.shrink)


def test_shrink_0_is_the_run_from_scratch_but_where_the_perturbation_is_scaled():
    arms = expand([dict(shrink=[0, 0.4], perturb=[0.5, 1], gains=["reset", "copied"])], DEFAULTS)
    none = [(arm.growth.perturb, arm.growth.gains, arm.growth.from_scratch) for arm in arms if not arm.growth.shrink]
    assert none == [(1.0, "shrunk", True), (0.5, "shrunk", False)]
    assert len(arms) == 2 + 4


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


def test_what_two_arms_share_is_run_once():
    arms = expand([dict(shrink=[0.2, 0.4]), dict(gains=["shrunk", "reset"])], DEFAULTS)
    assert [(arm.growth.shrink, arm.growth.gains) for arm in arms] == [
        (0, "shrunk"),
        (0.2, "shrunk"),
        (0.4, "shrunk"),
        (0.4, "reset"),
    ]


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
    rows = [
        dict(**arm.options, first_val_loss=first, status=status, val_loss=last, scratch_status=beside,
             scratch_val_loss=5.0, tokens_to_scratch_val_loss=math.nan if reached is None else reached,
             scratch_tokens_to_scratch_val_loss=10.0)
        for arm, first, status, last, beside, reached in seeds
    ]  # fmt: skip
    names = labels(list(dict.fromkeys(seed[0] for seed in seeds)))[1]
    return table(pandas.DataFrame(rows), names).to_string()


def test_a_seed_whose_run_from_scratch_diverged_counts_neither_as_slower_nor_as_above_it():
    scratch, warm = expand([dict(shrink=0.4)], DEFAULTS)
    text = told(
        (scratch, 8.0, "finished", 5.0, "finished", None),
        (scratch, 8.0, "diverged", 9.0, "diverged", None),
        (warm, 8.0, "finished", 5.5, "finished", 5.0),
        (warm, 8.0, "finished", 9.5, "diverged", None),
    )
    assert "50% (1 of 1 seeds); 1 ended above it; 1 without a run from scratch" in text


def test_labels_name_what_tells_arms_apart_and_the_table_their_mean_and_deviation():
    arms = expand([dict(shrink=[0.4]), dict(gains="reset", shrink=1)], DEFAULTS)
    shared, names = labels(arms)
    assert shared == "5M -> 22M, 20 tokens per parameter, constant"
    assert names == ["from scratch", "shrink 0.4", "shrink 1, gains reset"]
    scratch, warm, reset = arms
    text = told(
        (scratch, 8.0, "finished", 5.0, "finished", None),
        (warm, 7.0, "finished", 4.0, "finished", 3.0),
        (warm, 7.2, "finished", 4.2, "diverged", None),
        (warm, 7.1, "finished", 5.1, "finished", None),
        (reset, 7.0, "diverged", None, "finished", None),
        (reset, None, "skipped", None, "finished", None),
    )
    assert "7.1000 ± 0.1000" in text and "4.4333 ± 0.5859" in text
    assert "30% (1 of 2 seeds); 1 ended above it; 1 without a run from scratch" in text
    assert "-; 1 diverged; 1 skipped" in text


ARMS = [dict(shrink=[0.4]), dict(weight_decay=0.1, schedule="wsd")]
EVAL = EvalArgs(interval=100, max_iters=4)


@pytest.fixture(scope="module")
def ablate(tiny, stdlib_path, tmp_path_factory):
    """Carries out ARMS over two seeds, or what is changed of that, in one folder, which it gives."""

    def run(**changes: object) -> Path:
        settings = dict(
            base=tiny[16], target=tiny[48], seeds="1,2", arms=ARMS, base_tokens_per_param=0.01, tokens_per_param=0.01,
            out_dir=tmp_path_factory.getbasetemp() / "ablations", lr=0.02, data=StdlibText(stdlib_path),
            train=TrainArgs(global_batch_size=8, micro_batch_size=4, lr_warmup_steps=2, cooldown_steps=2),
            precision="32-true", compile=False, logger_name="csv", eval=EVAL,
        )  # fmt: skip
        warmstart_ablations.setup(**(settings | changes))
        return Path(str((settings | changes)["out_dir"]))

    return run


@pytest.fixture(scope="module")
def study(ablate) -> Path:
    return ablate()


def read(folder: Path, name: str = "ablations") -> list[dict]:
    with (folder / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_arms_train_on_after_one_base_and_are_counted_beside_their_scratch_runs(study):
    rows = read(study)
    assert len(rows) == 4 * 2 and {row["status"] for row in rows} == {"finished"}
    runs = {(float(row["shrink"]), row["schedule"], row["seed"]): row for row in rows}
    for row in rows:
        beside = runs[0.0, row["schedule"], row["seed"]]
        assert row["scratch_val_loss"] == beside["val_loss"] and row["tokens"] == beside["tokens"]
    base = read_header(study / "runs" / "base-neox-16" / "final").record
    records = {key: read_header(study / "runs" / row["run"] / "final").record for key, row in runs.items()}
    assert {record.data.start_token for record in records.values()} == {base.data.stop_token}
    assert records[0.4, "wsd", "2"].training["optimizer"]["init_args"]["weight_decay"] == 0.1
    assert records[0.4, "wsd", "2"].training["schedule"]["name"] == "wsd"
    assert records[0.4, "constant", "1"].growth.seed == 1
    assert (study / "ablations.png").stat().st_size > 10_000


def test_the_scratch_arm_is_the_run_that_warmstart_scratch_makes(study, tiny, stdlib_path, tmp_path):
    (own,) = (row["run"] for row in read(study)
              if (row["shrink"], row["schedule"], row["seed"]) == ("0.0", "constant", "2"))  # fmt: skip
    warmstart_scratch.setup(
        target=tiny[48], mup_base=str(study / "runs" / "base-neox-16" / "final"), seed=2, tokens_per_param=0.01,
        out_dir=tmp_path, precision="32-true", compile=False, logger_name="csv", eval=EVAL,
        train=TrainArgs(global_batch_size=8, micro_batch_size=4), data=StdlibText(stdlib_path),
    )  # fmt: skip
    assert_same_weights(tmp_path / "final", study / "runs" / own / "final")

    # And its own --config file makes it again, on the same batches.
    given = yaml.safe_load((tmp_path / "final/hyperparameters.yaml").read_text())
    written = study / "runs" / own / "final" / "hyperparameters.yaml"
    assert {k for k, v in yaml.safe_load(written.read_text()).items() if v != given[k]} <= {"out_dir", "tokenizer_dir"}


def test_a_finished_study_goes_on_with_more_arms(study, ablate, capsys):
    ablate(seeds=[1, 2], arms=[dict(shrink=[0.4, 1.0])], name="more")
    out = capsys.readouterr().out
    assert "5 of 7 runs have ended before" in out and "shrink 1 " in out


def test_a_base_may_be_a_checkpoint(ablate, base, tmp_path, monkeypatch):
    given = dict(out_dir=tmp_path, arms=[dict(shrink=0.4)], lr=None)
    ablate(base=str(base), seeds=3, **given)
    record = read_header(tmp_path / "runs" / read(tmp_path)[1]["run"] / "final").record
    assert record.lineage[0].path == str(base) and record.base_lr == 0.02
    monkeypatch.chdir(base.parent.parent)
    ablate(base=os.path.relpath(base), seeds=[3, 4], **given)  # the same one
    assert len(read(tmp_path)) == 4


def test_schedules_with_options_stand_beside_constant(study, ablate):
    ablate(arms=[dict(schedule=["constant", "warmup"])], seeds=1, name="schedules")
    told = {row["schedule"]: read_header(study / "runs" / row["run"] / "final").record.training["schedule"]
            for row in (*read(study), *read(study, "schedules"))}  # fmt: skip
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
def test_what_a_study_cannot_do_is_one_line(ablate, tmp_path, capsys, changes, told):
    with pytest.raises(SystemExit) as stopped:
        ablate(**(dict(out_dir=tmp_path, tokens_per_param=1.0, base_tokens_per_param=1.0) | changes))
    err = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 1 and len(err) == 1 and told in err[0]
