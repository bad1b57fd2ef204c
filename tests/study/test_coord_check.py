"""Coordinate check: activations keep their size over width under muP and warmstarts, and grow under SP."""

from dataclasses import replace

import numpy as np
import pandas
import pytest
import torch

from litgpt_warmstart.data import StdlibText
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.method.parametrization import PARAMETRIZATIONS, Parametrization, Powers
from litgpt_warmstart.report.layers import layer_name
from litgpt_warmstart.run.checkpoint import read_checkpoint
from litgpt_warmstart.run.optimizer import resolve_optimizer
from litgpt_warmstart.study import coord_check
from litgpt_warmstart.study.coord_check import CoordCheck, Way, build_model
from litgpt_warmstart.study.slopes import fit_slopes, way_name, worst
from tests.conftest import llama, neox

SP, MUP = Way("sp"), Way("mup")
SHRUNK, ZERO = Way("warmstart", Growth(shrink=0.4)), Way("warmstart", Growth(shrink=0.0))
WIDTHS = (16, 32, 64, 128)


@pytest.fixture(scope="module")
def check(base) -> CoordCheck:
    source = read_checkpoint(base)
    configs = tuple(coord_check.widened(source.config, width) for width in WIDTHS)
    return CoordCheck(
        configs, source.mup_base_config, (SP, MUP, SHRUNK), base_lr=0.04, steps=4, seeds=(0, 1, 2), source=source
    )


@pytest.fixture(scope="module")
def batch(stdlib_path) -> torch.Tensor:
    """Blocks of real text, shape (8, 33), from several documents: in one, few of the vocabulary's tokens occur."""
    tokens = np.array(StdlibText(stdlib_path).tokens("train")[:80_000])
    return torch.from_numpy(tokens).long().view(8, 10_000)[:, :33]


@pytest.fixture(scope="module")
def coordinates(check, batch) -> pandas.DataFrame:
    return coord_check.measure_coordinates(check, batch[:, :-1], batch[:, 1:])


def of(way: Way, frame: pandas.DataFrame) -> pandas.DataFrame:
    """The rows of a way."""
    return frame[frame["parametrization"] == way.parametrization]


def test_blocks_and_logits_grow_under_sp_and_nothing_grows_under_mup_or_a_warmstart(coordinates):
    slopes = fit_slopes(coordinates).set_index(["parametrization", "module"])
    assert [worst(slopes.loc[way.parametrization]["verdict"]) for way in (SP, MUP, SHRUNK)] == ["grows", "ok", "ok"]
    sp = slopes.loc["sp"]
    assert (sp.loc[["transformer.h.0", "transformer.h.1"], "slope"] > 0.6).all(), sp
    assert sp.loc["lm_head", "verdict"] == "grows"  # by how much depends on the text, this Python's library
    assert (sp.loc[["transformer.wte", "transformer.ln_f"], "verdict"] == "ok").all()
    assert slopes.loc["mup"]["slope"].max() < 0.25
    # Logits start as the inverse root of width, and that is no failure.
    first = fit_slopes(of(MUP, coordinates[coordinates["t"] == 1])).set_index("module")["slope"]
    assert first["lm_head"] == pytest.approx(-0.5, abs=0.1)
    assert first[["transformer.wte", "transformer.h.1", "transformer.ln_f"]].tolist() == pytest.approx(
        [0] * 3, abs=0.05
    )


def test_over_depth_the_last_block_grows_under_sp_and_nothing_under_completep(check, batch):
    configs = coord_check.deepened(check.configs[0], (2, 4, 8))
    ways = coord_check.ways(None, [], based=False, over="depth")
    assert [way.parametrization for way in ways] == ["sp", "completep"]
    deep = replace(check, configs=configs, ways=ways, over="depth")
    coordinates = coord_check.measure_coordinates(deep, batch[:, :-1], batch[:, 1:])
    assert set(coordinates["depth"]) == {2, 4, 8} and set(coordinates["width"]) == {16}
    layers = ["embedding", *(f"{block}{part}" for block in ("block 0", "last block") for part in (" attn", " mlp", ""))]
    assert set(coordinates["module"].map(lambda name: layer_name(name, "activation"))) == {*layers, "ln_f", "lm_head"}
    slopes = fit_slopes(coordinates).set_index(["parametrization", "module"])["slope"]
    assert slopes["sp", "transformer.h.last"] > 0.8
    completep = slopes["completep"]
    assert completep.max() < 0.2
    branches = [f"transformer.h.{block}.{part}" for block in ("0", "last") for part in ("attn", "mlp")]
    assert completep[branches].tolist() == pytest.approx([-1] * 4, abs=0.4)  # each adds its share of one model's
    with pytest.raises(UserError, match="--parametrizations mup carries nothing over --depths: choose from sp, comp"):
        coord_check.ways(["mup"], [], based=False, over="depth")


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim has no Muon")
@pytest.mark.parametrize("adjust_lr_fn", ["match_rms_adamw", "original"])
def test_under_muon_nothing_grows_with_mup_or_a_warmstart_and_logits_do_under_sp(check, batch, adjust_lr_fn):
    """Its orthogonal updates grow less than Adam's without muP, under ``original`` next to nothing."""
    muon = resolve_optimizer({"class_path": "Muon", "init_args": {"adjust_lr_fn": adjust_lr_fn}})
    narrow = replace(check, configs=check.configs[:3], seeds=(0,), optimizer=muon)
    coordinates = coord_check.measure_coordinates(narrow, batch[:4, :-1], batch[:4, 1:])
    slopes = fit_slopes(coordinates).set_index(["parametrization", "module"])
    assert [worst(slopes.loc[way.parametrization]["verdict"]) for way in (MUP, SHRUNK)] == ["ok", "ok"]
    sp, mup, warm = (slopes.loc[way.parametrization]["slope"] for way in (SP, MUP, SHRUNK))
    assert mup["transformer.h.1"] < 0.25 and warm["transformer.h.1"] < 0.25
    assert sp["lm_head"] > mup["lm_head"] + 0.3
    more = sp["transformer.h.1"] - mup["transformer.h.1"]
    assert more > 0.1 if adjust_lr_fn == "match_rms_adamw" else abs(more) < 0.1


def test_a_warmstart_at_shrink_0_is_mup_bit_for_bit(check, batch, coordinates):
    narrow = replace(check, configs=check.configs[:2], ways=(ZERO,), seeds=(1,))
    zero = coord_check.measure_coordinates(narrow, batch[:, :-1], batch[:, 1:])
    mup = of(MUP, coordinates).query("width <= 32 and seed == 1")
    names = ["t", "width", "module", "l1"]
    assert zero[names].values.tolist() == mup[names].values.tolist()
    scratch, grown, shrunk = (
        dict(build_model(check, way, check.configs[-1], seed=3).named_parameters()) for way in (MUP, ZERO, SHRUNK)
    )
    for name, parameter in scratch.items():
        assert torch.equal(parameter.view(torch.int32), grown[name].view(torch.int32)), name
        assert not torch.equal(parameter, shrunk[name]), name


def test_every_way_width_step_seed_and_layer_is_measured_once(check, coordinates):
    layers = ["embedding", *(f"block {i}{part}" for i in (0, 1) for part in (" attn", " mlp", "")), "ln_f", "lm_head"]
    assert [layer_name(module, "activation") for module in coordinates["module"][: len(layers)]] == layers
    keys = coordinates.drop(columns="l1").drop_duplicates()
    assert len(keys) == len(coordinates) == 3 * len(WIDTHS) * 4 * 3 * len(layers)


def test_a_new_parametrization_is_measured_with_its_own_name_base_and_learning_rates(check, batch, monkeypatch):
    monkeypatch.setitem(PARAMETRIZATIONS, "toy", Parametrization("Toy", matrix=Powers(0.0, 2.0)))
    ways = coord_check.ways(None, [], based=False)
    assert [way_name(way.parametrization, way.shrink) for way in ways] == ["SP", "muP", "Toy"]
    rates = {}

    def measure(models, data, optimizer, **_: object) -> pandas.DataFrame:
        rates[len(rates)] = sorted({group["lr"] for group in optimizer(models[32]()).param_groups})
        return pandas.DataFrame(dict(t=[1], width=[32], module=["lm_head"], l1=[1.0]))

    monkeypatch.setattr(coord_check, "_get_coord_data", measure)
    coord_check.measure_coordinates(replace(check, ways=ways, seeds=(0,)), batch, batch)
    assert list(rates.values()) == [[0.04], [0.02, 0.04], [0.01, 0.04]]


def test_a_measurement_is_the_mean_absolute_output(check, batch, coordinates):
    model = build_model(check, SHRUNK, check.configs[1], seed=2)
    with torch.no_grad():
        logits = model(batch[:, :-1]).abs().mean().item()
        embedding = model.transformer.wte(batch[:, :-1]).abs().mean().item()
    found = of(SHRUNK, coordinates).query("width == 32 and t == 1 and seed == 2").set_index("module")["l1"]
    assert found["lm_head"] == pytest.approx(logits, rel=1e-4)
    assert found["transformer.wte"] == pytest.approx(embedding, rel=1e-4)


def test_wider_models_have_more_heads_of_the_same_size():
    for config in (neox(48, 2), llama(32, 8, n_query_groups=2), neox(48, 4, head_size=16)):
        wider = coord_check.widened(config, 3 * config.n_embd)
        assert wider.head_size == config.head_size and wider.n_head == 3 * config.n_head
        assert wider.n_query_groups == 3 * config.n_query_groups
        assert wider.intermediate_size == 3 * config.intermediate_size
    assert coord_check.widened(neox(48, 2), 72).n_head == 3
    with pytest.raises(UserError, match="width 100 of --widths is no multiple of 24"):
        coord_check.widened(neox(48, 2), 100)
    with pytest.raises(UserError, match="no multiple of 16"):  # a group of 4 queries of 4 is kept whole
        coord_check.widened(llama(32, 8, n_query_groups=2), 40)


def test_mups_own_plot_takes_the_csv(coordinates, tmp_path):
    import matplotlib

    matplotlib.use("Agg")
    from mup.coord_check import plot_coord_data

    coord_check.save(coordinates, fit_slopes(coordinates), "title", tmp_path)
    frame = pandas.read_csv(tmp_path / "coord_check.csv")
    assert list(frame.columns) == ["t", "width", "module", "l1", "parametrization", "shrink", "seed"]
    assert frame["l1"].tolist() == coordinates["l1"].tolist()
    assert frame[frame.parametrization != "warmstart"]["shrink"].isna().all()
    frame = frame[frame.seed == 0]  # it draws an interval over seeds, which takes its time
    with matplotlib.rc_context():  # it has a style of its own
        figure = plot_coord_data(frame[frame.parametrization == "sp"], save_to=str(tmp_path / "mup.png"))
        assert [axes.get_title() for axes in figure.axes] == ["t=1", "t=2", "t=3", "t=4"]
        plot_coord_data(frame[(frame.shrink == 0.4) & (frame.t == 1)])


def test_a_picture_that_fails_leaves_what_is_known_as_a_checks_and_nothing_of_an_older_one(
    coordinates, tmp_path, monkeypatch
):
    coord_check.save(coordinates, fit_slopes(coordinates), "title", tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"coord_check.csv", "coord_check.png", "slopes.csv"}
    slopes = pandas.read_csv(tmp_path / "slopes.csv")
    assert list(slopes.columns) == ["module", "parametrization", "shrink", "slope", "standard_error", "verdict"]
    assert coord_check.picture(of(MUP, coordinates).query("t == 1"), "a single step, a single way").png
    monkeypatch.setattr(coord_check, "picture", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError):
        coord_check.save(coordinates, fit_slopes(coordinates), "title", tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"coord_check.csv", "slopes.csv"}
