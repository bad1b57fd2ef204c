"""Run folders in: whole ones, half-written ones, and other things."""

import shutil
from pathlib import Path

import pytest

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.growth import Grown
from litgpt_warmstart.report.runs import Run, display_names, find
from tests.report.conftest import FLOPS_PER_TOKEN, PER_STEP


def named(*folders: Path) -> dict[str, Run]:
    return {run.name: run for run in find(folders).runs}


def test_a_run_has_its_curves_and_how_far_it_got(make_run):
    run = named(make_run("a", [8.0, 6.0, 4.0]))["a"]
    assert run.val_losses.to_dict() == {0: 8.0, 20 * PER_STEP: 6.0, 40 * PER_STEP: 4.0}
    assert run.losses.iloc[0] == 8.9 and len(run.losses) == 40
    assert run.status == "finished" and run.tokens == 40 * PER_STEP and run.tokens_per_param == 2.0
    assert run.kind == "scratch" and run.flops_per_token == pytest.approx(FLOPS_PER_TOKEN[48])


def test_a_run_from_scratch_is_called_by_its_parametrization(make_run):
    runs = (named(make_run(name, [8.0, 4.0], parametrization=name))[name] for name in ("mup", "sp"))
    told = [(run.kind, run.from_scratch) for run in runs]
    assert told == [("scratch", "from scratch (muP)"), ("standard", "from scratch (SP)")]


def test_flops_of_an_older_metrics_file_are_counted_from_the_config(make_run):
    found = named(make_run("a", [8.0, 4.0], hoffmann=False))["a"].flops_per_token
    assert found == FLOPS_PER_TOKEN[48] and isinstance(found, float)  # whole numbers times a column end at 2^63


def test_runs_are_found_beneath_folders_each_once_and_not_in_their_own_logs(study):
    logs = study.folder / "base" / "logs" / "csv" / "version_0"
    logs.mkdir(parents=True)
    shutil.copy(study.folder / "base" / "metrics.csv", logs)
    found = find([study.folder, study.folder / "base", study.folder.parent])
    assert len(found.runs) == 7 and not found.left_out


def test_folders_of_studies_are_found_by_the_files_that_tell_them(make_run):
    make_run("grid/cells/a", [8.0, 7.0])
    (make_run.folder / "grid/grid_search.csv").touch()
    found = find([make_run.folder], ["grid_search.csv", "coord_check.csv"])
    assert found.results == {"grid_search.csv": [make_run.folder / "grid"], "coord_check.csv": []}


def test_equal_settings_and_equal_growth_have_one_number(study):
    study("other", [8.0, 7.0], base_lr=0.5)
    runs = named(study.folder)
    settings = {name: run.settings_key for name, run in runs.items()}
    assert len({settings[f"{kind}-{seed}"] for kind in ("scratch", "warm") for seed in (1, 2, 3)}) == 1
    assert settings["other"] != settings["scratch-1"]
    assert len({runs[f"warm-{seed}"].growth_key for seed in (1, 2, 3)}) == 1
    assert runs["warm-1"].growth_key != runs["scratch-1"].growth_key


def test_lineages_that_differ_in_any_option_of_a_growth_have_numbers_of_their_own(make_run):
    base = make_run("base", [8.0, 7.0], width=16)
    for name, gains in (("a", "shrunk"), ("b", "reset")):
        grown = Grown(0.4, gains=gains, source_dir="", asked_alignment="heads", alignment_reason=None, seed=1)
        middle = make_run(name, [8.0, 6.0], base=base, growth=grown)
        make_run(f"{name}-end", [8.0, 6.0], width=96, shrink=0.4, base=middle)
    runs = named(make_run.folder)
    assert runs["a-end"].growth_key != runs["b-end"].growth_key


def test_a_run_whose_metrics_go_on_behind_its_checkpoint_has_not_finished(make_run):
    make_run.metrics(make_run("a", [8.0, 6.0, 4.0], planned=40), [8.0, 6.0, 4.0], 60)
    run = named(make_run.folder)["a"]
    assert run.status == "not finished" and run.told.startswith("step 60 of 40; last written 20")


def test_what_is_half_written_is_said_and_skipped(study):
    study("no-checkpoint", [8.0, 7.0], checkpoint=None, steps=4)
    (study.folder / "header").mkdir()
    (study.folder / "header" / "metrics.csv").write_text("step,tokens,loss\n")
    torn = study("torn", [8.0, 7.0])
    (torn / "final" / "warmstart.yaml").write_text("name: [")
    odd = study("odd", [8.0, 7.0])
    (odd / "metrics.csv").write_text("step,tokens,loss\n1,512,much\n")
    gone = study("gone", [8.0, 7.0])
    (gone / "final" / "hyperparameters.yaml").unlink()
    silent = study("silent", [8.0, 7.0])
    (silent / "metrics.csv").write_text("step,tokens,loss\n1,512,8.5\n")
    found = find([study.folder])
    told = dict.fromkeys(("torn", "gone"), "") | {
        "no-checkpoint": "step 4, no checkpoint yet; last written 20", "header": "no run in this folder",
        "odd": "has no validation losses", "silent": "has no validation losses",
    }  # fmt: skip
    assert len(found.runs) == 7 and found.left_out.keys() == told.keys()
    assert all(told[name] in why and "\n" not in why for name, why in found.left_out.items())


def test_a_diverged_run_without_a_checkpoint_says_why(make_run):
    out_dir = make_run("a", [8.0, 7.0], checkpoint=None, steps=4)
    (out_dir / "outcome.json").write_text('{"status": "diverged", "reason": "the loss is nan at step 4"}')
    make_run("b", [8.0, 7.0])
    assert find([make_run.folder]).left_out == {"a": "the loss is nan at step 4"}


def test_a_run_that_ended_above_its_start_and_chance_diverged(study):
    study("lost", [8.0, 9.0, 9.5], seed=4, shrink=0.4, base=study.folder / "base")
    study("bad_start", [3.0, 3.5, 3.6], seed=5, shrink=0.4, base=study.folder / "base")  # below ln 96: no divergence
    runs = named(study.folder)
    assert runs["lost"].told == "its last validation loss is 9.5, its first was 8"
    assert (runs["lost"].status, runs["bad_start"].status) == ("diverged", "finished")


def test_the_first_loss_of_a_run_without_a_first_validation_is_its_training_loss(study):
    for name, losses in (("lost", [9.2, 9.3]), ("short", [8.9, 8.8])):
        out_dir = study(name, losses, seed=6)
        table = out_dir / "metrics.csv"
        lines = table.read_text().splitlines(keepends=True)
        table.write_text("".join([lines[0], *lines[2:]]))  # its first training loss is 8.9
    runs = named(study.folder)
    assert (runs["lost"].status, runs["short"].status) == ("diverged", "finished")


def test_paths_without_runs_are_refused_in_one_line(make_run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for path, told in (("missing", "does not exist"), ("file", "is a file"), ("empty", "no run in this folder")):
        with pytest.raises(UserError, match=told) as error:
            find([tmp_path / path])
        assert "\n" not in str(error.value)
    make_run("a", [8.0, 7.0])
    found = find([make_run.folder, tmp_path / "empty"])
    (why,) = found.left_out.values()
    assert len(found.runs) == 1 and why.startswith("no run in this folder")


def test_folders_are_called_by_what_tells_them_apart(tmp_path):
    a, b = tmp_path / "x" / "a", tmp_path / "y" / "b"
    assert display_names([a, b]) == ["x/a", "y/b"] and display_names([a]) == ["a"] and display_names([]) == []
