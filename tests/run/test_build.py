"""Training compiles its graphs once: neither accumulation nor validation nor more steps make new ones."""

import itertools
import shutil
from dataclasses import replace

import pytest
import torch
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.utils import save_config
from torch._dynamo.utils import counters

from litgpt_warmstart.commands import warmstart
from litgpt_warmstart.data import StdlibText
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method import parametrization
from litgpt_warmstart.method.loss import NextTokenLoss
from litgpt_warmstart.run import train
from litgpt_warmstart.run.build import bare_model, uses_cuda_graphs
from litgpt_warmstart.run.checkpoint import read_checkpoint, read_header
from litgpt_warmstart.run.resolve import resolve
from litgpt_warmstart.run.spec import EvalArgs, RunArgs, TrainArgs
from tests.conftest import TRAIN, losses, neox


def test_a_warmstart_is_trained_under_what_carries_its_bases_learning_rate(base, tiny, tmp_path, monkeypatch):
    carries = parametrization.PARAMETRIZATIONS["mup"]
    monkeypatch.setitem(parametrization.PARAMETRIZATIONS, "toy", replace(carries, logits=0.5))
    header, given = read_header(base), dict(lr=0.01, data=StdlibText(), train=TrainArgs(global_batch_size=8))
    toy, plain = (replace(header, record=replace(header.record, parametrization=name)) for name in ("toy", "sp"))
    monkeypatch.setattr(train, "setup", lambda spec: spec)
    for start, expected in ((toy, "toy"), (plain, "mup"), (replace(header, record=None), "mup")):
        monkeypatch.setattr(warmstart, "read_base", lambda _, start=start: start)
        spec = warmstart.setup(base, tiny[48], out_dir=tmp_path, **given)
        assert spec.parametrization == expected
    with pytest.raises(UserError, match="pass --parametrization toy"):
        resolve("warmstart_scratch", None, toy, None, tmp_path, RunArgs(parametrization="mup", **given), {})


def test_a_model_deeper_than_its_mup_base_is_trained_under_completep_into_a_plain_folder(
    scratch, warm, base, tmp_path, capsys, refused
):
    shape = dict(vocab_size=4096, padded_vocab_size=4096)
    paths = {}
    for width, heads in ((16, 2), (32, 4)):
        (tmp_path / f"{width}x4").mkdir()
        save_config(neox(width, heads, n_layer=4, **shape), tmp_path / f"{width}x4")
        paths[width] = str(tmp_path / f"{width}x4/model_config.yaml")
    deep = scratch("deep", target=paths[16], mup_base=str(base), lr=None) / "final"
    assert "CompleteP base neox-16 of n_embd 16" in capsys.readouterr().out
    record = read_header(deep).record
    assert (record.parametrization, record.branch_divisor, record.width_mult) == ("completep", 2.0, 1.0)
    trained = read_checkpoint(deep)
    ours = bare_model(trained.config, record_base := trained.mup_base_config, "completep")
    assert record_base.n_layer == 2
    parametrization.load_weights(ours, trained.weights.items())
    stock = GPT(Config.from_file(deep / "model_config.yaml"))
    stock.load_state_dict(torch.load(deep / "lit_model.pth"))
    tokens = torch.arange(64).view(1, 64)
    torch.testing.assert_close(stock(tokens), ours(tokens), rtol=0, atol=1e-5)
    stacked = warm("stacked", target=paths[16], operator="stack") / "final"
    record = read_header(stacked).record
    assert (record.parametrization, record.branch_divisor, record.base_lr) == ("completep", 2.0, 0.02)
    assert read_header(warm("sp", target=paths[16], operator="stack", parametrization="sp") / "final").record
    wide = warm("wide", base=stacked, target=paths[32]) / "final"  # its learning rate is carried as before
    record = read_header(wide).record
    assert (record.parametrization, record.branch_divisor, record.width_mult) == ("completep", 2.0, 2.0)
    assert [ancestor.name for ancestor in record.lineage] == ["neox-16", "neox-16"]
    told = refused(warm, "mup", base=deep, target=paths[32], parametrization="mup")
    assert "tuned under completep: pass --parametrization completep" in told


def test_the_eps_is_the_parametrizations_unless_it_is_asked_for(warm, tmp_path, refused):
    for name, asked, expected in (
        ("a", {}, False),
        ("b", dict(scale_eps=True), True),
        ("c", dict(parametrization="completep"), True),
    ):
        record = read_header(warm(name, train=replace(TRAIN, max_steps=1), **asked) / "final").record
        assert record.training["scale_eps"] is record.identity["scale_eps"] is expected
    groups = torch.load(tmp_path / "b/final/training_state.pth")["optimizer"]["param_groups"]
    assert sorted({group["eps"] for group in groups}) == pytest.approx([1e-8 / 3])
    told = refused(warm, "d", scale_eps=True, parametrization="sp")
    assert "--scale_eps has no meaning with --parametrization sp" in told
    assert "--resume: scale_eps was True, now False" in refused(warm, "b", resume=True)


def test_a_compiler_that_fails_is_one_line_with_the_remedy(scratch, monkeypatch, refused):
    def failing(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> None:
        raise RuntimeError("no such kernel\nin many lines")

    monkeypatch.setattr(NextTokenLoss, "compiled", lambda self, mode: torch.compile(self, backend=failing))
    line = refused(scratch, compile=True)
    assert "torch.compile fails here (" in line and "no such kernel" in line and line.endswith(": pass --compile false")


compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@pytest.mark.slow
@compiler
@pytest.mark.parametrize("impl", ["full", "chunked"])
def test_accumulation_validation_and_more_steps_compile_nothing_anew(impl, scratch):
    graphs = {}
    for steps, batch in ((2, 4), (5, 12)):
        torch._dynamo.reset()
        counters.clear()
        train = TrainArgs(global_batch_size=batch, micro_batch_size=4, max_steps=steps)
        scratch(str(steps), train=train, compile=True, eval=EvalArgs(interval=2, max_iters=6), loss_impl=impl)
        graphs[steps] = counters["stats"]["unique_graphs"]
    assert graphs[5] == graphs[2] <= 3  # to train, to validate, and the softmax of a chunk


@pytest.mark.slow
@compiler
def test_every_way_trains_the_same_compiled_as_eagerly(scratch):
    runs = {}
    for impl, compile in itertools.product(("full", "chunked"), (False, True)):
        torch._dynamo.reset()
        train = replace(TRAIN, max_steps=4)
        runs[impl, compile] = losses(scratch(f"{impl}-{compile}", train=train, compile=compile, loss_impl=impl))
    for way, run in runs.items():
        assert run == pytest.approx(runs["full", False], abs=1e-4), way


def test_cuda_graphs_are_for_cuda_and_their_modes():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert uses_cuda_graphs("reduce-overhead", cuda) and uses_cuda_graphs("max-autotune", cuda)
    assert not uses_cuda_graphs("reduce-overhead", cpu)
    assert not uses_cuda_graphs(True, cuda) and not uses_cuda_graphs("max-autotune-no-cudagraphs", cuda)


def test_cuda_graphs_without_cuda_are_refused_in_one_line_before_anything_is_written(scratch, refused, tmp_path):
    line = refused(scratch, "run", compile="reduce-overhead")
    assert "--compile reduce-overhead replays CUDA graphs, and there is no CUDA device: pass --compile true" in line
    assert not (tmp_path / "run").exists()
