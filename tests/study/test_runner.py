"""Runs of an experiment: each once, also after a stop, a change or a divergence."""

import json
from dataclasses import replace

import pytest
from litgpt.data import TextFiles

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.run import train as pretrain
from litgpt_warmstart.run.spec import Growth
from litgpt_warmstart.study.runner import OUTCOME, Run, carry_out, first_difference, read_outcome, settings
from tests.conftest import losses


@pytest.fixture
def started(monkeypatch) -> list[str]:
    """Names of the folders of the runs that were started, in order."""
    names, setup = [], pretrain.setup

    def noting(spec):
        names.append(spec.out_dir.name)
        return setup(spec)

    monkeypatch.setattr(pretrain, "setup", noting)
    return names


def test_a_finished_run_is_read_and_not_run_again(make_spec, started):
    runs = [Run("a", make_spec("a")), Run("b", make_spec("b", seed=2))]
    first = carry_out(runs)
    assert started == ["a", "b"] and [o.status for o in first.values()] == ["finished"] * 2
    assert first["a"].val_loss == losses(runs[0].spec.out_dir, "val_loss")[-1]
    assert first["a"].tokens == 4 * 4 * 64 and first["a"].step_count == 4 and first["a"].hoffmann_flops > 0
    again = carry_out([*runs, Run("c", make_spec("c", seed=3))])
    assert started == ["a", "b", "c"]
    assert again["a"] == first["a"]


def test_a_run_that_was_killed_goes_on_from_its_checkpoint_and_ends_the_same(make_spec, tmp_path):
    whole = Run("whole", make_spec("whole", max_steps=6))
    cut = Run("cut", make_spec("cut", max_steps=6, save_interval=2))
    pretrain.setup(replace(cut.spec, max_steps=2))  # as far as a killed run got
    (cut.spec.out_dir / "final").rename(cut.spec.out_dir / "step-00000002")
    assert read_outcome(cut) is None
    ended = carry_out([whole, cut])
    assert ended["cut"].val_loss == ended["whole"].val_loss
    assert losses(cut.spec.out_dir) == losses(whole.spec.out_dir)


def test_a_diverged_run_is_a_result_and_what_needs_its_checkpoint_is_skipped(make_spec, started):
    bad = Run("bad", make_spec("bad", lr=1e6))
    grown = replace(make_spec("next"), growth=Growth(bad.spec.out_dir / "final"))
    runs = [bad, Run("next", grown, after=("bad",), data_after=bad.spec.out_dir / "final")]
    ended = carry_out(runs)
    assert ended["bad"].status == "diverged" and "loss is" in ended["bad"].reason
    assert ended["next"].status == "skipped" and ended["next"].reason == "bad diverged"
    carry_out(runs)
    assert started == ["bad"]


def test_a_folder_that_holds_a_run_with_other_settings_is_refused_by_name(make_spec):
    carry_out([Run("a", make_spec("a"))])
    for changed, named in ((make_spec("a", lr=0.01), "lr 0.02, now 0.01"), (make_spec("a", seed=5), "seed 1, now 5")):
        with pytest.raises(UserError, match=named):
            carry_out([Run("a", changed)])


def test_data_that_is_too_short_for_a_later_run_is_told_before_the_first(make_spec, started):
    runs = [Run("short", make_spec("short")), Run("long", make_spec("long", max_steps=20_000, tokens_per_param=100.0))]
    runs[0].spec.data.prepare_data()
    with pytest.raises(UserError, match="long: the data is too short"):
        carry_out(runs)
    assert started == []


def test_the_first_setting_that_differs_is_named_within_dicts_and_unknown_ones_are_left_out():
    before = dict(a=1, b=dict(c=2, d=[3]), gone=4)
    assert first_difference(before, dict(a=1, b=dict(c=2, d=[3]), new=5)) is None
    assert first_difference(before, dict(b=dict(c=2, d=[4]), a=2)) == ("b.d", [3], [4])
    assert first_difference(dict(max_norm=None), dict(max_norm=1.0)) == ("max_norm", None, 1.0)


def test_growth_or_none_and_other_optimizer_arguments_are_differences():
    grown = dict(growth=dict(shrink=0.4))
    assert first_difference(dict(growth={}), grown) == ("growth", {}, dict(shrink=0.4))
    assert first_difference(grown, dict(growth={}))[0] == "growth"
    assert first_difference(grown, dict(growth=dict(shrink=0.4, gains="shrunk"))) is None  # of a later version
    a, b = (dict(optimizer=dict(class_path="AdamW", init_args={name: 1})) for name in ("eps", "beta"))
    assert first_difference(a, b)[0] == "optimizer" and first_difference(a, a) is None


def test_data_of_other_arguments_is_another_run(make_spec, tmp_path):
    given = (("one", 4), ("two", 4), ("two", 8))
    specs = [make_spec("a", data=TextFiles(tmp_path / name, num_workers=workers)) for name, workers in given]
    found = [settings(Run("a", spec)) for spec in specs]
    assert first_difference(found[0], found[1])[0] == "data.init_args.train_data_path"
    assert first_difference(found[1], found[2]) is None


def test_two_runs_of_one_name_are_refused(make_spec):
    with pytest.raises(UserError, match="two runs would both be called 'a'"):
        carry_out([Run("a", make_spec("a")), Run("a", make_spec("b"))])


def test_options_of_ray_without_ray_are_refused():
    for given in (dict(ray_address="auto"), dict(cpus_per_run=2), dict(gpus_per_run=0.5)):
        with pytest.raises(UserError, match="are for --executor ray"):
            carry_out([], **given)


def test_a_damaged_outcome_is_told_in_one_line(make_spec):
    run = Run("a", make_spec("a"))
    run.spec.out_dir.mkdir(parents=True)
    for text in ("{", "[]", json.dumps({"status": "finished", "nonsense": 1})):
        (run.spec.out_dir / OUTCOME).write_text(text)
        with pytest.raises(UserError, match=r"is damaged \(.*\): delete it"):
            read_outcome(run)


def test_a_run_that_reads_on_after_anothers_checkpoint_repeats_no_token(make_spec):
    first = Run("first", make_spec("first"))
    second = Run("second", make_spec("second"), after=("first",), data_after=first.spec.out_dir / "final")
    carry_out([first, second])
    from litgpt_warmstart.run.checkpoint import read_header

    a, b = (read_header(run.spec.out_dir / "final").record.data for run in (first, second))
    assert (a.start_token, a.stop_token) == (0, 16 * 65) and b.start_token == a.stop_token
