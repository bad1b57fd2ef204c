"""warmstart_coord_check: what it prints and writes, and what it refuses in one line."""

import shutil
from pathlib import Path

import pandas
import pytest
import yaml
from jsonargparse import ArgumentParser, set_parsing_settings
from litgpt.utils import save_config

from litgpt_warmstart.commands import warmstart_coord_check, warmstart_report
from litgpt_warmstart.commands.study import as_list
from litgpt_warmstart.data import PreparedText, StdlibText
from litgpt_warmstart.run.checkpoint import RECORD, read_header
from tests.conftest import llama, neox

VOCABULARY = dict(vocab_size=4096, padded_vocab_size=4096)
SMALL = dict(widths="16,32", steps=2, num_seeds=1, batch_size=2, block_size=16, shrink="0.4")


@pytest.fixture
def told(capsys):
    """Run the command on small models and return what it printed."""

    def run(**changes) -> str:
        capsys.readouterr()
        warmstart_coord_check.setup(**SMALL | changes)
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(base, tmp_path, capsys):
    """Run the command with changed arguments and return its one line."""

    def run(**changes) -> str:
        capsys.readouterr()
        out_dir = tmp_path / "out"
        with pytest.raises(SystemExit) as error:
            warmstart_coord_check.setup(**SMALL | dict(base=base, out_dir=out_dir) | changes)
        line = capsys.readouterr().err.strip()
        assert error.value.code == 1 and len(line.splitlines()) == 1, line
        assert not out_dir.exists(), "something was written"
        return line

    return run


def scale(config, folder: Path) -> str:
    folder.mkdir(parents=True)
    save_config(config, folder)
    return str(folder / "model_config.yaml")


def test_arms_rates_and_data_come_from_the_base_and_the_next_blocks_are_read(told, base, tmp_path, monkeypatch):
    picked = []
    batches = PreparedText.train_batches
    monkeypatch.setattr(PreparedText, "train_batches", lambda self, *a: (picked.append(a[0]), batches(self, *a))[1])
    out_dir = tmp_path / "out"
    printed = told(base=base, shrink="0.2,1", out_dir=out_dir)
    frame = pandas.read_csv(out_dir / "coord_check.csv")
    arms = frame[["parametrization", "shrink"]].drop_duplicates().astype(object).fillna("").values.tolist()
    assert arms == [["sp", ""], ["mup", ""], ["warmstart", 0.2], ["warmstart", 1.0]]
    assert set(frame["width"]) == {16, 32} and set(frame["t"]) == {1, 2}
    seen = read_header(base).record.data.stop_token
    assert (picked[0].token(0), picked[0].token(2)) == (seen, seen + 2 * 65)  # 16 of each block's 64 are taken
    assert "lr 0.02 at n_embd 16" in printed and "above 0.4" in printed
    (layers,) = (line for line in printed.splitlines() if line.startswith("layer"))
    assert layers.split() == ["layer", "SP", "muP", "shrink", "0.2", "shrink", "1"]
    assert {p.name for p in out_dir.iterdir()} == {
        "coord_check.csv", "slopes.csv", "coord_check.png", "hyperparameters.yaml",
    }  # fmt: skip


def test_hyperparameters_yaml_repeats_the_check(told, base, tmp_path):
    told(base=base, out_dir=tmp_path / "a", parametrizations="mup,warmstart", shrink=[0.4], steps=1)
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser()
    parser.add_function_arguments(warmstart_coord_check.setup)
    arguments = parser.instantiate_classes(parser.parse_path(str(tmp_path / "a/hyperparameters.yaml")))
    assert isinstance(arguments.data, StdlibText) and arguments.lr == 0.02 and arguments.widths == [16, 32]
    warmstart_coord_check.setup(**vars(arguments) | dict(out_dir=tmp_path / "b"))
    first, second = ((tmp_path / name / "coord_check.csv").read_bytes() for name in "ab")
    assert first == second


@pytest.mark.parametrize("typed", ["16,32", "[16, 32]"])
def test_lists_are_given_with_commas_or_brackets(typed):
    parser = ArgumentParser()
    parser.add_function_arguments(warmstart_coord_check.setup)
    given = parser.parse_args(["--widths", typed, "--shrink", typed, "--scales", typed])
    found = [as_list(given[name], kind, name) for name, kind in (("widths", int), ("shrink", float), ("scales", str))]
    assert found == [[16, 32], [16.0, 32.0], ["16", "32"]]


def test_without_a_base_sp_and_mup_run_alone_and_a_line_says_so(told, tiny, stdlib_path, tmp_path):
    printed = told(target=tiny[16], lr=0.02, data=StdlibText(stdlib_path), out_dir=tmp_path / "out")
    assert "Without --base there is no warmstart" in printed
    frame = pandas.read_csv(tmp_path / "out/coord_check.csv")
    assert list(frame["parametrization"].unique()) == ["sp", "mup"]


def test_over_depths_the_ways_are_those_that_carry_over_depth_and_the_report_shows_them(
    told, tiny, stdlib_path, tmp_path, capsys
):
    own = dict(target=tiny[16], widths=None, depths="2,4", lr=0.02, data=StdlibText(stdlib_path))
    printed = told(**own, out_dir=tmp_path / "out")
    assert "n_layer 2, 4; lr 0.02 at n_embd 16 and n_layer 2" in printed and "last block" in printed
    frame = pandas.read_csv(tmp_path / "out/coord_check.csv")
    assert list(frame["parametrization"].unique()) == ["sp", "completep"]
    assert yaml.safe_load((tmp_path / "out/hyperparameters.yaml").read_text())["depths"] == [2, 4]
    warmstart_report.setup([tmp_path], tmp_path / "report")
    assert "Left out" not in capsys.readouterr().out and "CompleteP" in (tmp_path / "report/index.html").read_text()


def test_over_depths_warmstarts_begin_at_the_bases_own_which_is_padded(told, base, tmp_path):
    own = dict(base=base, widths=None, depths="2,4", parametrizations="warmstart", perturb=0.0, shrink="1")
    printed = told(**own, operator="stack", gains="copied", out_dir=tmp_path / "out")
    assert "n_layer 2, 4" in printed
    first = pandas.read_csv(tmp_path / "out/coord_check.csv").query("depth == 2 and t == 1").set_index("module")["l1"]
    told(**own | dict(widths="16,32", depths=None), gains="copied", out_dir=tmp_path / "wide")
    alone = pandas.read_csv(tmp_path / "wide/coord_check.csv").query("width == 16 and t == 1").set_index("module")["l1"]
    assert first["lm_head"] == pytest.approx(alone["lm_head"], rel=1e-5)  # the base itself


def test_adam_has_torchs_betas_unless_others_are_typed(told, tiny, stdlib_path, tmp_path):
    own = dict(target=tiny[16], lr=0.02, data=StdlibText(stdlib_path), parametrizations="mup")
    for number, (optimizer, shown) in enumerate(
        [("torch.optim.Adam", "Adam, betas [0.9, 0.999]"), ({"class_path": "Adam", "betas": [0.8, 0.9]}, "[0.8, 0.9]"),
         ("AdamW", "AdamW, betas [0.9, 0.95]")]
    ):  # fmt: skip
        assert shown in told(**own, optimizer=optimizer, out_dir=tmp_path / str(number))


def test_scales_by_file_with_smaller_heads_say_which_alignment_is_used(told, base, tiny, tmp_path):
    narrow_heads = scale(neox(32, 8, **VOCABULARY), tmp_path / "a")
    printed = told(base=base, widths=None, scales=[tiny[16], narrow_heads], out_dir=tmp_path / "out")
    assert "neox-32: alignment blocks instead of heads (head_size 8 -> 4)" in printed
    assert yaml.safe_load((tmp_path / "out/hyperparameters.yaml").read_text())["widths"] is None


def test_a_finished_check_is_replaced_only_when_asked(told, base, tmp_path, capsys):
    only = dict(base=base, parametrizations="mup", out_dir=tmp_path / "out")
    told(**only)
    before = (tmp_path / "out/coord_check.csv").read_bytes()
    with pytest.raises(SystemExit):
        told(**only, seed=7)
    assert "holds a coordinate check: pass --overwrite true" in capsys.readouterr().err
    assert (tmp_path / "out/coord_check.csv").read_bytes() == before
    told(**only, seed=7, overwrite=True)
    assert (tmp_path / "out/coord_check.csv").read_bytes() != before


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (dict(widths="16"), "--widths has 1 of the two widths or more"),
        (dict(widths="32,16"), "--widths must grow from each to the next, got n_embd 32, 16"),
        (dict(widths="16,36"), "width 36 of --widths is no multiple of 8"),
        (dict(widths="8,16"), "--widths begins with n_embd 8, below the 16 of 'neox-16'"),
        (dict(widths="16,wide"), "--widths 16,wide: give int values with commas"),
        (dict(scales="5M,22M"), "--widths and --scales exclude each other"),
        (dict(widths=None, scales="22M,5M"), "--scales must grow"),
        (dict(widths=None, scales="22M,70M"), "n_layer 2"),
        (dict(widths=None, scales="22M"), "--scales has 1"),
        (dict(depths="2,4"), "--widths and --depths exclude each other: leave one out"),
        (dict(widths=None, depths="2"), "--depths has 1 of the two depths or more"),
        (dict(widths=None, depths="4,2"), "--depths must grow from each to the next, got n_layer 4, 2"),
        (dict(widths=None, depths="1,2"), "--depths begins with n_layer 1, below the 2 of 'neox-16'"),
        (dict(widths=None, depths="2,4", parametrizations="mup"), "mup carries nothing over --depths"),
        (dict(num_seeds=0), "--num_seeds must be above 0"),
        (dict(batch_size=0), "--batch_size must be above 0"),
        (dict(block_size=-1), "--block_size must be above 0"),
        (dict(block_size=65), "--block_size 65 is above the models' 64"),
        (dict(shrink="0.4,1.5"), "--shrink must lie in [0, 1], got 1.5"),
        (dict(shrink="much"), "--shrink much: give float values with commas"),
        (dict(shrink="0,1", perturb=0.0), "--shrink 0 with --perturb 0 leaves no weights"),
        (
            dict(parametrizations="mup,ntk"),
            "--parametrizations has no 'ntk': choose from sp, mup, completep, warmstart",
        ),
        (dict(target="5M"), "--base and --target exclude each other"),
        (dict(base=None), "--target is missing"),
        (dict(seed=40, num_seeds=3), "--seed 40 with --num_seeds 3 includes 42, which the base was initialized with"),
        (dict(batch_size=10**6), "the data is too short"),
    ],
)
def test_bad_input_is_one_line_that_names_the_option(refused, changes, line):
    assert line in refused(**changes)


def test_a_scale_that_cannot_be_grown_from_the_base_is_refused(refused, base, tiny, tmp_path):
    other = scale(llama(32, 4, **VOCABULARY), tmp_path / "a")
    assert "mlp_class_name" in refused(widths=None, scales=[tiny[16], other])
    vocabulary = scale(neox(32, 4), tmp_path / "b")
    assert "padded_vocab_size" in refused(widths=None, scales=[tiny[16], vocabulary])
    fewer = scale(neox(32, 1, head_size=8, **VOCABULARY), tmp_path / "c")
    assert "does not fit" in refused(widths=None, scales=[tiny[16], fewer])


def test_a_warmstart_without_a_base_or_a_rate_known_from_nowhere_is_refused(refused, tiny, stdlib_path):
    scratch = dict(base=None, target=tiny[16], data=StdlibText(stdlib_path))
    assert "warmstart needs --base" in refused(**scratch, lr=0.02, parametrizations=["mup", "warmstart"])
    assert "no learning rate is known for 'neox-16'" in refused(**scratch)


def test_a_foreign_base_needs_a_rate_and_data_and_a_damaged_one_is_refused(refused, base, stdlib_path, tmp_path):
    folder = tmp_path / "foreign"
    shutil.copytree(base, folder)
    (folder / RECORD).unlink()
    assert "pass --data" in refused(base=folder, lr=0.02)
    given = dict(base=folder, data=StdlibText(stdlib_path))
    assert "no learning rate is known" in refused(**given)
    content = (folder / "lit_model.pth").read_bytes()
    (folder / "lit_model.pth").write_bytes(content[: len(content) // 2])
    assert "cut off or damaged" in refused(**given, lr=0.02)
