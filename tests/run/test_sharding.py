"""A run on two devices is the run on one: each strategy, each parametrization, going on from any to any."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from litgpt.model import GPT
from litgpt.utils import num_parameters, save_config

from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.run.checkpoint import STATE, load_tensors, read_checkpoint
from litgpt_warmstart.run.launch import carry_out
from litgpt_warmstart.run.metrics import read_metrics
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.resolve import read_base, resolve
from litgpt_warmstart.run.spec import EvalArgs, RunArgs, RunSpec, TrainArgs
from tests.conftest import losses, made_once, neox
from tests.run.processes import grow, train

TRAINED = TrainArgs(global_batch_size=8, micro_batch_size=2, max_steps=20, save_interval=10)
"""20 steps; on two devices two micro-batches of each a step."""
RUNS = [(strategy, parametrization) for strategy in ("one", "ddp", "fsdp") for parametrization in ("mup", "sp")]


@pytest.fixture(scope="session")
def on_two(base, tiny, tiny_settings, tmp_path_factory) -> Path:
    """Folders of runs: one-mup, ddp-mup, fsdp-sp and so on; and such that went on from another's tenth step."""

    def spec(out_dir: Path, strategy: str, parametrization: str, resume: bool = False) -> RunSpec:
        devices = dict(devices=1) if strategy == "one" else dict(devices=2, strategy=strategy)
        settings = tiny_settings | dict(eval=EvalArgs(interval=10, max_iters=9), resume=resume)
        args = RunArgs(train=TRAINED, **devices, **settings, lr=0.02, parametrization=parametrization)
        command, start, growth = "warmstart", read_base(base), Growth()
        if parametrization == "sp":
            command, start, growth = "warmstart_scratch", None, None
        return resolve(command, tiny[48], start, growth, out_dir, args, {})

    def make(folder: Path) -> None:
        for parametrization in ("mup", "sp"):
            carry_out(partial(train, [(spec(folder / f"one-{parametrization}", "one", parametrization), None)]), 1, 1)
        half = "step-00000010"
        shutil.copytree(folder / "one-mup" / half, folder / "one-fsdp" / half)
        several = [(spec(folder / f"{s}-{p}", s, p), None) for s, p in RUNS if s != "one"]
        going_on = spec(folder / "one-fsdp", "fsdp", "mup", resume=True), folder / "one-fsdp" / half
        carry_out(partial(train, [*several, going_on]), 2, 1)
        shutil.copytree(folder / "fsdp-mup" / half, folder / "fsdp-one" / half)
        back = spec(folder / "fsdp-one", "one", "mup", resume=True), folder / "fsdp-one" / half
        carry_out(partial(train, [back]), 1, 1)

    return made_once(tmp_path_factory, "on_two", make)


@pytest.mark.parametrize(("strategy", "parametrization"), RUNS[2:])
def test_two_devices_have_the_losses_of_one(on_two, strategy, parametrization):
    one, two = on_two / f"one-{parametrization}", on_two / f"{strategy}-{parametrization}"
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert losses(two, "val_loss") == pytest.approx(losses(one, "val_loss"), rel=1e-5)
    assert len(losses(two)) == 20 and losses(one)[-1] < losses(one)[0] - 0.5


@pytest.mark.parametrize("name", ["one-fsdp", "fsdp-one"])
def test_a_checkpoint_of_some_devices_goes_on_with_others(on_two, name):
    rows = {row["step"]: row["loss"] for row in read_metrics(on_two / "one-mup" / "metrics.csv") if "loss" in row}
    on = {row["step"]: row["loss"] for row in read_metrics(on_two / name / "metrics.csv") if "loss" in row}
    assert list(on) == list(range(11, 21))
    assert list(on.values()) == pytest.approx([rows[step] for step in on], rel=1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_what_is_saved_is_what_one_device_saves(on_two, strategy):
    one, two = on_two / "one-mup" / "final", on_two / f"{strategy}-mup" / "final"
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    weights, others = read_checkpoint(one).weights, read_checkpoint(two).weights
    assert list(weights) == list(others)
    for name, weight in weights.items():
        if weight.dim() > 1:  # the gradient of k's bias is 0 but for rounding, which Adam makes steps of
            assert (others[name] - weight).norm() <= 1e-3 * weight.norm(), name
    states = [load_tensors(folder / STATE)["optimizer"] for folder in (one, two)]
    shapes = [{n: {k: v.shape for k, v in of.items()} for n, of in state["state"].items()} for state in states]
    assert shapes[0] == shapes[1]
    groups = [[{**group, "fused": None} for group in state["param_groups"]] for state in states]
    assert groups[0] == groups[1]
    records = [Record.load(folder / "warmstart.yaml") for folder in (one, two)]
    assert [record.training["devices"] for record in records] == [1, 2]
    assert records[0].data == records[1].data and records[0].identity == records[1].identity


def test_one_process_writes_and_tells(on_two):
    for strategy in ("ddp", "fsdp"):
        folder = on_two / f"{strategy}-mup"
        assert [row["step"] for row in read_metrics(folder / "metrics.csv") if "loss" in row] == list(range(1, 21))
        assert len(list(folder.glob("logs/csv/version_*"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", [50304, pytest.param(4096, marks=pytest.mark.drill)])
def test_growing_needs_half_of_the_target_and_its_largest_tensor(base, tiny, tmp_path, tiny_settings, vocabulary):
    n_embd = 1024 if vocabulary == 4096 else 256
    sizes = dict(vocab_size=vocabulary, padded_vocab_size=vocabulary)
    small, large = neox(n_embd // 2, 8, **sizes), neox(n_embd, 16, **sizes)
    for name, config in (("base", small), ("target", large)):
        (tmp_path / name).mkdir()
        save_config(config, tmp_path / name)
    torch.save(GPT(small).state_dict(), tmp_path / "base" / "lit_model.pth")
    train = TrainArgs(global_batch_size=8, micro_batch_size=1, max_steps=2)
    args = RunArgs(devices=2, strategy="fsdp", lr=0.01, train=train, **tiny_settings)
    target = str(tmp_path / "target" / "model_config.yaml")
    specs = [
        resolve("warmstart", target, read_base(base), Growth(), tmp_path / "out", args, {})
        for target, base in ((tiny[48], base), (target, tmp_path / "base"))
    ]
    specs = [replace(spec, args=replace(spec.args, loss_impl="chunked")) for spec in specs]
    carry_out(partial(grow, *specs, tmp_path), 2, 1)
    with torch.device("meta"):
        model = GPT(large)
    whole, largest = 4 * num_parameters(model), 4 * max(weight.numel() for weight in model.parameters())
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["kept"] == pytest.approx(whole / 2, rel=1e-3)
        assert found["peak"] <= whole / 2 + largest
