"""The page and its tables, from run folders to files."""

import csv
import re
import sys
from pathlib import Path

import pytest

from litgpt_warmstart.commands import warmstart, warmstart_coord_check, warmstart_report, warmstart_scratch
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.report.layers import layer_name
from litgpt_warmstart.report.page import Section
from litgpt_warmstart.report.write import write_report
from litgpt_warmstart.run.spec import TrainArgs
from litgpt_warmstart.study import coord_check, grid_search
from tests.report.conftest import FLOPS_PER_TOKEN, PER_STEP, Maker, fill

KINDS = [(study.RESULTS, study.section) for study in (coord_check, grid_search)]


def headings(page: str) -> list[str]:
    return re.findall(r"<h2[^>]*>(.*?)</h2>", page)


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def answers(sections: list[Section]) -> dict[str, list[str]]:
    return {part.title: part.answers for section in sections for part in section.whole if part.answers}


def notes(sections: list[Section]) -> list[str]:
    return [note for section in sections for part in section.whole for note in part.notes]


COORDINATES = """t,width,module,l1,parametrization,shrink,seed
1,48,lm_head,0.5,mup,,0
4,48,lm_head,1.0,sp,,0
4,48,lm_head,3.0,sp,,1
4,96,lm_head,4.0,sp,,0
4,48,lm_head,1.0,warmstart,0.4,0
4,96,lm_head,1.0,warmstart,0.4,0
"""
SLOPES = """module,parametrization,shrink,slope,standard_error,verdict
lm_head,sp,,1.0,0.1,grows
lm_head,warmstart,0.4,-0.25,0.1,ok
"""


def add_check(folder: Path, base: Path) -> None:
    """A folder as warmstart_coord_check leaves it."""
    folder.mkdir(parents=True)
    (folder / "coord_check.csv").write_text(COORDINATES)
    (folder / "slopes.csv").write_text(SLOPES)
    settings = f"base: {base / 'final'}\nlr: 0.01\nbatch_size: 4\nblock_size: 16\nnum_seeds: 2\n"
    (folder / "hyperparameters.yaml").write_text(settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A study with everything: seeds, norms, a chain with its run from scratch, a coordinate check, a broken run."""
    study = fill(Maker(tmp_path_factory.mktemp("whole") / "runs"))
    base = study("tracked-base", [9.0, 8.0, 7.0], width=16, steps=12, norms=(0, 12))
    tracked = study("tracked", [6.0, 5.0, 4.0, 3.0], seed=1, shrink=0.6, base=base, norms=(0, 40))
    study("grown-again", [5.0, 4.0, 3.0, 2.0], width=96, seed=1, shrink=0.4, base=tracked, start_token=9)
    study("big", [8.0, 5.0, 4.0, 3.0], width=96, seed=1, steps=60)
    study("going", [6.0, 5.0], seed=1, shrink=0.2, base=base, steps=30, planned=40, checkpoint="step-00000030")
    add_check(study.folder / "check", base)
    return study.folder


@pytest.fixture(scope="module")
def written(whole) -> list[Section]:
    return write_report([whole], whole.parent / "report", KINDS, whole.parent / "picture.png")


@pytest.fixture(scope="module")
def report(written, whole) -> Path:
    return whole.parent / "report"


def test_the_page_needs_no_other_file_and_answers_first(report):
    text = (report / "index.html").read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert headings(text) == ["The answer", "Pair by pair", "Successive warmstarts", "Coordinate checks", "Runs"]
    assert (
        re.findall(r"""<(?:link|img|iframe|object)\b|\b(?:src|xlink:href)=["'](?!#)|@import|url\((?!#)""", text) == []
    )
    assert len(ids) == len(set(ids)) and set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)
    assert "prefers-color-scheme: dark" in text and "currentColor" in text and "#010203" not in text
    assert text.count("<svg") == 1 + 3 + 1 + 1 and not (report / "figures").exists()
    assert "shrink 0.2, not finished" in text and len(text) < 300_000
    assert (report.parent / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_every_figure_has_values_for_the_pointer(written):
    figures = [figure for section in written for part in section.whole for figure in part.figures]
    assert all(figure.points for figure in figures)
    curve = next(figure for figure in figures if figure.name == "loss-tokens-1")
    assert any(words == "from scratch (muP): 4.0000 at 2 tokens per parameter" for *_, words in curve.points)


def test_norms_that_begin_after_a_resume_are_drawn_and_tabled_also_without_a_run_from_scratch(make_run):
    base = make_run("base", [9.0, 7.0], width=16, steps=10)
    make_run("warm", [7.0, 5.0, 4.5, 4.1], shrink=0.4, base=base, norms=(10, 20, 40))
    write_report([make_run.folder], make_run.folder / "report")
    table = rows(make_run.folder / "report/tables/norms_over_training_1.csv")
    assert {row["arm"] for row in table} == {"shrink 0.4"}
    assert not (make_run.folder / "report/tables/layer_norms_1.csv").exists()
    assert [float(row["rms"]) for row in table if row["layer"] == "lm_head" and row["kind"] == "weight"] == [12, 22, 42]


def test_norms_over_training_are_drawn_for_one_seed_beside_scratch(make_run):
    base = make_run("base", [9.0, 7.0], width=16, steps=10)
    for seed in (1, 2):
        make_run(f"scratch-{seed}", [8.0, 6.0, 5.0, 4.0], seed=seed, norms=(0, 20, 40))
        make_run(f"warm-{seed}", [7.0, 5.0, 4.5, 4.1], seed=seed, shrink=0.4, base=base, norms=(0, 20, 40))
    write_report([make_run.folder], make_run.folder / "report")
    page = (make_run.folder / "report/index.html").read_text(encoding="utf-8")
    (svg,) = re.findall(r"<figure data-name=\"norms-over-training-1\".*?</figure>", page, re.DOTALL)
    assert "from scratch (muP)" in svg and "shrink 0.4" in svg and "tokens per parameter" in svg
    assert "embedding" in svg and "lm_head" in svg and "block 0, output" not in svg  # whose output has no norms here
    table = rows(make_run.folder / "report/tables/norms_over_training_1.csv")
    assert {row["run"] for row in table} == {"scratch-1", "warm-1"}


def test_answers_and_tables_have_the_numbers(written, report):
    about, told = list(answers(written).items())[1]
    assert about == "neox-16 (0.001M) → neox-48 (0.0102M), 2 tokens per parameter"
    assert "Of one seed there is no interval" in " ".join(told)
    assert "speed-up in Hoffmann FLOPs of 2.40 (1.29 to 17.22): faster" in told[0]
    assert any("25% of the target's tokens" in words and "1.33 at most" in words for words in told)
    tables = report / "tables"
    table = {row["warmstart"]: row for row in rows(tables / "speed_up.csv")}
    arm = next(row for label, row in table.items() if label.startswith("shrink 0.4"))
    assert float(arm["speed_up"]) == pytest.approx(12 / 5) and arm["seeds_that_reached_scratch_loss"] == "3"
    assert float(arm["tokens_per_param"]) == 2.0 and float(arm["speed_up_limit"]) == pytest.approx(4 / 3)
    assert table[next(label for label in table if label.startswith("shrink 0.6"))]["speed_up_low"] == ""
    pairs = rows(tables / "pairs.csv")
    assert len(pairs) == 4 and {row["seed"] for row in pairs} == {"1", "2", "3"}
    curve = [row for row in rows(tables / "validation_losses.csv") if row["run"] == pairs[0]["warmstart_run"]]
    own, offset = 40 * PER_STEP * FLOPS_PER_TOKEN[48], 10 * PER_STEP * FLOPS_PER_TOKEN[16]
    assert float(curve[-1]["hoffmann_flops"]) == pytest.approx(own)
    assert float(curve[-1]["hoffmann_flops_with_base"]) == pytest.approx(own + offset)
    slopes = rows(tables / "coordinate_slopes_1.csv")
    assert [row["slope"] for row in slopes] == ["1.0", "-0.25"]
    status = {row["run"]: row["status"] for row in rows(tables / "runs.csv")}
    assert status["going"] == "not finished" and status["warm-1"] == "finished"
    assert any("going" in note and "step 30 of 40" in note for note in notes(written))


def test_where_along_the_budget_a_warmstart_is_ahead_is_told_in_a_table(make_run):
    """At 10 and 20 of 40 steps all three seeds are ahead, at 30 and 40 behind."""
    base = make_run("base", [9.0, 7.0], width=16, steps=10)
    for seed in (1, 2, 3):
        make_run(f"scratch-{seed}", [8.0, 7.0, 6.0, 5.0, 4.0], seed=seed)
        losses = [6.0, 6.5 - seed / 100, 5.8 - seed / 100, 5.2 - seed / 100, 4.1 + seed / 100]
        make_run(f"warm-{seed}", losses, seed=seed, shrink=0.4, base=base)
    _, pairs, _ = write_report([make_run.folder], make_run.folder / "report")
    shown = pairs.parts[0].tables[0].shown
    assert shown is not None
    row = shown.iloc[1]
    assert row["ahead at equal tokens"] == "from 0.5 to 1 tokens per parameter"
    assert row["less scratch's"] == "+0.120 (+0.095 to +0.145)" and row["first loss"] == "6.0000"
    gains = [row for row in rows(make_run.folder / "report/tables/gains_1.csv") if row["equal"] == "tokens"]
    assert [row["ahead"] for row in gains] == ["True", "True", "False", "False"]
    assert float(gains[-1]["val_loss_minus_scratch"]) == pytest.approx(0.12)


def test_the_terminal_has_the_losses_side_by_side_and_the_compute(written):
    (pair,) = (part for section in written for part in section.whole if part.printed)
    lines = pair.printed.splitlines()
    assert lines[0].split()[:3] == ["tokens", "from", "scratch"] and lines[1].split()[:3] == ["0", "8.0000", "6.0000"]
    own, base = FLOPS_PER_TOKEN[48] * PER_STEP, 10 * PER_STEP * FLOPS_PER_TOKEN[16]
    spent = (20 + 20 + 10) / 3 * own  # the three seeds to the loss of 4
    whole = f"{spent + base:.3g} ({(spent + base) / (40 * own):.0%})"
    assert f"warmstart {spent:.3g}, with the base's own training {whole}." in lines[-1]


def test_one_comparison_is_answered_in_one_sentence_and_several_are_counted(study, tmp_path):
    (headline,) = answers(write_report([study.folder], tmp_path / "a"))["The answer"]
    assert headline.startswith("neox-16 (0.001M) → neox-48 (0.0102M), 2 tokens per parameter: with shrink 0.4")
    assert "a speed-up in Hoffmann FLOPs of 2.17 (" in headline and ") with the base's counted: faster" in headline
    study("longer", [8.0, 6.0, 5.0, 4.0], steps=80)
    study("warm-longer", [6.0, 5.0, 4.0, 3.0], steps=80, shrink=0.4, base=study.folder / "base")
    (headline,) = answers(write_report([study.folder], tmp_path / "b"))["The answer"]
    assert headline.startswith(
        "Of 2 comparisons, with the base's compute counted, the best warmstart was told by one seed"
    )


def test_a_budget_of_20_tokens_per_parameter_less_a_part_of_a_step_is_no_start_of_a_run(make_run):
    base = make_run("base", [9.0, 7.0], width=16, steps=10)
    for steps in (399, 100):  # 19.95 and 5 tokens per parameter
        make_run(f"scratch-{steps}", [8.0, 7.0, 6.0, 4.0], steps=steps)
        make_run(f"warm-{steps}", [6.0, 5.0, 4.0, 3.0], steps=steps, shrink=0.4, base=base)
    _, long, short = map(" ".join, answers(write_report([make_run.folder], make_run.folder / "report")).values())
    assert "the start of a training run" in short and "the start of a training run" not in long


def test_a_copy_of_a_run_is_said_to_be_one_and_shown_once(study, tmp_path):
    study("copies/warm-1", [6.0, 5.0, 4.0, 3.5, 3.0], seed=1, shrink=0.4, base=study.folder / "base")
    written = write_report([study.folder], tmp_path / "report")
    (note,) = notes(written)
    assert "repeats" in note and len(answers(written)) == 2


def test_norms_are_shown_for_the_base_the_warmstart_and_its_end(report):
    found = {(row["moment"], row["kind"], row["layer"]): float(row["rms"])
             for row in rows(report / "tables/layer_norms_1.csv")}  # fmt: skip
    assert found["base, trained", "activation", "lm_head"] == 14.0
    assert found["at the warmstart", "weight", "block 0 attn.qkv"] == 2.0
    assert found["trained, step 40", "weight", "lm_head"] == 42.0


@pytest.mark.parametrize(
    ("name", "kind", "shown"),
    [
        ("transformer.h.3", "activation", "block 3"),
        ("transformer.h.3.attn", "activation", "block 3 attn"),
        ("transformer.h.3.norm_1", "activation", None),
        ("transformer.h.3.mlp.fc.weight", "weight", "block 3 mlp.fc"),
        ("transformer.h.3.mlp.fc.bias", "weight", None),
        ("transformer.ln_f.weight", "weight", None),
        ("transformer.wte", "activation", "embedding"),
    ],
)
def test_layers_are_named_and_small_parts_left_out(name, kind, shown):
    assert layer_name(name, kind) == shown


def test_a_coordinate_check_alone_makes_a_page_and_a_damaged_one_is_left_out_and_said(tmp_path):
    add_check(tmp_path / "checks/a", tmp_path)
    add_check(tmp_path / "checks/b", tmp_path)
    (tmp_path / "checks/b/slopes.csv").unlink()
    written = write_report([tmp_path / "checks"], tmp_path / "report", KINDS)
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert headings(page) == ["The answer", "Coordinate checks"] and page.count("<svg") == 1
    assert "b: damaged or half-written" in page and list(answers(written)) == ["The answer"]


def test_runs_without_warmstarts_have_no_answer(make_run, tmp_path):
    make_run("cells/a", [8.0, 7.0])
    make_run("cells/b", [8.0, 7.5], base_lr=0.1)
    written = write_report([make_run.folder], tmp_path / "report")
    assert answers(written)["The answer"][0].endswith("no answer.")
    assert len(rows(tmp_path / "report/tables/runs.csv")) == 2
    with pytest.raises(UserError, match="--picture shows a warmstart beside its run from scratch, and there is none"):
        write_report([make_run.folder], tmp_path / "report", (), tmp_path / "picture.png")


def test_a_grid_search_is_drawn_and_its_winner_told_and_a_damaged_one_is_left_out_and_said(make_run, tmp_path):
    make_run("grid/cells/a", [8.0, 7.0])
    make_run("grid/cells/b", [8.0, 7.5], base_lr=0.1)
    grid = "lr,batch_size,seed,status,val_loss,tokens,run\n"
    make_run("grid/wider/cells/a", [8.0, 7.0], width=96)
    lines = ("0.02,8,1,finished,7.0,20480,a", "0.1,8,1,finished,7.5,20480,b", "1.0,8,1,diverged,9.0,512,c")
    (make_run.folder / "grid/grid_search.csv").write_text("\n".join((grid.strip(), *lines)))
    (make_run.folder / "worse").mkdir()
    (make_run.folder / "worse/grid_search.csv").write_text(grid + "0.02,8,1,finished,far,20480,a\n")
    (make_run.folder / "commas").mkdir()
    (make_run.folder / "commas/grid_search.csv").write_text(grid + lines[0] + ",\n")
    written = write_report([make_run.folder], tmp_path / "report", KINDS)
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert "commas: damaged or half-written: a row has more or fewer columns" in page
    assert headings(page) == ["The answer", "Grid searches", "Runs"] and page.count("<svg") == 1
    assert "Best: lr 0.02, batch 8, validation loss 7.0000." in page and "0.02 is the smallest of --lrs" in page
    assert "grid: neox-48 (0.0102M), 2 tokens per parameter" in page  # not grid/wider
    assert "worse: damaged or half-written: could not convert string to float" in page and len(notes(written)) == 2
    assert [row["val_loss"] for row in rows(tmp_path / "report/tables/grid_searches.csv")] == ["7.0", "7.5", "9.0"]
    assert "diverged" in page and "7.500" in page


def test_a_page_of_the_studys_shape_has_at_most_twelve_figures(make_run, tmp_path):
    """As `make study` has it: a grid, three pairs, one of them tracked, two ways to one scale, a coordinate check."""
    base = make_run("grid/cells/a", [9.0, 8.0, 7.0], width=16, steps=10, norms=(0, 5, 10))
    grid = "lr,batch_size,seed,status,val_loss,tokens,run\n0.02,8,1,finished,7.0,5120,a\n"
    (make_run.folder / "grid/grid_search.csv").write_text(grid)
    for width, steps, norms in ((48, 40, (0, 20, 40)), (48, 60, ()), (96, 40, ())):
        shared = dict(width=width, steps=steps, norms=norms)
        make_run(f"scratch-{width}-{steps}", [8.0, 6.0, 5.0, 4.0], **shared)
        for shrink in (0.2, 0.4):
            make_run(f"warm-{width}-{steps}-{shrink}", [7.0, 5.0, 4.0, 3.0], shrink=shrink, base=base, **shared)
    middle = make_run("middle", [6.0, 5.0, 4.0], shrink=0.4, base=base, steps=20)
    make_run("end", [5.0, 4.0, 3.0], width=96, shrink=0.4, base=middle, steps=30)
    make_run("direct", [6.0, 5.0, 4.0], width=96, shrink=0.4, base=base, steps=35)
    make_run("scratch", [8.0, 5.0, 4.0], width=96, steps=37)
    add_check(make_run.folder / "check", base)
    written = write_report([make_run.folder], tmp_path / "report", KINDS)
    names = [figure.name for section in written for part in section.whole for figure in part.figures]
    assert (tmp_path / "report/index.html").read_text(encoding="utf-8").count("<svg") == len(names) <= 12
    assert {"speed-up", "loss-compute-3", "norms-1", "successive-1", "grid-search-1", "coordinates-1"} <= set(names)


def test_no_speed_up_is_an_answer(make_run, tmp_path):
    base = make_run("base", [9.0, 7.0], width=16, steps=10)
    make_run("scratch", [8.0, 6.0, 4.0])
    make_run("warm", [6.0, 5.5, 5.0], shrink=0.4, base=base)
    headline, told = map(" ".join, answers(write_report([make_run.folder], tmp_path / "report")).values())
    assert "No warmstart reached the scratch run's last validation loss, 4.0000, with every seed: no speed-up." in told
    assert "Of one seed there is no interval" in told and "Fewer than 4 validations" in told
    assert headline.endswith("no warmstart reached the scratch run's last validation loss.")


def test_an_earlier_report_is_replaced_and_another_page_is_not(tmp_path):
    add_check(tmp_path / "check", tmp_path)
    out_dir, page = tmp_path / "report", tmp_path / "report/index.html"
    write_report([tmp_path / "check"], out_dir, KINDS)
    first = page.read_text(encoding="utf-8")
    (out_dir / "tables/mine.csv").touch()
    write_report([tmp_path / "check"], out_dir, KINDS)
    assert page.read_text(encoding="utf-8") == first and (out_dir / "tables/mine.csv").exists()
    page.write_text("<h1>Mine</h1>")
    with pytest.raises(UserError, match="holds an index.html that is no report"):
        write_report([tmp_path / "check"], out_dir, KINDS)


def test_the_figures_of_an_older_report_are_removed(tmp_path):
    add_check(tmp_path / "check", tmp_path)
    out_dir = tmp_path / "report"
    write_report([tmp_path / "check"], out_dir, KINDS)
    page = out_dir / "index.html"
    page.write_text(page.read_text().replace('content="[', 'content="[&quot;figures/old-1.svg&quot;, '))
    (out_dir / "figures").mkdir()
    (out_dir / "figures/old-1.svg").touch()
    write_report([tmp_path / "check"], out_dir, KINDS)
    assert not (out_dir / "figures").exists()


def command(monkeypatch, *words: object) -> None:
    from litgpt_warmstart.__main__ import main

    monkeypatch.setattr(sys, "argv", ["litgpt-warmstart", "warmstart_report", *map(str, words)])
    main()


def test_folders_are_typed_one_after_the_other_or_named_in_a_file(study, tmp_path, monkeypatch, capsys):
    folders = [study.folder / name for name in ("base", "scratch-1", "warm-1")]
    command(monkeypatch, *folders, "--out_dir", tmp_path / "a", "--picture", tmp_path / "a.png")
    told = capsys.readouterr().out
    assert "speed-up in Hoffmann FLOPs of 2.00 (no interval: one seed)" in told and "from scratch    shrink 0.4" in told
    assert "Compute to that loss: scratch" in told and (tmp_path / "a.png").is_file()
    (tmp_path / "report.yaml").write_text(f"runs: [{folders[0]}, {folders[1]}]\nout_dir: {tmp_path / 'b'}\n")
    command(monkeypatch, "--config", tmp_path / "report.yaml")
    assert "no answer" in capsys.readouterr().out
    assert (tmp_path / "a/index.html").is_file() and (tmp_path / "b/index.html").is_file()


def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    cases = (([tmp_path / "empty"], "nothing to report"), ([tmp_path / "no"], "does not exist"), ([], "runs"))
    for words, told in cases:
        with pytest.raises(SystemExit) as exit:
            command(monkeypatch, *words, "--out_dir", tmp_path / "report")
        assert exit.value.code in (1, 2)
        error = capsys.readouterr().err
        assert told in error and len(error.splitlines()) == 1, error
    assert not (tmp_path / "report").exists()


def test_real_runs_make_a_page(base, tiny, tiny_settings, tmp_path, capsys):
    shared = dict(target=tiny[48], train=TrainArgs(max_steps=8), track=4, **tiny_settings)
    for seed in (1, 2):
        warmstart_scratch.setup(mup_base=str(base), out_dir=tmp_path / f"scratch-{seed}", seed=seed, **shared)
        warmstart.setup(base=base, out_dir=tmp_path / f"warm-{seed}", seed=seed, **shared)
    capsys.readouterr()
    warmstart_coord_check.setup(
        base=base, widths="16,32", steps=2, num_seeds=2, batch_size=2, block_size=16, shrink="0.4",
        out_dir=tmp_path / "check",
    )  # fmt: skip
    warmstart_report.setup([base.parent, tmp_path], out_dir=tmp_path / "report")
    assert "Left out" not in (tmp_path / "report/index.html").read_text(encoding="utf-8")
    verdicts = [r["verdict"] for r in rows(tmp_path / "report/tables/coordinate_slopes_1.csv")]
    assert verdicts and set(verdicts) <= {"ok", "grows"}
    told = capsys.readouterr().out
    assert "neox-16 (0.138M) → neox-48" in told and "Wrote" in told and "Not counted" not in told
    (row,) = rows(tmp_path / "report/tables/speed_up.csv")
    assert row["seeds"] == "2" and float(row["first_val_loss_minus_scratch"]) < 0
    assert float(row["first_val_loss_minus_scratch_low"]) < float(row["first_val_loss_minus_scratch_high"])
    moments = {r["moment"] for r in rows(tmp_path / "report/tables/layer_norms_1.csv")}
    assert moments == {"from scratch, trained", "at the warmstart", "trained, step 8"}
