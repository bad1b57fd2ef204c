"""What a device can do at most: a data sheet's number, or a CPU's as measured."""

import pytest
import torch

from litgpt_warmstart.run import utilization
from litgpt_warmstart.run.utilization import peak_flops

CPU = torch.device("cpu")


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


def test_a_gpu_that_nobody_knows_has_none(gpu):
    assert peak_flops(gpu("Some GPU"), "bf16-mixed") is None


def test_a_cpu_is_measured_once_with_its_threads_and_draws_nothing(monkeypatch):
    utilization._measured.cache_clear()
    state = torch.get_rng_state()
    rate = peak_flops(CPU, "32-true")
    assert 1e8 < rate < 1e14 and torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(torch, "mm", None)
    assert peak_flops(CPU, "32-true") == rate
