"""Arms as data: what an arm is, its name, its run from scratch, and what is refused."""

from dataclasses import dataclass

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method import growth
from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.run.optimizer import resolve_optimizer
from litgpt_warmstart.study import arms as arms_module
from litgpt_warmstart.study.arms import by_arm, expand, from_scratch, labels

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
    monkeypatch.setattr(arms_module, "Growth", Noisy)
    monkeypatch.setitem(arms_module.DEFAULTS, "noise", "normal")
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
    assert from_scratch(frame).tolist() == [True] + [False] * 6
    assert [name for name, _ in by_arm(frame, labels(arms)[1])] == labels(arms)[1]


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
        ([dict(shrink="much")], "--arms: shrink 'much': give a number"),
        ([dict(shrink=True)], "--arms: shrink True: give a number"),
        ([dict(shrink={"hidden": [0.5, 1]})], "--arms: --shrink [0.5, 1] of hidden: give a number"),
        ([dict(perturb={"hidden": 1})], "--arms: perturb {'hidden': 1}: give a number"),
        ([dict(perturb_where=None)], "--arms: perturb_where None: give a name, or leave it out"),
        ([dict(optimizer_args=3)], "no 'optimizer_args' to vary: choose from base, target, shrink"),
        ([dict(optimizer=3)], "--optimizer: give a class's name"),
        ([{"optimizer.lr": 0.1}], "a learning rate is no argument of the optimizer here: vary lr_factor"),
        ([dict(optimizer={"class_path": "Adam", "lr": 0.1})], "vary lr_factor, or a grid's --lrs"),
        ([{"optimizer.weight_decay": 0.1, "weight_decay": 0.2}], "weight_decay is given twice"),
        ([dict(shrink={"heads": 1})], "--shrink has no class 'heads'"),
        ([dict(shrink={"hidden": "much"})], "--arms: --shrink 'much' of hidden: give a number"),
        ([dict(operator="pat")], "--operator 'pat' is none of pad, tile"),
        ([dict(growth="quiet", operator="tile")], "--growth quiet would perturb nothing"),
        ([dict(beta2=1.5)], "--arms: beta2 1.5 must lie between 0 and 1"),
        ([dict(beta2="much")], "--arms: beta2 'much': give a number"),
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
