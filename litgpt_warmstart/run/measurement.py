"""Time and memory of a run on this device, from a few optimizer steps of its real model on random tokens."""

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch

from litgpt_warmstart.method import parametrization
from litgpt_warmstart.method.flops import matmul_flops_per_token
from litgpt_warmstart.run import checkpoint, micro_batch
from litgpt_warmstart.run.build import build_state
from litgpt_warmstart.run.compilation import uses_cuda_graphs
from litgpt_warmstart.run.spec import RunSpec

ROUNDS, LEAST_SECONDS, MOST_SECONDS = 3, 2.0, 30.0
"""Optimizer steps that are timed: at least so many, and more for so long; fewer where one takes very long."""


@dataclass(frozen=True)
class Measurement:
    """A few optimizer steps of a run's model on this device; validation and saving are not in it."""

    device: str
    precision: str
    compile: bool | str
    choices: str
    """Loss and micro-batch, and why."""
    micro_batch_size: int
    micro_batches: int
    """Of an optimizer step."""
    micro_batch_seconds: float
    """Forward and backward."""
    update_seconds: float
    """Clipping and the optimizer."""
    step_seconds: float
    """An optimizer step: all its micro-batches and its update."""
    compile_seconds: float
    """What the first micro-batch took beyond another: compiling, for the most part."""
    run_seconds: float
    """The whole run, compiling included."""
    tokens_per_sec: float
    matmul_flops_per_sec: float
    peak_bytes: int | None
    """CUDA: allocated at most. CPU: resident at most, Python and its libraries included. None where nothing tells."""


def measure(spec: RunSpec) -> Measurement:
    """Build the model as a run does, and time some of its optimizer steps on random tokens. Nothing is written.

    Raises:
        UserError: The base cannot be read, or the device's memory is too small.
    """
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    fabric = L.Fabric(accelerator=accelerator, devices=1, precision=spec.precision)
    fabric.launch()
    fabric.seed_everything(spec.seed, verbose=False)
    device = fabric.device
    forget_peak_memory(device)
    try:
        source = checkpoint.read_checkpoint(spec.source_dir) if spec.source_dir else None
        spec, state, choices = build_state(fabric, spec, source, None, None)
        del source
        batch, block_size, accumulation = spec.train.micro_batch_size, spec.block_size, spec.accumulation_iters
        tokens = torch.randint(spec.config.vocab_size, (batch, block_size + 1)).to(device)  # (B, T + 1)
        input_ids, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        parametrization.set_learning_rate(state.optimizer, spec.base_lr, 0.0)  # the arithmetic of a step, no way to NaN
        drop_gradients = not uses_cuda_graphs(spec.compile, device)

        def train_micro_batch() -> None:
            fabric.backward(state.loss(input_ids, targets) / accumulation)

        def update() -> None:
            if spec.train.max_norm is not None:
                fabric.clip_gradients(
                    state.gpt, state.optimizer, max_norm=spec.train.max_norm, error_if_nonfinite=False
                )
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=drop_gradients)

        first_seconds = _seconds(train_micro_batch, device)
        _seconds(train_micro_batch, device)
        _seconds(update, device)
        micro_seconds, update_seconds, started = [], [], time.perf_counter()
        while (spent := time.perf_counter() - started) < LEAST_SECONDS or len(update_seconds) < ROUNDS:
            micro_seconds += [_seconds(train_micro_batch, device) for _ in range(min(2, accumulation))]
            update_seconds.append(_seconds(update, device))
            if spent > MOST_SECONDS:
                break
    except torch.OutOfMemoryError as error:
        raise micro_batch.out_of_memory(spec.train.micro_batch_size) from error
    micro, update_median = statistics.median(micro_seconds), statistics.median(update_seconds)
    step, compile_seconds = (
        accumulation * micro + update_median,
        max(0.0, first_seconds - micro) if spec.compile else 0.0,
    )
    tokens_per_sec = spec.tokens_per_step / step
    return Measurement(
        device=device_name(device),
        precision=spec.precision,
        compile=spec.compile,
        choices=choices,
        micro_batch_size=batch,
        micro_batches=accumulation,
        micro_batch_seconds=micro,
        update_seconds=update_median,
        step_seconds=step,
        compile_seconds=compile_seconds,
        run_seconds=compile_seconds + spec.max_steps * step,
        tokens_per_sec=tokens_per_sec,
        matmul_flops_per_sec=tokens_per_sec * matmul_flops_per_token(spec.config, block_size),
        peak_bytes=peak_memory(device),
    )


def device_name(device: torch.device) -> str:
    """What decides a device's speed: a GPU's name, a CPU's vector instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.backends.cpu.get_cpu_capability()}"


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def forget_peak_memory(device: torch.device) -> None:
    """Begin a new peak, where the system lets a process do so."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # no Linux, or not allowed: the peak is that of the process's whole life
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """Bytes at the peak since :func:`forget_peak_memory`: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    try:
        import resource
    except ImportError:  # no POSIX
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
