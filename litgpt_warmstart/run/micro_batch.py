"""The micro-batch size: the fastest that fits, found by trying, once per machine and model."""

import hashlib
import json
import os
import platform
import time
from dataclasses import asdict
from pathlib import Path

import lightning as L
import torch

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import write_whole
from litgpt_warmstart.method.loss import NextTokenLoss
from litgpt_warmstart.run.spec import RunSpec

REPEATS = 3
LARGEST = {"cpu": 4, "cuda": 256}
"""No larger one is tried: a CPU's speed is flat from 1 on, and it has no error to catch when memory ends."""
TOLERANCE = 0.05
"""Among sizes that are this close to the fastest the smallest is taken: it needs the least memory."""
WORTH = 50
"""A run is measured for if it is this many times as long as the trial."""


def default_size(global_batch_size: int) -> int:
    """Without a trial: the largest up to 4 that divides the batch."""
    return next(size for size in (4, 3, 2, 1) if global_batch_size % size == 0)


def candidates(global_batch_size: int, largest: int) -> list[int]:
    """Divisors of the batch to try, each at least twice the one before, smallest first."""
    chosen = [1]
    for size in range(2, min(global_batch_size, largest) + 1):
        if global_batch_size % size == 0 and size >= 2 * chosen[-1]:
            chosen.append(size)
    return chosen


def find(fabric: L.Fabric, spec: RunSpec, loss: NextTokenLoss) -> tuple[int, str]:
    """The micro-batch size for a run that names none, and how it was found, in a few words.

    Forward and backward run eagerly on random tokens, with gradients and room for Adam's moments in memory: compiling
    each size would take longer than all of this, and compiled they need less. Weights are left alone.

    Args:
        fabric: Tells device and precision.
        spec: The run.
        loss: The bare module.
    """
    batch = spec.train.global_batch_size
    sizes = candidates(batch, LARGEST.get(fabric.device.type, LARGEST["cuda"]))
    trial = (1 + REPEATS) * sum(sizes)
    if len(sizes) == 1:
        return 1, f"no other size up to {LARGEST.get(fabric.device.type)} divides {batch}"
    if spec.max_steps * batch < WORTH * trial:
        return default_size(batch), "the run is too short to measure"
    key, known = _key(fabric, spec, loss), _read_cache()
    before = known.get(key)
    if type(before) is int and before in sizes:  # the file is anybody's to change, and true is no 1
        return before, f"measured before, {_cache_file()}"
    fabric.print(f"Trying micro-batches of {', '.join(map(str, sizes))}; --train.micro_batch_size leaves this out")
    seconds = _seconds_per_sequence(fabric, spec, loss, sizes)
    fastest = min(seconds.values())
    size = next(size for size in sizes if size in seconds and seconds[size] <= (1 + TOLERANCE) * fastest)
    _write_cache({**known, key: size})
    tried = ", ".join(f"{size}: {spec.block_size / s:,.0f}" for size, s in seconds.items())
    return size, f"tokens/s by size, eagerly: {tried}"


def _seconds_per_sequence(fabric: L.Fabric, spec: RunSpec, loss: NextTokenLoss, sizes: list[int]) -> dict[int, float]:
    """The least time of some repeats, for each size that fits. They go round, since a machine's speed drifts."""
    fitting, seconds = list(sizes), {}
    moments = [torch.empty_like(p) for p in loss.parameters() for _ in range(2)]  # Adam's, which come later
    generator = torch.Generator().manual_seed(0)  # the run's own random numbers are left alone
    tokens = torch.randint(spec.config.vocab_size, (sizes[-1], spec.block_size), generator=generator)
    tokens, result = tokens.to(fabric.device), None
    for repeat in range(1 + REPEATS):
        for size in list(fitting):
            try:
                start = _now(fabric.device)
                with fabric.autocast():
                    result = loss(tokens[:size], tokens[:size])
                result.backward()
                taken = (_now(fabric.device) - start) / size
            except torch.OutOfMemoryError as error:
                result = None
                if size == 1:
                    raise out_of_memory(1) from error
                fitting = [s for s in fitting if s < size]
                seconds = {s: value for s, value in seconds.items() if s < size}
                break
            if repeat:  # the first one warms up
                seconds[size] = min(taken, seconds.get(size, taken))
    del moments, result
    loss.zero_grad()
    if fabric.device.type == "cuda":
        torch.cuda.empty_cache()
    return seconds


def out_of_memory(size: int) -> UserError:
    """The error for a micro-batch that does not fit."""
    remedy = "lower --train.micro_batch_size" if size > 1 else "take a smaller model, a shorter sequence or bf16-true"
    return UserError(f"the device's memory is too small for a micro-batch of {size}: {remedy}")


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _key(fabric: L.Fabric, spec: RunSpec, loss: NextTokenLoss) -> str:
    """Everything that decides speed and memory: the device in words, the rest as a hash."""
    if fabric.device.type == "cuda":
        device = torch.cuda.get_device_name(fabric.device)
    else:
        device = f"{platform.processor()} {torch.backends.cpu.get_cpu_capability()} x {torch.get_num_threads()}"
    run = (asdict(spec.config), spec.block_size, spec.train.global_batch_size, spec.precision, spec.compile, loss.impl)
    digest = hashlib.sha256(json.dumps((torch.__version__, *run), default=str).encode()).hexdigest()
    return f"{device} {spec.config.name} {digest[:16]}"


def _cache_file() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "litgpt_warmstart" / "micro_batch.json"


def _read_cache() -> dict[str, int]:
    try:
        known = json.loads(_cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # damaged, or no home folder is known: measured anew
        return {}
    return known if isinstance(known, dict) else {}


def _write_cache(sizes: dict[str, int]) -> None:
    try:
        _cache_file().parent.mkdir(parents=True, exist_ok=True)
        write_whole(_cache_file(), json.dumps(sizes, indent=1))
    except (OSError, RuntimeError):  # no home folder, or none to write to: measured anew next time
        pass
