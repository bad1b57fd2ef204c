"""Learning rates over width: the runs and what they share, adding to them, the optimum and how far it moves."""

import math
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from litgpt.utils import save_config

from litgpt_warmstart.commands import warmstart_lr_transfer, warmstart_scratch
from litgpt_warmstart.report.write import write_report
from litgpt_warmstart.run.checkpoint import read_header
from litgpt_warmstart.run.spec import EvalArgs, TrainArgs
from litgpt_warmstart.study import kinds
from litgpt_warmstart.study.lr_transfer import COLUMNS, curves, optima, optimum, table, verdicts
from tests.conftest import assert_same_weights, losses, neox
from tests.study.conftest import rows


@pytest.fixture(scope="module")
def scales(tmp_path_factory) -> list[str]:
    """Model files of widths 16, 32 and 64, two layers each."""
    paths = []
    for n_embd, n_head in ((16, 2), (32, 4), (64, 4)):
        folder = tmp_path_factory.mktemp(f"width-{n_embd}")
        save_config(neox(n_embd, n_head, vocab_size=4096, padded_vocab_size=4096), folder)
        paths.append(str(folder / "model_config.yaml"))
    return paths


@pytest.fixture(scope="module")
def arguments(scales, settings) -> dict:
    """A scan of two scales, two learning rates and one seed: 2 + 2 + 2 runs of 3 steps of 4 x 64."""
    train = TrainArgs(max_tokens=800, global_batch_size=4, micro_batch_size=4)
    return settings | dict(scales=scales[:2], lrs="0.01,0.03", seeds=1, train=train)


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory) -> tuple[Path, str]:
    """The folder of that scan, and what was printed."""
    folder, printed = tmp_path_factory.mktemp("scanned") / "scan", StringIO()
    with redirect_stdout(printed):
        warmstart_lr_transfer.setup(**arguments, out_dir=folder)
    return folder, printed.getvalue()


@pytest.fixture(scope="module")
def scanned(whole) -> Path:
    """The folder of that scan."""
    return whole[0]


def test_every_run_reads_the_same_tokens_and_its_rate_is_given_at_the_first_scale(scanned):
    table = rows(scanned / "lr_transfer.csv")
    assert {row["tokens"] for row in table} == {"768"}  # 800 in whole steps
    assert [row["run"] for row in table] == [
        *("neox-16-lr-0.01-seed-1", "neox-16-lr-0.03-seed-1"),
        *("neox-32-mup-lr-0.01-seed-1", "neox-32-mup-lr-0.03-seed-1"),
        *("neox-32-sp-lr-0.01-seed-1", "neox-32-sp-lr-0.03-seed-1"),
    ]
    records = {row["run"]: read_header(scanned / "runs" / row["run"] / "final").record for row in table}
    reads = {(use.fingerprint, use.start_token, use.stop_token, use.order_seed) for r in records.values()
             for use in r.data_uses}  # fmt: skip
    assert len(reads) == 1
    bases = {name: records[f"neox-32-{name}-lr-0.01-seed-1"].mup_base_config["n_embd"] for name in ("mup", "sp")}
    assert bases == {"mup": 16, "sp": 32}  # whose rates are divided by width_mult 2 and by 1


@pytest.mark.parametrize("parametrization", ["mup", "sp", "completep"])
def test_at_the_base_every_parametrization_trains_the_same_run_to_the_bit(
    arguments, scanned, tmp_path, parametrization
):
    how = {name: value for name, value in arguments.items() if name not in ("scales", "lrs", "seeds")}
    out_dir = tmp_path / "run"
    warmstart_scratch.setup(
        **how, target=arguments["scales"][0], parametrization=parametrization, lr=0.03, seed=1, out_dir=out_dir
    )
    shared = scanned / "runs/neox-16-lr-0.03-seed-1"
    assert_same_weights(out_dir / "final", shared / "final")
    assert losses(out_dir, "val_loss") == losses(shared, "val_loss")


def test_a_scan_goes_on_and_another_scale_is_added_to_it(arguments, scales, scanned, tmp_path, capsys):
    folder = shutil.copytree(scanned, tmp_path / "scan")
    shutil.rmtree(folder / "runs/neox-32-mup-lr-0.03-seed-1")
    warmstart_lr_transfer.setup(**arguments, out_dir=folder)
    assert "5 of 6 runs have ended before" in capsys.readouterr().out
    before = {row["run"]: row["val_loss"] for row in rows(folder / "lr_transfer.csv")}
    assert before == {row["run"]: row["val_loss"] for row in rows(scanned / "lr_transfer.csv")}
    warmstart_lr_transfer.setup(
        **arguments | dict(scales=[scales[0], scales[2]], parametrizations="mup", out_dir=folder)
    )
    assert "2 of 4 runs have ended before" in capsys.readouterr().out
    after = {row["run"]: row["val_loss"] for row in rows(folder / "lr_transfer.csv")}
    assert before.items() < after.items()
    assert after.keys() - before.keys() == {f"neox-64-mup-lr-{lr}-seed-1" for lr in ("0.01", "0.03")}
    shutil.rmtree(folder / "runs/neox-32-sp-lr-0.01-seed-1")  # a run that is gone is no more of it
    warmstart_lr_transfer.setup(**arguments | dict(parametrizations="mup", out_dir=folder))
    assert len(rows(folder / "lr_transfer.csv")) == len(after) - 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(scales=None), "--scales is missing: give the models whose learning rates are compared"),
        (dict(scales=[0]), "--scales has 1 of the two widths or more that are compared"),
        (dict(scales=[1, 0]), "--scales must grow from each to the next, got n_embd 32, 16"),
        (dict(scales=[0, "vocabulary"]), "padded_vocab_size"),
        (dict(scales=[0, "layers"]), "'neox-16' has n_layer 2, 'neox-48' has 3: over width all have the same"),
        (dict(scales=[0, "block"]), "has parallel_residual True, target 'neox-48' has False"),
        (dict(scales=[0, "short"]), "--train.max_seq_length 64 is above the model's 32"),
        (dict(scales=[0, "same"]), "--scales has two models called 'neox-16': give one another name"),
        (dict(scales=[0, "absent"]), "absent/model_config.yaml"),
        (dict(parametrizations="mup,sp,mup"), "--parametrizations has mup twice: leave one out"),
        (dict(parametrizations="mup,ntk"), "--parametrizations has no 'ntk': choose from sp, mup, completep"),
        (dict(parametrizations=""), "--parametrizations is empty"),
        (dict(lrs="0.01,0.01"), "--lrs 0.01: one learning rate shows no optimum: give several"),
        (dict(lrs="0,0.01"), "--lrs must be above 0"),
        (dict(lrs="nan,0.01"), "--lrs must be above 0"),
        (dict(lrs="0.01,inf"), "--lrs must be above 0"),
        (dict(seeds="-1"), "--seeds -1: seeds lie in"),
        (dict(train=TrainArgs(global_batch_size=4)), "--train.max_tokens is missing"),
        (dict(train=TrainArgs(max_steps=3)), "--train.max_steps is not for a study"),
        (dict(eval=EvalArgs(final_validation=False)), "--eval.final_validation false would leave"),
    ],
)
def test_what_a_scan_cannot_do_is_one_line(arguments, scales, refused, tmp_path, changes, told):
    others = dict(
        vocabulary=dict(vocab_size=96, padded_vocab_size=96), layers=dict(n_layer=3),
        block=dict(parallel_residual=False), short=dict(block_size=32), same=dict(name="neox-16"),
    )  # fmt: skip
    paths = dict(enumerate(scales)) | {"absent": str(tmp_path / "absent/model_config.yaml")}
    for name, other in others.items():
        (tmp_path / name).mkdir()
        save_config(neox(48, 4, **dict(vocab_size=4096, padded_vocab_size=4096) | other), tmp_path / name)
        paths[name] = str(tmp_path / name / "model_config.yaml")
    if isinstance(changes.get("scales"), list):
        changes = dict(scales=[paths[scale] for scale in changes["scales"]])
    assert told in refused(warmstart_lr_transfer.setup, **arguments | dict(out_dir=tmp_path / "out") | changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(train=TrainArgs(max_tokens=1600, global_batch_size=4)), "with tokens 768, now 1536: choose another"),
        (dict(train=TrainArgs(max_tokens=800, global_batch_size=2)), "with train.global_batch_size 4, now 2"),
        (dict(scales=[1, 2]), "holds learning rates given at neox-16, now at neox-32: choose another --out_dir"),
    ],
)
def test_nothing_else_is_added_to_a_scan(arguments, scales, scanned, refused, changes, told):
    changes = changes | dict(scales=[scales[number] for number in changes.get("scales", (0, 1))], lrs="0.02,0.05")
    assert told in refused(warmstart_lr_transfer.setup, **arguments | dict(out_dir=scanned) | changes)


def test_a_checkpoints_folder_is_no_scale_whose_own_muP_base_would_be_taken(arguments, scales, scanned, refused):
    folder = str(scanned / "runs/neox-16-lr-0.01-seed-1/final")
    told = refused(warmstart_lr_transfer.setup, **arguments | dict(scales=[folder, scales[1]], out_dir=scanned))
    assert "is a checkpoint's folder: give its model_config.yaml" in told


def test_what_came_out_is_printed_and_written(whole):
    folder, printed = whole
    losses = {row["run"]: float(row["val_loss"]) for row in rows(folder / "lr_transfer.csv")}
    best = min(losses[f"neox-16-lr-{lr}-seed-1"] for lr in ("0.01", "0.03"))
    found = rows(folder / "optima.csv")
    assert [(row["parametrization"], row["scale"]) for row in found] == [
        (name, scale) for name in ("mup", "sp") for scale in ("neox-16", "neox-32")
    ]
    assert float(found[0]["val_loss"]) == best and float(found[0]["optimum"]) == 0.03
    assert found[0]["place"] == "at the edge, the largest of --lrs"
    assert "muP: whether the optimum stays within a factor of 2 is not told (at the edge" in printed
    line = next(line.split() for line in printed.splitlines() if line.startswith("muP, neox-16"))
    assert line[2:4] == ["0.00558", f"{losses['neox-16-lr-0.01-seed-1']:.4f}"]  # tokens per parameter, loss
    assert (folder / "lr_transfer.png").read_bytes().startswith(b"\x89PNG")


LRS = [0.0025, 0.005, 0.01, 0.02, 0.04]


def losses_of(best: float, lrs: list[float] = LRS, curvature: float = 0.1, least: float = 2.5) -> pandas.Series:
    """A parabola in log learning rate."""
    return pandas.Series([least + curvature * math.log(lr / best) ** 2 for lr in lrs], index=lrs)


@given(best=st.floats(0.0036, 0.028), curvature=st.floats(0.01, 10), least=st.floats(0.5, 10), by=st.floats(0.1, 10))
def test_the_optimum_of_a_parabola_is_its_own_whatever_its_units(best, curvature, least, by):
    found = optimum(losses_of(best * by, [lr * by for lr in LRS], curvature, least))
    assert found.is_told and found.low == found.high == found.lr
    assert found.lr == pytest.approx(best * by, rel=1e-6) and found.val_loss == pytest.approx(least, rel=1e-9)


@given(
    st.lists(st.floats(1e-4, 1), min_size=3, max_size=8, unique_by=lambda lr: round(lr, 4)).map(sorted),
    st.lists(st.floats(1, 10), min_size=8, max_size=8),
)
def test_the_optimum_is_where_the_parabola_through_the_lowest_and_its_neighbours_is_least(lrs, values):
    losses = pandas.Series(values[: len(lrs)], index=lrs)
    found, lowest = optimum(losses), lrs.index(losses.idxmin())
    if lowest in (0, len(lrs) - 1):
        assert not found.is_told and (found.lr, found.val_loss) == (lrs[lowest], losses.min())
        return
    x, y = np.log(lrs[lowest - 1 : lowest + 2]), losses.to_numpy()[lowest - 1 : lowest + 2]
    between = np.linspace(x[0], x[2], 2001)
    lagrange = sum(
        y[i] * np.prod([(between - x[j]) / (x[i] - x[j]) for j in range(3) if j != i], axis=0) for i in range(3)
    )
    assert found.val_loss <= lagrange.min() + 1e-9 and found.val_loss == pytest.approx(
        lagrange.min(), abs=1e-3 * np.ptp(y) + 1e-9
    )
    assert (x[0] + x[1]) / 2 - 1e-9 <= math.log(found.lr) <= (x[1] + x[2]) / 2 + 1e-9


@pytest.mark.parametrize(
    ("losses", "lr", "between", "place"),
    [
        ([3.0, 3.1, 3.2, 3.3, 3.4], 0.0025, (0.0, 0.005), "at the edge, the smallest of --lrs"),
        ([3.4, 3.3, 3.2, 3.1, 3.0], 0.04, (0.02, math.inf), "at the edge, the largest of --lrs"),
        ([3.4, 3.3, 3.2, 3.1, math.inf], 0.02, (0.01, 0.04), "beside a rate that diverged"),
        ([3.4, 3.3, 3.3, 3.3, 3.4], 0.005, None, ""),  # the first of equals: the next one makes it lie between
        ([3.3, 3.3, 3.3, 3.3, 3.3], 0.0025, (0.0, 0.005), "at the edge, the smallest of --lrs"),
        ([math.inf] * 5, math.nan, (0.0, math.inf), "every rate diverged"),
    ],
)
def test_an_optimum_that_no_parabola_tells_says_why_and_between_which_rates_it_lies(losses, lr, between, place):
    found = optimum(pandas.Series(losses, index=LRS))
    assert found.place == place
    if between:
        assert (found.low, found.high) == between and found.lr == pytest.approx(lr, nan_ok=True)
    else:
        assert found.lr == pytest.approx(math.sqrt(0.005 * 0.01))


def scan(best: dict[tuple[str, str, int], list[float]], diverged: float = math.inf) -> pandas.DataFrame:
    """The rows of a scan whose losses are parabolas about these rates, one a seed; rates from ``diverged`` on did."""
    told = []
    for (parametrization, scale, n_embd), optima_of in best.items():
        for seed, at in enumerate(optima_of):
            for lr, loss in losses_of(at).items():
                status = "diverged" if lr >= diverged and parametrization == "sp" else "finished"
                told.append((parametrization, scale, n_embd, 1000, lr, seed, status, 6.0, loss, 9, 4000, 1.0, "run"))
    return pandas.DataFrame(told, columns=COLUMNS)


SCANNED = scan(
    {
        ("any", "narrow", 48): [0.01, 0.01, 0.01],
        ("mup", "wide", 96): [0.008, 0.01, 0.0125],
        ("mup", "wider", 192): [0.019],
        ("sp", "wide", 96): [0.004, 0.004, 0.004],
        ("sp", "wider", 192): [0.002],
    },
    diverged=0.04,
)


def test_optima_are_told_with_their_interval_over_seeds_and_the_factor_by_which_they_move():
    found = optima(curves(SCANNED)).set_index(["parametrization", "scale"])
    assert found.loc[("mup", "narrow"), "optimum"] == pytest.approx(0.01)
    assert found.loc[("sp", "narrow"), "optimum"] == pytest.approx(0.01)  # the same runs
    wide = found.loc[("mup", "wide")]
    half = 4.303 * math.log(1.25) / math.sqrt(3)  # Student's t times the standard deviation over the root of n
    assert wide["optimum"] == pytest.approx(0.01) and wide["seeds"] == 3 and wide["tokens_per_param"] == 4
    assert (wide["optimum_low"], wide["optimum_high"]) == pytest.approx((0.01 / math.exp(half), 0.01 * math.exp(half)))
    one = found.loc[("mup", "wider")]
    assert one["factor_least"] == one["factor_most"] == pytest.approx(1.9) and math.isnan(one["optimum_low"])
    edge = found.loc[("sp", "wider")]
    assert (edge["optimum"], edge["factor_least"], edge["factor_most"]) == (0.0025, 0.0, pytest.approx(0.5))
    assert edge["val_loss_at_0.04"] == "diverged" and edge["val_loss_at_0.01"] == pytest.approx(
        2.5 + 0.1 * math.log(5) ** 2
    )
    shown = table(curves(SCANNED)).set_index("")
    assert shown.loc["SP, wider", "lr 0.04"] == "diverged" and shown.loc["SP, wide", "times the first"] == "0.40"
    assert shown.loc["SP, wider", "optimum"] == "0.0025 (at the edge, the smallest of --lrs)"


@pytest.mark.parametrize(
    ("narrow", "wide", "said"),
    [
        (0.01, 0.0051, "muP: the optimum stays within a factor of 2. Times that of narrow it is 0.51 at wide."),
        (0.01, 0.02, "muP: the optimum stays within a factor of 2. Times that of narrow it is 2.00 at wide."),
        (0.01, 0.0203, "muP: the optimum moves by more than a factor of 2. Times that of narrow it is 2.03 at wide."),
        (0.012, 0.001, "muP: the optimum moves by more than a factor of 2. Times that of narrow it is at most 0.42"),
        (0.008, 0.001, "muP: whether the optimum stays within a factor of 2 is not told (at the edge, the smallest"),
        (0.001, 0.02, "muP: the optimum moves by more than a factor of 2. Times that of narrow it is at least 4.00"),
        (0.001, 0.001, "muP: whether the optimum stays within a factor of 2 is not told (at the edge, the smallest"),
    ],
)
def test_the_verdict_is_by_what_the_learning_rates_tell(narrow, wide, said):
    (verdict,) = verdicts(curves(scan({("any", "narrow", 48): [narrow], ("mup", "wide", 96): [wide]})))
    assert verdict.startswith(said)


def test_the_page_draws_a_panel_for_each_parametrization_and_leaves_a_damaged_scan_out(tmp_path):
    for name in ("good", "worse"):
        (tmp_path / "study" / name).mkdir(parents=True)
        SCANNED.to_csv(tmp_path / "study" / name / "lr_transfer.csv", index=False)
    (tmp_path / "study/worse/lr_transfer.csv").write_text(
        ",".join(COLUMNS) + "\nany,a,48,9,far,1,finished,6,5,9,9,1,r\n"
    )
    sections = write_report([tmp_path / "study"], tmp_path / "report", kinds())
    (section,) = (section for section in sections if section.title == "Learning rates over width")
    (part,) = section.parts
    assert part.answers == verdicts(curves(SCANNED)) and "worse: damaged or half-written" in section.notes[0]
    (figure,) = part.figures
    words = [told for _, _, told in figure.points]
    assert "wide: 2.5514 at 0.005 lr" in words and "wider: lowest at 0.0025" in words
    assert sum(told.endswith("at 0.04 lr") for told in words) == 3 + 1  # muP's, and the narrow one's beside SP's
    assert "muP" in figure.svg and "SP" in figure.svg
    (written,) = (tmp_path / "report/tables").glob("learning_rates_1.csv")
    assert len(rows(written)) == 6
