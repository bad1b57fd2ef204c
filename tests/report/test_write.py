"""The page, its figures and tables, from run folders to files."""

import csv
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from litgpt_warmstart.commands import warmstart, warmstart_coord_check, warmstart_report, warmstart_scratch
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.report.answers import sentences
from litgpt_warmstart.report.chains import chains, parent
from litgpt_warmstart.report.grids import Cell, draw_cells
from litgpt_warmstart.report.groups import compare_all
from litgpt_warmstart.report.html import Section, Table, render
from litgpt_warmstart.report.layers import layer_name
from litgpt_warmstart.report.old_figures import inline
from litgpt_warmstart.report.old_runs import Run, find
from litgpt_warmstart.report.write import Written, write_report
from litgpt_warmstart.run.spec import TrainArgs
from tests.report.conftest import FLOPS_PER_TOKEN, PER_STEP, Maker, fill


class Page(HTMLParser):
    """Headings, ids, and whatever a browser would have to fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings, self.ids, self.fetched, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.open.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        if tag in ("script", "link", "img", "iframe", "object"):
            self.fetched.append(tag)
        for name in ("src", "xlink:href"):
            if values.get(name, "#")[0] != "#":
                self.fetched.append(values[name])

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
            self.open.append("")


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


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
def written(whole) -> Written:
    return write_report([whole], whole.parent / "report")


@pytest.fixture(scope="module")
def tables(written) -> Path:
    return written.page.parent / "tables"


def test_the_page_needs_no_other_file_and_answers_first(written):
    figures = written.page.parent / "figures"
    text = written.page.read_text(encoding="utf-8")
    page = Page(text)
    assert page.headings == ["The answer", "Loss against compute and tokens",
                             "Where along the budget the gain is", "Initial and final loss over scale pairs",
                             "Successive warmstarts", "Norms: base, at the warmstart, trained", "Coordinate checks",
                             "Runs"]  # fmt: skip
    assert page.fetched == [] and "@import" not in text and re.findall(r"url\((?!#)", text) == []
    assert len(page.ids) == len(set(page.ids))
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(page.ids)
    assert "prefers-color-scheme: dark" in text and "currentColor" in text and "#010203" not in text
    assert text.count("<svg") == len(list(figures.glob("*.svg"))) == 3 + 2 + 2 + 2 + 2 + 1
    for svg in figures.glob("*.svg"):
        assert svg.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    for figure in re.findall(r"<figcaption>(.*?)</figcaption>", text):
        assert "tokens per parameter" in figure or "over seeds" in figure, figure
    svgs = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert all(re.search(r"tokens per param|tokens/param", svg) for svg in svgs)
    assert "shrink 0.2, not finished: R" in svgs[0]


def test_norms_that_begin_after_a_resume_are_drawn_and_tabled(make_run):
    base = make_run("base", [9.0, 7.0], width=16, steps=10)
    make_run("warm", [7.0, 5.0, 4.5, 4.1], shrink=0.4, base=base, norms=(10, 20, 40))
    page = write_report([make_run.folder], make_run.folder.parent / "report").page
    table = rows(page.parent / "tables/norms_over_training.csv")
    assert {row["arm"] for row in table} == {"shrink 0.4"} and not (page.parent / "tables/layer_norms.csv").exists()
    assert [float(row["rms"]) for row in table if row["layer"] == "lm_head" and row["kind"] == "weight"] == [12, 22, 42]


def test_norms_over_training_are_drawn_for_one_seed_beside_scratch(make_run):
    base = make_run("base", [9.0, 7.0], width=16, steps=10)
    for seed in (1, 2):
        make_run(f"scratch-{seed}", [8.0, 6.0, 5.0, 4.0], seed=seed, norms=(0, 20, 40))
        make_run(f"warm-{seed}", [7.0, 5.0, 4.5, 4.1], seed=seed, shrink=0.4, base=base, norms=(0, 20, 40))
    page = write_report([make_run.folder], make_run.folder.parent / "report").page
    drawn = sorted(path.stem for path in (page.parent / "figures").glob("norms-over-training-*.svg"))
    assert drawn == ["norms-over-training-activations-1", "norms-over-training-weights-1"]
    svg = (page.parent / "figures/norms-over-training-activations-1.svg").read_text(encoding="utf-8")
    assert "from scratch (muP)" in svg and "shrink 0.4" in svg and "tokens per parameter" in svg
    assert "embedding" in svg and "lm_head" in svg and "block 0" not in svg  # whose output has no norms here
    assert "neox-48 (0.0102M), 2 tokens per parameter: root mean square of layers&#x27; outputs over training" in (
        page.read_text(encoding="utf-8")
    )


def test_answers_and_tables_have_the_numbers(written, tables):
    about, sentences = written.answers[0]
    assert about == "neox-16 (0.001M) → neox-48 (0.0102M), 2 tokens per parameter"
    assert "shrink 0.6, from neox-16 (0.001M) at 6.14 tokens/param has one seed" in " ".join(sentences)
    assert "speed-up in Hoffmann FLOPs of 2.40 (95% interval 1.29 to 17.22): faster" in sentences[0]
    table = {row["warmstart"]: row for row in rows(tables / "speed_up.csv")}
    arm = next(row for label, row in table.items() if label.startswith("shrink 0.4"))
    assert float(arm["speed_up"]) == pytest.approx(12 / 5) and arm["seeds_that_reached_scratch_loss"] == "3"
    assert float(arm["tokens_per_param"]) == 2.0
    assert table[next(label for label in table if label.startswith("shrink 0.6"))]["speed_up_low"] == ""
    pairs = rows(tables / "pairs.csv")
    assert len(pairs) == 4 and {row["seed"] for row in pairs} == {"1", "2", "3"}
    curve = [row for row in rows(tables / "validation_losses.csv") if row["run"] == pairs[0]["warmstart_run"]]
    own, offset = 40 * PER_STEP * FLOPS_PER_TOKEN[48], 10 * PER_STEP * FLOPS_PER_TOKEN[16]
    assert float(curve[-1]["hoffmann_flops"]) == pytest.approx(own)
    assert float(curve[-1]["hoffmann_flops_with_base"]) == pytest.approx(own + offset)
    slopes = rows(tables / "coordinate_slopes_1.csv")
    assert [row["slope"] for row in slopes] == ["1.0", "-0.25"]
    status = {row["folder"]: row["status"] for row in rows(tables / "runs.csv")}
    assert status["going"] == "not finished" and status["warm-1"] == "finished"
    assert any("going" in note and "step 30 of 40" in note for note in written.notes)


def test_a_chain_is_compared_at_the_compute_of_its_whole_lineage(whole):
    runs = find([whole]).runs
    (chain,) = [c for c in chains(runs, []) if len(c.stages) == 3]
    assert [run.out_dir.name for run in chain.stages] == ["tracked-base", "tracked", "grown-again"]
    assert chain.scratch.out_dir.name == "big" and chain.finished
    before = PER_STEP * (12 * FLOPS_PER_TOKEN[16] + 40 * FLOPS_PER_TOKEN[48])
    assert chain.flops == pytest.approx(before + 40 * PER_STEP * FLOPS_PER_TOKEN[96])
    assert chain.flops_to_scratch_loss == pytest.approx(before + 27 * PER_STEP * FLOPS_PER_TOKEN[96])  # loss 3 at 27
    assert chain.share == pytest.approx(chain.flops_to_scratch_loss / (60 * PER_STEP * FLOPS_PER_TOKEN[96]))


def test_a_budget_of_20_tokens_per_parameter_less_a_part_of_a_step_is_no_start_of_a_run(make_run):
    base = make_run("base", [9.0, 7.0], width=16, steps=10)
    for steps in (399, 100):  # 19.95 and 5 tokens per parameter
        make_run(f"scratch-{steps}", [8.0, 7.0, 6.0, 4.0], steps=steps)
        make_run(f"warm-{steps}", [6.0, 5.0, 4.0, 3.0], steps=steps, shrink=0.4, base=base)
    found = compare_all(find([make_run.folder]).runs).comparisons
    told = {round(c.tokens_per_param): " ".join(sentences(c)) for c in found}
    assert "the start of a training run" in told[5] and "the start of a training run" not in told[20]


def test_a_copy_of_a_run_is_said_to_be_one_and_shown_once(study, tmp_path):
    study("copies/warm-1", [6.0, 5.0, 4.0, 3.5, 3.0], seed=1, shrink=0.4, base=study.folder / "base")
    written = write_report([study.folder], tmp_path / "report")
    (note,) = written.notes
    assert "repeats" in note and len(written.answers) == 1


def test_a_parent_is_told_by_its_weights(study):
    run, others = Run.read(study.folder / "warm-1"), [Run.read(study.folder / "base")]
    assert parent(run, others) is others[0]
    (study.folder / "base/final/lit_model.pth").write_bytes(b"trained again, as it happens")
    assert parent(run, others) is None


def test_norms_are_shown_for_the_base_the_warmstart_and_its_end(tables):
    found = {(row["moment"].partition(":")[0], row["kind"], row["layer"]): float(row["rms"])
             for row in rows(tables / "layer_norms.csv")}  # fmt: skip
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
    written = write_report([tmp_path / "checks"], tmp_path / "report")
    page = written.page.read_text(encoding="utf-8")
    assert Page(page).headings == ["The answer", "Coordinate checks"] and page.count("<svg") == 1
    assert "b: damaged or half-written" in page and written.answers == []


def test_a_grid_without_warmstarts_says_that_there_is_no_answer(make_run, tmp_path):
    make_run("cells/a", [8.0, 7.0])
    make_run("cells/b", [8.0, 7.5], base_lr=0.1)
    written = write_report([make_run.folder], tmp_path / "report")
    assert written.answers == [] and written.words[0].endswith("no answer")
    assert len(rows(tmp_path / "report/tables/runs.csv")) == 2


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
    written = write_report([make_run.folder], tmp_path / "report")
    page = written.page.read_text(encoding="utf-8")
    assert "commas: a row has more or fewer columns" in page
    assert Page(page).headings == ["The answer", "Grid searches", "Runs"] and page.count("<svg") == 1
    assert "Best: lr 0.02, batch 8, validation loss 7.0000." in page and "0.02 is the smallest of --lrs" in page
    assert "grid: neox-48 (0.0102M), 2 tokens per parameter" in page and "Runs R1, R2." in page  # not grid/wider
    assert "worse: could not convert string to float" in page and len(written.notes) == 2
    assert written.answers[0][1][0] == "Best: lr 0.02, batch 8, validation loss 7.0000."
    assert [row["val_loss"] for row in rows(tmp_path / "report/tables/grid_searches.csv")] == ["7.0", "7.5", "9.0"]
    svg = (tmp_path / "report/figures/grid-search-1.svg").read_text(encoding="utf-8")
    assert "diverged" in svg and "7.500" in svg


def test_a_grid_of_one_batch_size_has_cells_with_an_area():
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    found = [Cell(lr, 64, (loss,), 0, ()) for lr, loss in ((0.01, 4.0), (0.03, 3.8))]
    draw_cells(axes, found, found[1])
    assert axes.collections[0].get_coordinates()[:, :, 0].tolist() == [[-0.5, 0.5]] * 3
    plt.close(figure)


def test_no_speed_up_is_an_answer(make_run, tmp_path):
    base = make_run("base", [9.0, 7.0], width=16, steps=10)
    make_run("scratch", [8.0, 6.0, 4.0])
    make_run("warm", [6.0, 5.5, 5.0], shrink=0.4, base=base)
    told = " ".join(write_report([make_run.folder], tmp_path / "report").answers[0][1])
    assert "No warmstart reached the scratch run's last validation loss, 4.0000: no speed-up." in told
    assert "has one seed: an interval needs two" in told and "Fewer than 4 validations" in told


def test_an_earlier_report_is_replaced_and_another_page_is_not(tmp_path):
    add_check(tmp_path / "check", tmp_path)
    out_dir = tmp_path / "report"
    first = write_report([tmp_path / "check"], out_dir).page.read_text(encoding="utf-8")
    (out_dir / "figures/mine.png").touch()
    assert write_report([tmp_path / "check"], out_dir).page.read_text(encoding="utf-8") == first
    assert (out_dir / "figures/mine.png").exists()
    (out_dir / "index.html").write_text("<h1>Mine</h1>")
    with pytest.raises(UserError, match="holds an index.html that is no report"):
        write_report([tmp_path / "check"], out_dir)


def test_names_are_escaped():
    table = Table("t", "<b>", [{"a": "<i>"}], [{"a": "<i>"}])
    page = render("<u>", [Section("<h>", ["<w>"], [("<x>", ["<y>"])], tables=[table], notes=["<n>"])], "<z>")
    assert re.findall(r"<(?:b|i|u|w|x|y|z|n|h)>", page) == []


def test_an_svg_in_the_page_has_ids_of_its_own():
    svg = '<?xml version="1.0"?>\n<svg width="9pt" height="8pt" viewBox="0 0 9 8"><g id="p" style="fill: #010203"/>'
    svg += '<use xlink:href="#p" clip-path="url(#p)" width="3"/></svg>'
    assert inline(svg, "a") == (
        '<svg viewBox="0 0 9 8"><g id="a-p" style="fill: currentColor"/>'
        '<use xlink:href="#a-p" clip-path="url(#a-p)" width="3"/></svg>'
    )


def command(monkeypatch, *words: object) -> None:
    from litgpt_warmstart.__main__ import main

    monkeypatch.setattr(sys, "argv", ["litgpt-warmstart", "warmstart_report", *map(str, words)])
    main()


def test_folders_are_typed_one_after_the_other_or_named_in_a_file(study, tmp_path, monkeypatch, capsys):
    folders = [study.folder / name for name in ("base", "scratch-1", "warm-1")]
    command(monkeypatch, *folders, "--out_dir", tmp_path / "a")
    assert "speed-up in Hoffmann FLOPs of 2.00 (one seed: no interval)" in capsys.readouterr().out
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
    moments = {r["moment"].partition(":")[0] for r in rows(tmp_path / "report/tables/layer_norms.csv")}
    assert moments == {"from scratch, trained", "at the warmstart", "trained, step 8"}
