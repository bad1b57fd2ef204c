"""The page and its tables, from run folders to files."""

import re
import sys
from pathlib import Path

import pytest

from litgpt_warmstart.commands import warmstart, warmstart_coord_check, warmstart_report, warmstart_scratch
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.report.layers import layer_name
from litgpt_warmstart.report.write import write_report
from litgpt_warmstart.run.spec import TrainArgs
from litgpt_warmstart.study import kinds
from tests.report.conftest import FLOPS_PER_TOKEN, PER_STEP, Maker, fill
from tests.study.conftest import rows

KINDS = kinds()


class Report:
    """The report on what is beneath a folder, in its ``report``."""

    def __init__(self, folder: Path, picture: Path | None = None) -> None:
        self.out_dir = folder.parent / f"{folder.name}-report"
        self.sections = write_report([folder], self.out_dir, KINDS, picture)
        self.page = (self.out_dir / "index.html").read_text(encoding="utf-8")
        self.parts = [part for section in self.sections for part in section.whole]

    @property
    def headings(self) -> list[str]:
        return re.findall(r"<h2[^>]*>(.*?)</h2>", self.page)

    @property
    def answers(self) -> list[str]:
        """What each part that has an answer says."""
        return [" ".join(part.answers) for part in self.parts if part.answers]

    @property
    def notes(self) -> list[str]:
        return [note for part in self.parts for note in part.notes]

    def rows(self, table: str) -> list[dict[str, str]]:
        return rows(self.out_dir / "tables" / f"{table}.csv")


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
GRID = "lr,batch_size,seed,status,val_loss,tokens,run\n0.02,8,1,finished,7.0,20480,a\n"


def add_check(folder: Path, base: Path) -> None:
    """A folder as warmstart_coord_check leaves it."""
    folder.mkdir(parents=True)
    (folder / "coord_check.csv").write_text(COORDINATES)
    (folder / "slopes.csv").write_text(SLOPES)
    settings = f"base: {base / 'final'}\nlr: 0.01\nbatch_size: 4\nblock_size: 16\nnum_seeds: 2\n"
    (folder / "hyperparameters.yaml").write_text(settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Report:
    """Of a study with everything: seeds, norms, a chain with its run from scratch, a coordinate check, a broken run."""
    study = fill(Maker(tmp_path_factory.mktemp("whole") / "runs"))
    base = study("tracked-base", [9.0, 8.0, 7.0], width=16, steps=12, norms=(0, 12))
    tracked = study("tracked", [6.0, 5.0, 4.0, 3.0], shrink=0.6, base=base, norms=(0, 40))
    study("grown-again", [5.0, 4.0, 3.0, 2.0], width=96, shrink=0.4, base=tracked, start_token=9)
    study("big", [8.0, 5.0, 4.0, 3.0], width=96, steps=60)
    study("going", [6.0, 5.0], shrink=0.2, base=base, steps=30, planned=40, checkpoint="step-00000030")
    add_check(study.folder / "check", base)
    return Report(study.folder, study.folder.parent / "picture.png")


def test_the_page_needs_no_other_file_and_answers_first(whole):
    page, ids = whole.page, re.findall(r'\bid="([^"]*)"', whole.page)
    assert whole.headings == ["The answer", "Pair by pair", "Successive warmstarts", "Coordinate checks", "Runs"]
    outside = r"""<(?:link|img|iframe|object)\b|\b(?:src|xlink:href)=["'](?!#)|@import|url\((?!#)"""
    assert re.findall(outside, page) == [] and not (whole.out_dir / "figures").exists()
    assert len(ids) == len(set(ids)) and set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)
    assert "prefers-color-scheme: dark" in page and "currentColor" in page and "#010203" not in page
    assert page.count("<svg") == 1 + 3 + 1 + 1
    assert "shrink 0.2, not finished" in page and len(page) < 300_000
    assert (whole.out_dir.parent / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_every_figure_has_values_for_the_pointer(whole):
    figures = {figure.name: figure.points for part in whole.parts for figure in part.figures}
    assert all(figures.values())
    told = [words for *_, words in figures["loss-tokens-1"]]
    assert "from scratch (muP): 4.0000 at 2 tokens per parameter" in told


def test_answers_and_tables_have_the_numbers(whole):
    told = whole.answers[1]
    assert "Of one seed there is no interval" in told
    assert "speed-up in Hoffmann FLOPs of 2.40 (1.29 to 17.22): faster" in told
    assert "25% of the target's tokens" in told and "1.33 at most" in told
    short, arm = sorted(whole.rows("speed_up"), key=lambda row: row["seeds"])
    assert arm["comparison"] == "neox-16 (0.001M) → neox-48 (0.0102M), 2 tokens per parameter"
    assert float(arm["speed_up"]) == pytest.approx(12 / 5) and arm["seeds_that_reached_scratch_loss"] == "3"
    assert float(arm["tokens_per_param"]) == 2.0 and float(arm["speed_up_limit"]) == pytest.approx(4 / 3)
    assert (
        short["speed_up_low"] == "" and short["warmstart"] == "shrink 0.6, from neox-16 (0.001M) at 6.14 tokens/param"
    )
    assert arm["distrust"] == "True" and 1 < float(arm["speed_up_limit_if_loss"]) < 4 / 3
    assert "with the base counted: one to distrust" in told
    pairs = whole.rows("pairs")
    assert len(pairs) == 4 and {row["seed"] for row in pairs} == {"1", "2", "3"}
    curve = [row for row in whole.rows("validation_losses") if row["run"] == pairs[0]["warmstart_run"]]
    own, offset = 40 * PER_STEP * FLOPS_PER_TOKEN[48], 10 * PER_STEP * FLOPS_PER_TOKEN[16]
    assert float(curve[-1]["hoffmann_flops"]) == pytest.approx(own)
    assert float(curve[-1]["hoffmann_flops_with_base"]) == pytest.approx(own + offset)
    assert [row["slope"] for row in whole.rows("coordinate_slopes_1")] == ["1.0", "-0.25"]
    status = {row["run"]: row["status"] for row in whole.rows("runs")}
    assert status["going"] == "not finished" and status["warm-1"] == "finished"
    assert any("going" in note and "step 30 of 40" in note for note in whole.notes)


def test_the_terminal_has_the_losses_side_by_side_and_the_compute(whole):
    (printed,) = (part.printed for part in whole.parts if part.printed)
    lines = printed.splitlines()
    assert lines[0].split()[:3] == ["tokens", "from", "scratch"] and lines[1].split()[:3] == ["0", "8.0000", "6.0000"]
    own, base = FLOPS_PER_TOKEN[48] * PER_STEP, 10 * PER_STEP * FLOPS_PER_TOKEN[16]
    spent = (20 + 20 + 10) / 3 * own  # the three seeds to the loss of 4
    share = f"{spent + base:.3g} ({(spent + base) / (40 * own):.0%})"
    assert f"warmstart {spent:.3g}, with the base's own training {share}." in lines[-1]


def test_norms_are_shown_for_the_base_the_warmstart_and_its_end(whole):
    found = {(row["moment"], row["kind"], row["layer"]): float(row["rms"]) for row in whole.rows("layer_norms_1")}
    assert found["base, trained", "activation", "lm_head"] == 14.0
    assert found["at the warmstart", "weight", "block 0 attn.qkv"] == 2.0
    assert found["trained, step 40", "weight", "lm_head"] == 42.0


def test_norms_that_begin_after_a_resume_are_drawn_and_tabled_also_without_a_run_from_scratch(make_run):
    base = make_run("base", [9.0, 7.0], width=16, steps=10)
    make_run("warm", [7.0, 5.0, 4.5, 4.1], shrink=0.4, base=base, norms=(10, 20, 40))
    report = Report(make_run.folder)
    table = report.rows("norms_over_training_1")
    assert {row["arm"] for row in table} == {"shrink 0.4"}
    assert not (report.out_dir / "tables/layer_norms_1.csv").exists()
    assert [float(row["rms"]) for row in table if row["layer"] == "lm_head" and row["kind"] == "weight"] == [12, 22, 42]


def test_norms_over_training_are_drawn_for_one_seed_beside_scratch(make_run):
    base = make_run("base", [9.0, 7.0], width=16, steps=10)
    for seed in (1, 2):
        make_run(f"scratch-{seed}", [8.0, 6.0, 5.0, 4.0], seed=seed, norms=(0, 20, 40))
        make_run(f"warm-{seed}", [7.0, 5.0, 4.5, 4.1], seed=seed, shrink=0.4, base=base, norms=(0, 20, 40))
    report = Report(make_run.folder)
    (svg,) = re.findall(r"<figure data-name=\"norms-over-training-1\".*?</figure>", report.page, re.DOTALL)
    assert all(words in svg for words in ("from scratch (muP)", "shrink 0.4", "tokens per parameter"))
    assert "embedding" in svg and "lm_head" in svg and "block 0, output" not in svg  # whose output has no norms here
    assert {row["run"] for row in report.rows("norms_over_training_1")} == {"scratch-1", "warm-1"}


def test_induction_scores_are_drawn_and_tabled_with_the_tokens_of_each_drop_and_are_no_layer(make_run):
    base = make_run("base", [9.0, 7.0], width=16, steps=10)
    shared = dict(norms=(0, 20, 40))
    make_run("scratch", [8.0, 6.0, 5.0, 4.0], scores=(0.0, -0.05, -0.08), **shared)
    make_run("warm", [7.0, 5.0, 4.5, 4.1], shrink=0.4, base=base, scores=(0.0, -0.1, -0.4), **shared)
    report = Report(make_run.folder)
    (svg,) = re.findall(r"<figure data-name=\"norms-over-training-1\".*?</figure>", report.page, re.DOTALL)
    assert "induction score, nats per token" in svg and "shrink 0.4: -0.1 at 1 tokens per parameter" in svg
    assert [(row["arm"], float(row["score"])) for row in report.rows("induction_1")][-1] == ("shrink 0.4", -0.4)
    assert {row["kind"] for row in report.rows("norms_over_training_1")} == {"activation", "weight"}
    (pair,) = report.rows("pairs")
    assert float(pair["drop_tokens"]) == pytest.approx(20 * PER_STEP) and pair["scratch_drop_tokens"] == ""
    dates = {row["run"]: row["drop_tokens_per_param"] for row in report.rows("runs")}
    assert dates["scratch"] == dates["base"] == "" and float(dates["warm"]) == pytest.approx(1)
    assert "drop tokens per param" in report.page and "drop tokens per param" not in Report(base).page


def test_where_along_the_budget_a_warmstart_is_ahead_is_told_in_a_table(make_run):
    """At 10 and 20 of 40 steps all three seeds are ahead, at 30 and 40 behind."""
    base = make_run("base", [9.0, 7.0], width=16, steps=10)
    for seed in (1, 2, 3):
        make_run(f"scratch-{seed}", [8.0, 7.0, 6.0, 5.0, 4.0], seed=seed)
        losses = [6.0, 6.5 - seed / 100, 5.8 - seed / 100, 5.2 - seed / 100, 4.1 + seed / 100]
        make_run(f"warm-{seed}", losses, seed=seed, shrink=0.4, base=base)
    report = Report(make_run.folder)
    row = report.sections[1].parts[0].tables[0].shown.iloc[1]
    assert row["ahead at equal tokens"] == "from 0.5 to 1 tokens per parameter"
    assert row["less scratch's"] == "+0.120 (+0.095 to +0.145)" and row["first loss"] == "6.0000"
    gains = [row for row in report.rows("gains_1") if row["equal"] == "tokens"]
    assert [row["ahead"] for row in gains] == ["True", "True", "False", "False"]
    assert float(gains[-1]["val_loss_minus_scratch"]) == pytest.approx(0.12)


def test_one_comparison_is_answered_in_one_sentence_and_several_are_counted(study):
    headline = Report(study.folder).answers[0]
    assert headline.startswith("neox-16 (0.001M) → neox-48 (0.0102M), 2 tokens per parameter: with shrink 0.4")
    assert "a speed-up in Hoffmann FLOPs of 2.17 (" in headline and ") with the base's counted: faster" in headline
    study("longer", [8.0, 6.0, 5.0, 4.0], steps=80)
    study("warm-longer", [6.0, 5.0, 4.0, 3.0], steps=80, shrink=0.4, base=study.folder / "base")
    headline = "Of 2 comparisons, with the base's compute counted, the best warmstart was told by one seed"
    assert Report(study.folder).answers[0].startswith(headline)


def test_a_budget_of_20_tokens_per_parameter_less_a_part_of_a_step_is_no_start_of_a_run(make_run):
    base = make_run("base", [9.0, 7.0], width=16, steps=10)
    for steps in (399, 100):  # 19.95 and 5 tokens per parameter
        make_run(f"scratch-{steps}", [8.0, 7.0, 6.0, 4.0], steps=steps)
        make_run(f"warm-{steps}", [6.0, 5.0, 4.0, 3.0], steps=steps, shrink=0.4, base=base)
    _, long, short = Report(make_run.folder).answers
    assert "the start of a training run" in short and "the start of a training run" not in long


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
    for name in "ab":
        add_check(tmp_path / "checks" / name, tmp_path)
    (tmp_path / "checks/b/slopes.csv").unlink()
    report = Report(tmp_path / "checks")
    assert report.headings == ["The answer", "Coordinate checks"] and report.page.count("<svg") == 1
    assert "b: damaged or half-written" in report.page and len(report.answers) == 1


def test_runs_without_warmstarts_have_no_answer_and_no_picture(make_run, tmp_path):
    make_run("cells/a", [8.0, 7.0])
    make_run("cells/b", [8.0, 7.5], base_lr=0.1)
    report = Report(make_run.folder)
    assert report.answers[0].endswith("no answer.") and len(report.rows("runs")) == 2
    with pytest.raises(UserError, match="--picture shows a warmstart beside its run from scratch, and there is none"):
        Report(make_run.folder, tmp_path / "picture.png")


def test_a_grid_search_is_drawn_and_its_winner_told_and_a_damaged_one_is_left_out_and_said(make_run):
    make_run("grid/cells/a", [8.0, 7.0])
    make_run("grid/wider/cells/a", [8.0, 7.0], width=96)
    grids = dict(grid="0.1,8,1,finished,7.5,20480,b\n1.0,8,1,diverged,9.0,512,c\n", commas="0.1,8,1,finished,7,9,b,\n")
    for name, lines in (grids | dict(worse="0.02,8,1,finished,far,20480,a\n")).items():
        (make_run.folder / name).mkdir(exist_ok=True)
        (make_run.folder / name / "grid_search.csv").write_text(GRID + lines)
    report = Report(make_run.folder)
    page = report.page
    assert "commas: damaged or half-written: a row has more or fewer columns" in page and len(report.notes) == 2
    assert "worse: damaged or half-written: could not convert string to float" in page
    assert report.headings == ["The answer", "Grid searches", "Runs"] and page.count("<svg") == 1
    assert "Best: lr 0.02, batch 8, validation loss 7.0000." in page and "0.02 is the smallest of --lrs" in page
    assert "grid: neox-48 (0.0102M), 2 tokens per parameter" in page  # not grid/wider
    assert [row["val_loss"] for row in report.rows("grid_searches")] == ["7.0", "7.5", "9.0"]
    assert "diverged" in page and "7.500" in page


def test_a_page_of_the_studys_shape_has_at_most_twelve_figures(make_run):
    """As `make study` has it: a grid, three pairs, one of them tracked, two ways to one scale, a coordinate check."""
    base = make_run("grid/cells/a", [9.0, 8.0, 7.0], width=16, steps=10, norms=(0, 5, 10))
    (make_run.folder / "grid/grid_search.csv").write_text(GRID)
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
    report = Report(make_run.folder)
    names = [figure.name for part in report.parts for figure in part.figures]
    assert report.page.count("<svg") == len(names) <= 12
    assert {"speed-up", "loss-compute-3", "norms-1", "successive-1", "grid-search-1", "coordinates-1"} <= set(names)


def test_no_speed_up_is_an_answer(make_run):
    make_run.pair([8.0, 6.0, 4.0], [6.0, 5.5, 5.0])
    headline, told = Report(make_run.folder).answers
    assert "No warmstart reached the scratch run's last validation loss, 4.0000, with every seed: no speed-up." in told
    assert "Of one seed there is no interval" in told and "Fewer than 4 validations" in told
    assert headline.endswith("no warmstart reached the scratch run's last validation loss.")


def test_an_earlier_report_is_replaced_with_its_figures_and_another_page_is_not(tmp_path):
    add_check(tmp_path / "check", tmp_path)
    first = Report(tmp_path / "check")
    page, figures = first.out_dir / "index.html", first.out_dir / "figures"
    (first.out_dir / "tables/mine.csv").touch()
    figures.mkdir()
    (figures / "old-1.svg").touch()  # of an older version's report
    page.write_text(first.page.replace('content="[', 'content="[&quot;figures/old-1.svg&quot;, '))
    assert Report(tmp_path / "check").page == first.page
    assert (first.out_dir / "tables/mine.csv").exists() and not figures.exists()
    page.write_text("<h1>Mine</h1>")
    with pytest.raises(UserError, match="holds an index.html that is no report"):
        Report(tmp_path / "check")


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
    verdicts = {r["verdict"] for r in rows(tmp_path / "report/tables/coordinate_slopes_1.csv")}
    assert verdicts and verdicts <= {"ok", "grows"}
    told = capsys.readouterr().out
    assert "neox-16 (0.138M) → neox-48" in told and "Wrote" in told and "Not counted" not in told
    (row,) = rows(tmp_path / "report/tables/speed_up.csv")
    assert row["seeds"] == "2" and float(row["first_val_loss_minus_scratch"]) < 0
    assert float(row["first_val_loss_minus_scratch_low"]) < float(row["first_val_loss_minus_scratch_high"])
    moments = {r["moment"] for r in rows(tmp_path / "report/tables/layer_norms_1.csv")}
    assert moments == {"from scratch, trained", "at the warmstart", "trained, step 8"}
