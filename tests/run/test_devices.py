"""How many devices there may be, how they share a model, and the most that one computes."""

import os
from dataclasses import replace

import pytest
import torch

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.run.devices import (
    ROOM,
    _measured,
    check_here,
    check_precision,
    choose_strategy,
    count_devices,
    devices_here,
    peak_flops,
    state_bytes,
)
from litgpt_warmstart.run.resolve import resolve
from litgpt_warmstart.run.spec import RunArgs, RunSpec, TrainArgs


@pytest.fixture
def spec(tiny, tiny_settings, tmp_path) -> RunSpec:
    args = RunArgs(lr=0.02, devices=2, train=TrainArgs(global_batch_size=8, max_steps=2), **tiny_settings)
    return resolve("warmstart_scratch", tiny[16], None, None, tmp_path, args, {})


def test_a_number_of_devices_is_a_number_or_auto():
    assert [count_devices(devices) for devices in (1, 3, "4")] == [1, 3, 4]
    for devices in (0, "two", "0", -2):
        with pytest.raises(UserError, match=f"--devices {devices} is no number of devices"):
            count_devices(devices)


def test_a_cpu_takes_as_many_processes_as_it_has_cores_and_says_so():
    cores = len(os.sched_getaffinity(0))
    assert devices_here() == cores
    check_here(RunArgs(devices=cores))
    with pytest.raises(UserError, match=f"no CUDA device, and its CPU takes at most {cores} process"):
        check_here(RunArgs(devices=cores + 1))


def test_auto_takes_ddp_where_a_device_holds_weights_gradients_and_moments_and_says_why(spec):
    needed = state_bytes(spec.config, spec.precision)
    assert needed == 16 * 137_664  # 2 x 4,096 x 16 + 32 + 2 x (12 x 16^2 + 13 x 16)
    told = "weights, gradients and moments take 0.0022 of a device's"
    for memory, strategy in ((needed / ROOM, "ddp"), (needed / ROOM - 1, "fsdp")):
        chosen, why = choose_strategy(spec, int(memory))
        assert chosen == strategy and why.startswith(told)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(compile="reduce-overhead"), "--compile reduce-overhead: CUDA graphs replay"),
        (dict(precision="16-mixed"), "--precision 16-mixed"),
        (dict(track=2), "--track"),
    ],
)
def test_fsdp_is_refused_with_what_it_cannot_do_and_auto_too_where_nothing_else_fits(spec, changes, told):
    args = replace(spec.args, track=changes.pop("track", None), strategy="fsdp")
    spec = replace(spec, args=args, **changes)
    with pytest.raises(UserError, match=f"--strategy fsdp does not go with {told}"):
        choose_strategy(spec)
    auto = replace(spec, args=replace(args, strategy="auto"))
    assert choose_strategy(auto, 10**9)[0] == "ddp"
    with pytest.raises(UserError, match="take a smaller model"):
        choose_strategy(auto, 10**6)


def test_a_batch_that_does_not_divide_is_refused(spec, tiny, tiny_settings, tmp_path):
    for train, told in (
        (TrainArgs(global_batch_size=7, max_steps=2), "7 cannot be split over 2 devices"),
        (TrainArgs(global_batch_size=8, micro_batch_size=8, max_steps=2), "micro_batch_size 8 on 2 devices"),
    ):
        args = RunArgs(lr=0.02, devices=2, train=train, **tiny_settings)
        with pytest.raises(UserError, match=told):
            resolve("warmstart_scratch", tiny[16], None, None, tmp_path, args, {})
    assert (spec.device_batch_size, spec.micro_batch_size, spec.accumulation_iters) == (4, 4, 1)


@pytest.fixture
def gpu(monkeypatch):
    """Have CUDA say that it is some GPU."""

    def named(name: str) -> torch.device:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
        return torch.device("cuda")

    return named


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3", "NVIDIA H200"])
def test_an_h100_and_an_h200_have_the_dense_figure_of_their_data_sheet(gpu, name):
    assert peak_flops(gpu(name), "bf16-mixed") == peak_flops(gpu(name), "16-mixed") == 989.4e12
    assert peak_flops(gpu(name), "bf16-true") == 989.4e12


def test_fp16_is_refused_where_fabric_would_train_in_another_precision(monkeypatch):
    with pytest.raises(UserError, match="--precision 16-mixed: this machine has no CUDA device: give bf16-mixed"):
        check_here(RunArgs(precision="16-mixed"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_precision("16-mixed")


@pytest.mark.parametrize("emulated", [True, False])
def test_a_cpu_that_emulates_bf16_is_measured_in_fp32_as_its_head_computes(emulated, monkeypatch):
    monkeypatch.setattr("litgpt_warmstart.run.devices.cpu_has_bf16", lambda: not emulated)
    monkeypatch.setattr("litgpt_warmstart.run.devices._measured", lambda dtype, threads: dtype)
    assert peak_flops(torch.device("cpu"), "bf16-mixed") == (torch.float32 if emulated else torch.bfloat16)


def test_a_gpu_that_nobody_knows_has_none(gpu):
    assert peak_flops(gpu("Some GPU"), "bf16-mixed") is None


def test_a_cpu_is_measured_once_with_its_threads_and_draws_nothing(monkeypatch):
    _measured.cache_clear()
    state = torch.get_rng_state()
    rate = peak_flops(torch.device("cpu"), "32-true")
    assert 1e8 < rate < 1e14 and torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(torch, "mm", None)
    assert peak_flops(torch.device("cpu"), "32-true") == rate
