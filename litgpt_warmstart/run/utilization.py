"""The most that a device computes, as a share of which training's rate is told."""

import time
from functools import lru_cache

import torch
from lightning.fabric.utilities.throughput import get_available_flops

SIZE, ROUNDS = 512, 5
"""Of the matrices whose product tells a CPU's rate, and how often it is taken: a few hundredths of a second."""


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOPs per second of dense matrix products: a GPU's data sheet's, a CPU's as measured with this process's threads.

    Args:
        device: Where the run is.
        precision: Fabric's, such as ``bf16-mixed``.

    Returns:
        None for a GPU that Lightning has no data sheet of.
    """
    dtype = {"32": torch.float32, "bf": torch.bfloat16, "16": torch.float16}[precision[:2]]
    if device.type == "cpu":
        return _measured(dtype, torch.get_num_threads())
    if "H200" in torch.cuda.get_device_name(device):  # an H100's; Lightning 2.6 has those with sparsity, twice as many
        tf32 = torch.get_float32_matmul_precision() != "highest"
        return 989.4e12 if dtype != torch.float32 else 494.7e12 if tf32 else 66.9e12
    return get_available_flops(device, dtype)


@lru_cache
def _measured(dtype: torch.dtype, threads: int) -> float:
    """The best of a few products; ``threads`` tells one answer from another."""
    factor, product = torch.ones(SIZE, SIZE, dtype=dtype), torch.empty(SIZE, SIZE, dtype=dtype)
    seconds = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        torch.mm(factor, factor, out=product)
        seconds.append(time.perf_counter() - begun)
    return 2 * SIZE**3 / min(seconds)
