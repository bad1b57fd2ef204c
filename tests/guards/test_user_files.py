"""A user's files: nothing that a run of ours did not write is ever removed, replaced or written through."""

import fcntl
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.guards.conftest import contents, training


@pytest.fixture
def words(models, from_text):
    """Options of warmstart_scratch for a run of two steps into a folder."""
    return lambda out_dir, *more, steps=2: training(models[16], out_dir, "--lr", 0.02, *from_text, *more, steps=steps)


@pytest.fixture(scope="module")
def run_folder(base_run, tmp_path_factory):
    """Makes a copy of a finished run of 6 steps with a checkpoint at 3."""

    def copied() -> Path:
        return shutil.copytree(base_run, tmp_path_factory.mktemp("copy") / "run")

    return copied


def add(path: Path, text: str = "mine") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def is_refused(told, *names: str) -> None:
    assert told.status == 1 and len(told.error_lines) == 1, told
    assert all(name in told.err for name in names), told.err


def test_a_run_is_made_and_replaced_with_overwrite(command, base, models, tmp_path):
    words = training(models[48], tmp_path / "out", "--base", base)
    assert command("warmstart", *words).status == 0
    told = command("warmstart", *words)
    assert told.status == 1 and len(told.error_lines) == 1 and "already holds a run" in told.err
    (tmp_path / "out/notes.txt").write_text("mine")
    before = contents(tmp_path / "out")
    assert command("warmstart", *words, "--overwrite", "true").status == 0
    assert contents(tmp_path / "out")["notes.txt"] == before["notes.txt"]


@pytest.mark.parametrize(
    "name", ["final/notes.md", "step-00000002/weights.bin", "metrics.csv", "norms.csv", "outcome.json", "final"]
)
@pytest.mark.parametrize("more", [(), ("--overwrite", "true"), ("--resume", "auto")])
def test_a_run_does_not_begin_where_it_would_write_over_something_that_is_not_a_runs(
    command, words, tmp_path, name, more
):
    add(tmp_path / name, '{"accuracy": 1}')
    before = contents(tmp_path)
    is_refused(command("warmstart_scratch", *words(tmp_path, *more)), repr(str(tmp_path / name.split("/")[0])))
    assert contents(tmp_path) == before


def test_overwrite_removes_what_the_run_wrote_and_leaves_the_rest(command, words, tmp_path):
    (tmp_path / "out").mkdir()
    kept = ("notes.txt", "step-best/lit_model.pth", "step-1x/a", "logs/mine.txt", "logs/csv/version_0/mine.txt",
            "logs/csv/best/metrics.csv", "final.txt", "outcomes.json")  # fmt: skip
    for name in kept:
        add(tmp_path / "out" / name)
    before = contents(tmp_path / "out")
    saving = ("--train.save_interval", 1, "--track", 1, "--overwrite", "true")
    assert command("warmstart_scratch", *words(tmp_path / "out", *saving, steps=3)).status == 0
    assert contents(tmp_path / "out").items() >= before.items()
    add(tmp_path / "out/logs/csv/version_1/plot.png")
    assert command("warmstart_scratch", *words(tmp_path / "out", "--overwrite", "true")).status == 0
    after = contents(tmp_path / "out")
    assert after.items() >= before.items() and "logs/csv/version_1/plot.png" in after
    assert not [name for name in after if name.startswith(("step-0", "norms.csv", "logs/csv/version_1/metrics"))]
    assert {name for name in after if "/" not in name} == {
        "notes.txt", "step-best", "step-1x", "logs", "final.txt", "outcomes.json", "final", "metrics.csv", ".run.json"
    }  # fmt: skip


def test_a_run_of_the_first_landing_which_has_no_manifest_is_replaced_too(command, words, run_folder):
    folder = run_folder()
    (folder / ".run.json").unlink()
    add(folder / "outcome.json", '{"status": "finished", "step_count": 6, "settings": {}}')
    assert command("warmstart_scratch", *words(folder, "--overwrite", "true")).status == 0
    after = contents(folder)
    assert not {"step-00000003", "outcome.json"} & after.keys()
    assert [name for name in after if name.startswith("logs/csv/")] == [
        "logs/csv/version_0", "logs/csv/version_0/metrics.csv"
    ]  # fmt: skip
    add(folder / "outcome.json", '{"accuracy": 1}')
    is_refused(command("warmstart_scratch", *words(folder, "--overwrite", "true")), "outcome.json")


@pytest.mark.parametrize("columns", [9, 8, 7])
@pytest.mark.parametrize("more", [("--resume", "auto"), ("--overwrite", "true")])
def test_an_unfinished_run_of_the_first_landing_without_a_checkpoint_goes_on(
    command, words, run_folder, tmp_path, columns, more
):
    """Its metrics.csv had all columns or all but the last; with another header it is a user's."""
    lines = (run_folder() / "metrics.csv").read_text().splitlines()[:2]
    add(tmp_path / "metrics.csv", "".join(",".join(line.split(",")[:columns]) + "\r\n" for line in lines))
    before = contents(tmp_path)
    if columns < 8:
        is_refused(command("warmstart_scratch", *words(tmp_path, *more)), "metrics.csv", "was not written by a run")
        assert contents(tmp_path) == before
        return
    is_refused(command("warmstart_scratch", *words(tmp_path)), "already holds a run: pass --resume auto")
    assert contents(tmp_path) == before
    assert command("warmstart_scratch", *words(tmp_path, *more)).status == 0
    assert (tmp_path / "final/lit_model.pth").is_file()


def test_overwrite_removes_what_a_killed_run_left_hidden_and_follows_no_link(command, words, run_folder):
    folder = run_folder()
    left = [".final.partial", ".final.older", ".final.removed", ".step-00000003.partial", ".step-00000005.older"]
    for name in left:
        shutil.copytree(folder / "step-00000003", folder / name)
    (folder / ".step-00000004.partial").symlink_to(add(folder.parent / "theirs/lit_model.pth").parent)
    for name in (".step-best.partial/lit_model.pth", ".step-00000006.partial/notes.txt", ".mine.partial/lit_model.pth"):
        add(folder / name)
    before = contents(folder)
    told = command("warmstart_scratch", *words(folder, "--resume", "true", steps=8))
    assert told.status == 0 and not [name for name in left if "older" not in name and (folder / name).exists()]
    shutil.copytree(folder / "final", folder / ".step-00000003.partial")
    assert command("warmstart_scratch", *words(folder, "--overwrite", "true")).status == 0
    after = contents(folder)
    assert not set(left) & after.keys() and (folder.parent / "theirs/lit_model.pth").read_text() == "mine"
    hidden = {name: value for name, value in before.items() if name.startswith((".step", ".mine"))}
    assert {name for name in hidden if not name.startswith(tuple(left))} <= after.keys()


def test_a_manifest_names_nothing_outside_the_run(command, words, run_folder):
    folder = run_folder()
    theirs = add(folder.parent / "logs/csv/version_0/metrics.csv")
    add(folder / "logs/mine/version_0/metrics.csv")
    content = {"files": ["../metrics.csv", "notes.txt"], "logs": ["../logs/csv/version_0", "logs/mine/version_0"]}
    add(folder / ".run.json", json.dumps(content))
    add(folder / "notes.txt")
    assert command("warmstart_scratch", *words(folder, "--overwrite", "true")).status == 0
    assert (
        theirs.is_file() and (folder / "notes.txt").is_file() and (folder / "logs/mine/version_0/metrics.csv").is_file()
    )


def test_a_users_files_in_a_checkpoint_folder_stop_overwrite(command, words, run_folder, base, models, tmp_path):
    folder = run_folder()
    add(folder / "final/evaluate/results.json")
    before = contents(folder)
    told = command("warmstart_scratch", *words(folder, "--overwrite", "true"))
    is_refused(told, "evaluate", repr(str(folder / "final")))
    grow = ("warmstart_grow", "--base", base, "--target", models[48], "--out_dir", tmp_path / "grown")
    export = ("warmstart_export", "--checkpoint_dir", base, "--out_dir", tmp_path / "exported")
    for words in (grow, export):
        assert command(*words).status == 0
        add(words[-1] / "README.md")
        kept = contents(words[-1])
        is_refused(command(*words, "--overwrite", "true"), "README.md", repr(str(words[-1])))
        assert contents(words[-1]) == kept
        (words[-1] / "README.md").unlink()
        assert command(*words, "--overwrite", "true").status == 0
    assert contents(folder) == before


def test_grow_does_not_replace_a_checkpoint_of_another_program(command, base, models, tmp_path):
    for name in ("lit_model.pth", "model_config.yaml"):
        add(tmp_path / "theirs" / name)
    words = ("--base", base, "--target", models[48], "--out_dir", tmp_path / "theirs", "--overwrite", "true")
    is_refused(command("warmstart_grow", *words), "theirs")
    assert (tmp_path / "theirs/lit_model.pth").read_text() == "mine"


def test_a_run_that_goes_on_keeps_a_users_files_in_final_aside(command, words, run_folder):
    folder = run_folder()
    add(folder / "final/evaluate/results.json")
    old = contents(folder / "final")
    told = command("warmstart_scratch", *words(folder, "--train.save_interval", 3, "--resume", "true", steps=8))
    assert told.status == 0 and "final-before-1" in told.err
    assert contents(folder / "final-before-1") == old
    assert "evaluate" not in contents(folder / "final")


def test_a_final_that_is_a_link_is_not_followed(command, words, run_folder):
    folder = run_folder()
    (folder / "final").rename(folder.parent / "elsewhere")
    (folder / "final").symlink_to(folder.parent / "elsewhere")
    before = contents(folder.parent / "elsewhere")
    is_refused(command("warmstart_scratch", *words(folder, "--overwrite", "true")), repr(str(folder / "final")))
    assert command("warmstart_scratch", *words(folder, "--resume", "true", steps=8)).status == 0
    assert contents(folder.parent / "elsewhere") == before and not (folder / "final").is_symlink()


@pytest.mark.parametrize("name", ["metrics.csv", "norms.csv", ".run.json", "metrics.csv.partial", "metrics.partial"])
def test_a_file_of_ours_that_is_a_link_is_not_written_through(command, words, run_folder, name):
    folder = run_folder()
    shutil.copy(folder / "metrics.csv", folder.parent / "target")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(folder.parent / "target")
    before = (folder.parent / "target").read_bytes()
    track = ("--track", 2) if name == "norms.csv" else ()
    told = command("warmstart_scratch", *words(folder, "--resume", "true", *track, steps=7))
    assert (folder.parent / "target").read_bytes() == before
    assert told.status == 0 or (name == "norms.csv" and len(told.error_lines) == 1)


@pytest.mark.parametrize("name", [".lock", ".final.older", ".final.partial"])
def test_a_hidden_name_of_ours_that_is_a_link_is_told_or_replaced_and_its_target_left(command, words, tmp_path, name):
    target = add(tmp_path / "target/file") if name != ".lock" else add(tmp_path / "target")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "target")
    told = command("warmstart_scratch", *words(tmp_path / "run"))
    assert target.read_text() == "mine"
    assert told.status == 0 or len(told.error_lines) == 1 and name in told.err


def test_a_second_report_replaces_what_the_first_lists_and_nothing_else(command, run_folder, tmp_path):
    runs, page = (run_folder(), run_folder()), tmp_path / "index.html"
    assert command("warmstart_report", *runs, "--out_dir", tmp_path).status == 0
    first = contents(tmp_path)
    stale = page.read_text().replace("tables/runs.csv&quot;", "tables/runs.csv&quot;, &quot;tables/stale.csv&quot;")
    add(tmp_path / "tables/stale.csv")
    page.write_text(stale)
    theirs = [add(tmp_path / name) for name in ("figures/mine.png", "tables/mine.csv", "figures/deep/a.svg")]
    assert command("warmstart_report", *runs, "--out_dir", tmp_path).status == 0
    assert all(path.read_text() == "mine" for path in theirs) and not (tmp_path / "tables/stale.csv").exists()
    assert contents(tmp_path).items() >= first.items()


@pytest.mark.parametrize(
    "entry", ["../victim.csv", "tables/../../victim.csv", "/tmp/victim.csv", "tables/linked/v.csv"]
)
def test_a_page_that_lists_other_files_than_a_reports_removes_none(command, run_folder, tmp_path, entry):
    out_dir = tmp_path / "report"
    folder = run_folder()
    assert command("warmstart_report", folder, "--out_dir", out_dir).status == 0
    victims = [add(tmp_path / "victim.csv"), add(tmp_path / "linked/v.csv")]
    (out_dir / "tables/linked").symlink_to(tmp_path / "linked")
    page = (out_dir / "index.html").read_text()
    (out_dir / "index.html").write_text(re.sub(r'(content="\[)', rf"\1&quot;{entry}&quot;, ", page))
    command("warmstart_report", folder, "--out_dir", out_dir)
    assert all(path.read_text() == "mine" for path in victims)


def test_a_report_does_not_write_over_a_file_that_the_last_one_does_not_list(command, run_folder, tmp_path):
    add(tmp_path / "tables/runs.csv")
    is_refused(
        command("warmstart_report", run_folder(), "--out_dir", tmp_path), repr(str(tmp_path / "tables/runs.csv"))
    )
    assert list(contents(tmp_path)) == ["tables", "tables/runs.csv"]
    shutil.move(tmp_path / "tables", tmp_path / "elsewhere")
    (tmp_path / "tables").symlink_to(tmp_path / "elsewhere")
    is_refused(command("warmstart_report", run_folder(), "--out_dir", tmp_path), "link")


def test_a_report_of_the_first_landing_is_replaced(command, run_folder, tmp_path):
    folder = run_folder()
    assert command("warmstart_report", folder, "--out_dir", tmp_path).status == 0
    page = tmp_path / "index.html"
    page.write_text(re.sub(r'<meta name="litgpt-warmstart-files"[^>]*>', "", page.read_text()))
    assert command("warmstart_report", folder, "--out_dir", tmp_path).status == 0


def test_a_grid_search_leaves_a_users_files_and_follows_no_link(command, models, from_text, tmp_path):
    out_dir = tmp_path / "grid"
    words = ("warmstart_grid_search", "--target", models[16], "--lrs", 0.02, "--batch_sizes", 4, "--out_dir", out_dir,
             "--train.max_tokens", 512, "--train.micro_batch_size", 4, "--compile", "false", "--precision", "32-true",
             "--logger_name", "csv", "--eval.max_iters", 4, *from_text)  # fmt: skip
    add(out_dir / "grid_search.csv", "name,score\na,1\n")
    is_refused(command(*words), "grid_search.csv")
    (out_dir / "grid_search.csv").unlink()
    add(out_dir / "best/model.bin")
    is_refused(command(*words), "best")
    shutil.rmtree(out_dir / "best")
    assert command(*words).status == 0
    picture = (out_dir / "grid_search.png").rename(tmp_path / "picture.png")
    before = (picture.read_bytes(), os.stat(picture).st_mtime_ns)
    (out_dir / "grid_search.png").symlink_to(picture)
    add(out_dir / "best/evaluate/results.json")
    assert command(*words).status == 0
    assert (picture.read_bytes(), os.stat(picture).st_mtime_ns) == before
    assert not (out_dir / "grid_search.png").is_symlink() and not (out_dir / "best/evaluate").exists()
    assert (out_dir / "best-before-1/evaluate/results.json").read_text() == "mine"


def test_a_plan_replaces_no_file_but_a_plan(command, base, models, tmp_path):
    mine = shutil.copytree(base, tmp_path / "base")
    for path in (mine / "lit_model.pth", mine / "warmstart.yaml", add(tmp_path / "notes.txt")):
        before = contents(tmp_path)
        words = ("warmstart_plan", "--base", mine, "--target", models[48], "--measure", "false", "--json")
        is_refused(command(*words, path), str(path.name), "holds no plan")
        assert contents(tmp_path) == before
    for _ in range(2):
        assert command(*words, tmp_path / "plan.json").status == 0


def test_an_export_replaces_no_model_that_somebody_has_downloaded(command, base, tmp_path):
    words = ("warmstart_export", "--checkpoint_dir", base, "--out_dir", tmp_path / "hf", "--overwrite", "true")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        add(tmp_path / "hf" / name)
    before = contents(tmp_path)
    is_refused(command(*words), "choose another")
    assert contents(tmp_path) == before
    shutil.rmtree(tmp_path / "hf")
    for _ in range(2):
        assert command(*words).status == 0


def test_growing_replaces_no_checkpoint_that_was_trained(command, base, base_run, models, tmp_path):
    run = shutil.copytree(base_run, tmp_path / "run")
    before = contents(run)
    words = ("warmstart_grow", "--base", base, "--target", models[48], "--overwrite", "true", "--out_dir")
    for folder in (run / "final", run / "step-00000003"):
        is_refused(command(*words, folder), "is a trained checkpoint")
    assert contents(run) == before


@pytest.mark.parametrize("command_name", ["warmstart_grow", "warmstart_export"])
def test_a_folder_that_another_process_is_writing_is_left_to_it(command, base, models, tmp_path, command_name):
    partial = tmp_path / ".made.partial"
    add(partial / "half")
    words = ("--base", base, "--target", models[48]) if command_name == "warmstart_grow" else ("--checkpoint_dir", base)
    with (partial / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        told = command(command_name, *words, "--out_dir", tmp_path / "made")
        is_refused(told, "another process is writing")
        assert (partial / "half").read_text() == "mine" and not (tmp_path / "made").exists()
    assert command(command_name, *words, "--out_dir", tmp_path / "made").status == 0  # of one that was killed
    assert not partial.exists() and not (tmp_path / "made/.lock").exists()


def test_a_run_does_not_train_into_the_checkpoint_that_it_starts_from(command, base, models, tmp_path):
    mine = shutil.copytree(base, tmp_path / "base")
    before = contents(mine)
    for out_dir in (mine, mine / "below"):
        is_refused(command("warmstart", *training(models[48], out_dir, "--base", mine)), "which this run starts from")
    assert contents(mine) == before
