"""--track: norms equal to hand-computed ones, at the right steps, over resumes, and without a trace in the training."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from mup.coord_check import FDICT
from torch._dynamo.utils import counters

from litgpt_warmstart.commands import warmstart
from litgpt_warmstart.data import StdlibText
from litgpt_warmstart.data.loaders import first_val_block
from litgpt_warmstart.data.use import Reading
from litgpt_warmstart.run.metrics import RowFile
from litgpt_warmstart.run.norms import NORMS, measure
from litgpt_warmstart.run.spec import EvalArgs
from tests.conftest import FAMILIES, TRAIN, assert_same_weights, build, losses, neox, randomized, weights

# --- the values ---------------------------------------------------------------------------------------------------


def by_name(rows: list[dict], kind: str) -> dict[str, tuple[float, float]]:
    return {row["name"]: (row["l1"], row["l2"]) for row in rows if row["kind"] == kind}


def coord_checks(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[float, float]]:
    """mup.coord_check's l1 and l2."""
    return {name: (FDICT["l1"](x).item(), FDICT["l2"](x).item()) for name, x in tensors.items()}


def assert_close(found: dict, expected: dict, rel: float = 2e-5) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name] == pytest.approx(expected[name], rel=rel), name


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_are_mups_of_every_module_with_an_output_of_its_own_and_of_every_parameter(family):
    model = randomized(build(FAMILIES[family](32, 4), FAMILIES[family](16)))
    tokens = torch.randint(96, (1, 40), generator=torch.Generator().manual_seed(3))
    rows, outputs = measure(model, tokens), {}
    for name, module in model.named_modules():
        if name and not isinstance(module, torch.nn.Identity):
            module.register_forward_hook(lambda module, inputs, output, name=name: outputs.update({name: output}))
    outputs["lm_head"] = model(tokens)  # with its bias and muP's multiplier
    assert_close(by_name(rows, "activation"), coord_checks(outputs))
    assert_close(by_name(rows, "weight"), coord_checks(dict(model.named_parameters())))
    assert len(rows) == len(outputs) + len(list(model.parameters()))


def test_norms_over_millions_of_entries_are_as_exact_as_over_few():
    model = build(neox(128, 4, vocab_size=50304, padded_vocab_size=50304))
    tokens = torch.arange(64)[None]
    rows, logits = measure(model, tokens), model(tokens)  # 6.4 million weights each side, 3.2 million logits
    exact = {name: x.double() for name, x in model.named_parameters()}
    assert_close(by_name(rows, "weight"), coord_checks(exact), rel=1e-5)
    assert by_name(rows, "activation")["lm_head"] == pytest.approx(coord_checks({"": logits.double()})[""], rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_bf16_norms_are_near_those_in_fp32(precision):
    model, tokens = build(neox(32, 4)), torch.arange(64)[None]
    expected = measure(model, tokens)
    fabric = L.Fabric(accelerator="cpu", devices=1, precision=precision)
    model = fabric.strategy.precision.convert_module(model)
    with fabric.autocast():
        found = measure(model, tokens)
    for kind in ("activation", "weight"):
        assert_close(by_name(found, kind), by_name(expected, kind), rel=0.02)
    assert (
        by_name(found, "activation")["transformer.h.0.attn.qkv"]
        != by_name(expected, "activation")["transformer.h.0.attn.qkv"]
    )  # and yet the precision of the run


def test_measuring_leaves_gradients_modes_hooks_and_random_states_alone():
    model = build(neox())
    model.transformer.h[0].eval()
    model(torch.arange(64)[None]).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    measure(model, torch.arange(64)[None])
    assert all(torch.equal(p.grad, gradients[name]) for name, p in model.named_parameters())
    assert [m.training for m in model.modules()] == modes and torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks for m in model.modules()) and not model.lm_head.gives_input
    assert model(torch.arange(64)[None]).requires_grad


def test_the_probe_is_the_first_validation_block_and_draws_no_random_number(stdlib_path):
    data = StdlibText(stdlib_path)
    state = torch.get_rng_state()
    reading = Reading(data, 64, 4, 8, 6, num_classes=4096, seed=1)
    probe = first_val_block(reading, torch.device("cpu"))
    assert probe.tolist() == [data.tokens("val")[:64].tolist()]
    assert torch.equal(torch.get_rng_state(), state)


# --- the file -----------------------------------------------------------------------------------------------------


@given(cut=st.integers(0, 400))
def test_a_file_cut_off_anywhere_gives_the_rows_before(cut, tmp_path_factory):
    path = tmp_path_factory.mktemp("cut") / "norms.csv"
    rows = [dict(step=2 * i, tokens=1024 * i, kind="weight", name=f"w{i}", l1=0.125 * i + 0.01, l2=1.5e-7 * (i + 1))
            for i in range(9)]  # fmt: skip
    file = RowFile(path, NORMS)
    file.append(rows)
    file.close()
    content = path.read_bytes()[:cut]
    path.write_bytes(content)
    assert NORMS.read(path) == rows[: max(0, content.count(b"\n") - 1)]


def steps(out_dir: Path) -> list[int]:
    return sorted({row["step"] for row in NORMS.read(out_dir / "norms.csv")})


@pytest.fixture(scope="module")
def runs(base, tiny, tiny_settings, tmp_path_factory) -> dict[str, Path]:
    """The same warmstart of 5 steps with ``--track 2`` and without."""
    folders = {}
    for name, track in (("tracked", 2), ("plain", None)):
        folders[name] = tmp_path_factory.mktemp(name)
        warmstart.setup(base=base, target=tiny[48], out_dir=folders[name], track=track, overwrite=True,
                        train=replace(TRAIN, max_steps=5, save_interval=2), **tiny_settings)  # fmt: skip
    return folders


def test_rows_stand_at_step_0_every_n_steps_and_the_last(runs, tiny_settings):
    rows = NORMS.read(runs["tracked"] / "norms.csv")
    assert steps(runs["tracked"]) == [0, 2, 4, 5]
    assert all(row["tokens"] == row["step"] * 8 * 64 for row in rows)
    assert len({(row["step"], row["kind"], row["name"]) for row in rows}) == len(rows)
    assert len(rows) == 4 * len([row for row in rows if row["step"] == 0])
    last = {row["name"]: (row["l1"], row["l2"]) for row in rows if row["step"] == 5 and row["kind"] == "weight"}
    assert_close(last, coord_checks(weights(runs["tracked"] / "final")))  # as trained: the readout is not folded
    probe = torch.from_numpy(tiny_settings["data"].tokens("val")[:64].astype("int64"))
    embedded = weights(runs["tracked"] / "final")["transformer.wte.weight"][probe]
    wte = next(row for row in rows if (row["step"], row["kind"], row["name"]) == (5, "activation", "transformer.wte"))
    assert (wte["l1"], wte["l2"]) == pytest.approx(coord_checks({"wte": embedded})["wte"], rel=1e-5)
    scored = [row for row in rows if row["kind"] == "induction"]
    assert [row["step"] for row in scored] == [0, 2, 4, 5] and all("l1" not in row for row in scored)
    assert len({row["score"] for row in scored}) == 4 and all(abs(row["score"]) < 0.1 for row in scored)
    used = yaml.safe_load((runs["tracked"] / "final/hyperparameters.yaml").read_text())
    assert used["track"] == 2


def test_a_tracked_run_equals_an_untracked_one_bit_for_bit(runs):
    assert not (runs["plain"] / "norms.csv").exists()
    assert losses(runs["tracked"]) == losses(runs["plain"])
    assert losses(runs["tracked"], "val_loss") == losses(runs["plain"], "val_loss")
    assert_same_weights(runs["tracked"] / "final", runs["plain"] / "final")


def test_a_resumed_run_has_the_norms_of_an_undisturbed_one(runs, warm, tmp_path):
    resumed, expected = tmp_path / "run", (runs["tracked"] / "norms.csv").read_text()
    shutil.copytree(runs["tracked"], resumed)
    shutil.rmtree(resumed / "final")
    with (resumed / "norms.csv").open("a") as file:
        file.write("5,2560,weight,lm_head.wei")  # killed while writing
    train = replace(TRAIN, max_steps=5)
    warm("run", resume=True, track=2, train=train)
    assert (resumed / "norms.csv").read_text() == expected
    warm("run", resume=resumed / "step-00000002", train=train)  # untracked now: rows of steps taken back go
    assert steps(resumed) == [0, 2]


def test_a_resumed_run_that_is_not_tracked_leaves_other_rows_of_that_name_alone(runs, warm, tmp_path):
    shutil.copytree(runs["plain"], tmp_path / "run")
    (tmp_path / "run/norms.csv").write_text("mine,too\n1,2\n")
    warm("run", resume=True, train=replace(TRAIN, max_steps=6))
    assert (tmp_path / "run/norms.csv").read_text() == "mine,too\n1,2\n"


def test_a_file_of_before_there_was_a_score_is_read_and_gone_on_with(runs, warm, tmp_path):
    older = tmp_path / "run"
    shutil.copytree(runs["tracked"], older)
    lines = [line.rsplit(",", 1)[0] for line in (older / "norms.csv").read_text().splitlines()]
    (older / "norms.csv").write_text("".join(f"{line}\r\n" for line in lines if ",induction," not in line))
    before = NORMS.read(older / "norms.csv")
    assert steps(older) == [0, 2, 4, 5] and before[0].keys() == {"step", "tokens", "kind", "name", "l1", "l2"}
    warm("run", resume=True, track=2, train=replace(TRAIN, max_steps=6))
    after = NORMS.read(older / "norms.csv")
    assert after[: len(before)] == before and [row["step"] for row in after if "score" in row] == [6]


def test_a_block_in_which_no_model_can_show_that_it_copies_is_refused_before_anything_is_written(
    scratch, tmp_path, refused
):
    line = refused(scratch, "short", track=1, train=replace(TRAIN, max_seq_length=7))
    assert "--track has an induction score, which needs sequences of 8 tokens, and these have 7: raise" in line
    assert not (tmp_path / "short").exists()
    scratch("long", track=1, train=replace(TRAIN, max_seq_length=8, max_steps=1))
    assert all(math.isfinite(row["score"]) for row in NORMS.read(tmp_path / "long/norms.csv") if "score" in row)


@pytest.fixture
def one_thread():
    """Compiled code on several threads adds in another order from run to run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_tracking_compiles_nothing_anew_and_leaves_a_compiled_run_alone(scratch, tmp_path, one_thread):
    graphs = {}
    for name, compile, track in (("plain", True, None), ("tracked", True, 1), ("eager", False, 1)):
        torch._dynamo.reset()
        counters.clear()
        shared = dict(train=replace(TRAIN, max_steps=4), eval=EvalArgs(interval=2, max_iters=4), loss_impl="chunked")
        scratch(name, compile=compile, track=track, **shared)
        graphs[name] = counters["stats"]["unique_graphs"]
    assert graphs["tracked"] == graphs["plain"] > 0
    assert losses(tmp_path / "tracked") == losses(tmp_path / "plain")
    assert losses(tmp_path / "tracked", "val_loss") == losses(tmp_path / "plain", "val_loss")
    assert_same_weights(tmp_path / "tracked/final", tmp_path / "plain/final")
    compiled, eager = (NORMS.read(tmp_path / name / "norms.csv") for name in ("tracked", "eager"))
    assert steps(tmp_path / "tracked") == [0, 1, 2, 3, 4]
    for a, b in zip(compiled, eager, strict=True):
        assert [a[n] for n in ("step", "kind", "name")] == [b[n] for n in ("step", "kind", "name")]
        rel = 1e-2 if a["step"] else 1e-6  # drifts a bit
        assert [*a.values()][4:] == pytest.approx([*b.values()][4:], rel=rel, abs=1e-4), a
