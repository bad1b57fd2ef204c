"""What devices can do: how many a run may have, how they share its model, and the most that one computes.

ddp     each device holds all weights, gradients and moments; gradients are averaged
fsdp    each holds a part of every one of them; a block's weights are gathered while it computes
"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from litgpt.config import Config
from litgpt.utils import parse_devices

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.loss import cpu_has_bf16
from litgpt_warmstart.method.model import parameter_count
from litgpt_warmstart.run.spec import CUDA_GRAPHS, RunArgs, RunSpec

ROOM = 0.75
"""The part of a device's memory that weights, gradients and moments may take; activations need the rest."""
SIZE, ROUNDS = 512, 5
"""Of the matrices whose product tells a CPU's rate, and how often it is taken: a few hundredths of a second."""


def count_devices(devices: int | str) -> int:
    """Devices of a node, as ``--devices`` names them; a UserError where that is no number of them."""
    with suppress(ValueError):
        return parse_devices(int(devices) if str(devices).isdecimal() else devices)
    raise UserError(f"--devices {devices} is no number of devices: give one above 0, or auto")


def check_here(args: RunArgs) -> None:
    """Raise a UserError where this machine has fewer devices than a run asks of a node, or none for its precision."""
    check_precision(args.precision)
    asked, has = count_devices(args.devices), devices_here()
    if asked <= has:
        return
    if torch.cuda.is_available():
        told = f"this machine has {has} CUDA device{'s' * (has > 1)}"
    else:
        told = (
            f"this machine has no CUDA device, and its CPU takes at most {has} process{'es' * (has > 1)}, a core each"
        )
    raise UserError(f"--devices {asked}: {told}: lower --devices")


def check_precision(precision: str | None) -> None:
    """Raise a UserError where this machine has no device for a precision, which Fabric would replace by another."""
    if precision == "16-mixed" and not torch.cuda.is_available():
        raise UserError("--precision 16-mixed: this machine has no CUDA device: give bf16-mixed or 32-true")


def devices_here() -> int:
    """CUDA devices of this machine; without any, the processes that its CPU takes."""
    return torch.cuda.device_count() or len(os.sched_getaffinity(0))


def state_bytes(config: Config, precision: str) -> int:
    """Weights, gradients and Adam's two moments of a model, which mixed precision keeps in fp32."""
    return parameter_count(config) * (8 if precision == "bf16-true" else 16)


def device_memory(devices: int) -> int:
    """Bytes of a device's memory; of a CPU's, what one of so many processes may have."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // devices


def choose_strategy(spec: RunSpec, memory: int | None = None) -> tuple[str, str]:
    """``ddp`` or ``fsdp``, and in words why; on one device there is nothing to share.

    Args:
        spec: The run.
        memory: Bytes of a device. Default: of this machine's.

    Raises:
        UserError: ``fsdp`` goes neither with CUDA graphs nor with fp16.
    """
    asked = spec.args.strategy
    if spec.num_devices == 1:
        return "ddp", "one device"
    why_not = None
    if spec.compile in CUDA_GRAPHS:
        why_not = f"--compile {spec.compile}: CUDA graphs replay fixed addresses, and fsdp gathers weights anew"
    elif spec.precision == "16-mixed":
        why_not = "--precision 16-mixed: Fabric scales no sharded gradients"
    elif getattr(spec.optimizer.cls, "orthogonalizes", False):
        why_not = f"--optimizer {spec.optimizer.cls.__name__}, which needs whole matrices"
    elif spec.growth and spec.growth.carries_moments:
        why_not = "--moments carried, which are made whole"
    elif spec.args.track:
        why_not = "--track: it runs the bare model on one device"
    if asked == "fsdp" and why_not:
        raise UserError(f"--strategy fsdp does not go with {why_not}: change one of them")
    if asked != "auto":
        return asked, "as asked"
    needed, memory = state_bytes(spec.config, spec.precision), memory or device_memory(spec.devices)
    told = f"weights, gradients and moments take {needed / 1e9:.3g} of a device's {memory / 1e9:.3g} GB"
    if needed <= ROOM * memory:
        return "ddp", told
    if why_not:
        raise UserError(f"{told}, and fsdp does not go with {why_not}: change that, or take a smaller model")
    return "fsdp", told


@dataclass(frozen=True)
class Share:
    """What each of a run's devices has and sends, from the model's shapes alone."""

    devices: int
    strategy: str
    why: str
    state_bytes: int
    """Its weights, gradients and moments."""
    gathered_bytes: int
    """What fsdp gathers at a time beside them: the head and embedding with their gradients, and two blocks."""
    sent_bytes_per_step: int
    """In an optimizer step, as rings do it: of gradients, and with fsdp of weights."""
    sent_seconds_per_step: float | None
    """At the interconnect's rate; None where that is not known. What is sent while it computes takes no time."""

    @property
    def line(self) -> str:
        """In words."""
        gathered = f", and {self.gathered_bytes / 1e9:.2f} GB gathered at a time" if self.gathered_bytes else ""
        seconds = self.sent_seconds_per_step
        told = "" if seconds is None else f", {seconds:.3g} s where nothing is computed meanwhile"
        return (
            f"Devices: {self.devices}, {self.strategy} ({self.why}); each has {self.state_bytes / 1e9:.2f} GB of"
            f" weights, gradients and moments{gathered}, and sends {self.sent_bytes_per_step / 1e9:.3g} GB a step"
            f"{told}"
        )


def share(spec: RunSpec, memory: int | None = None, bytes_per_sec: float | None = None) -> Share:
    """What each device has and sends.

    Args:
        spec: The run.
        memory: Bytes of a device, by which ``auto`` chooses. Default: of this machine's.
        bytes_per_sec: What a device can send.
    """
    strategy, why = choose_strategy(spec, memory)
    devices, parameters = spec.num_devices, parameter_count(spec.config)
    number_bytes = 2 if spec.precision == "bf16-true" else 4
    sent_part, state, gathered = number_bytes * (devices - 1) / devices, state_bytes(spec.config, spec.precision), 0
    sent = 2 * sent_part * parameters
    if strategy == "fsdp":
        block = parameter_count(replace(spec.config, n_layer=2)) - parameter_count(replace(spec.config, n_layer=1))
        rest = parameters - spec.config.n_layer * block
        state, gathered = -(-state // devices), number_bytes * (2 * rest + 3 * block)
        # forward all weights, backward the blocks' again, then all gradients: of each micro-batch
        sent = sent_part * (2 * parameters + spec.config.n_layer * block) * spec.accumulation_iters
    seconds = sent / bytes_per_sec if bytes_per_sec else None
    return Share(devices, strategy, why, state, gathered, round(sent), seconds)


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
        is_emulated = dtype == torch.bfloat16 and not cpu_has_bf16()
        return _measured(torch.float32 if is_emulated else dtype, torch.get_num_threads())
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
