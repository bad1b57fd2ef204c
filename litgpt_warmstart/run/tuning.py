"""What only the device can say of a run: whether to compile, how to take the loss, which micro-batch.

All of it is said before the run's data is planned. The micro-batch is the fastest that fits, found by trying once per
machine and model.
"""

import ctypes
import hashlib
import json
import os
import platform
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import lightning as L
import torch

from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.files import cache_file, remember, remembered
from litgpt_warmstart.method.loss import NextTokenLoss, choose, cpu_has_bf16
from litgpt_warmstart.run.build import bare_loss
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.resolve import default_micro_batch
from litgpt_warmstart.run.spec import RunSpec

REPEATS = 3
LARGEST = {"cpu": 4, "cuda": 256}
"""No larger one is tried: a CPU's speed is flat from 1 on, and it has no error to catch when memory ends."""
TOLERANCE = 0.05
"""Among sizes that are this close to the fastest the smallest is taken: it needs the least memory."""
WORTH = 50
"""A run is measured for if it is this many times as long as the trial."""
CACHE = "micro_batch"


def tuned(fabric: L.Fabric, spec: RunSpec, before: Record | None = None) -> tuple[RunSpec, str]:
    """The specification with what the device decides, and in words what was chosen and why.

    What the checkpoint had that the run goes on from, whose record is ``before``, is kept.
    """
    if spec.args.keep_memory and fabric.device.type == "cpu":
        keep_memory()
    if spec.compile and (reason := why_not_compile(fabric.device)):
        fabric.print(f"Training without torch.compile: {reason}")
        spec = replace(spec, compile=False)
    past, asked = before.training if before else {}, spec.args.loss_impl
    tokens = spec.micro_batch_size * spec.block_size
    impl, chosen_for = choose(asked, spec.config, spec.precision, fabric.device, tokens, past.get("loss_impl"))
    if impl == "chunked" and fabric.device.type == "cpu" and "bf16" in spec.precision and not cpu_has_bf16():
        chosen_for += ", in fp32 as this CPU only emulates bf16"
    spec = replace(spec, args=replace(spec.args, loss_impl=impl))
    size, found = spec.micro_batch_size, "as asked"
    if spec.args.train.micro_batch_size is None:
        size, found = past.get("micro_batch_size", 0), "as before"
        if not size or spec.global_batch_size % size:
            size, found = find(fabric, spec, lambda: bare_loss(fabric, spec))
    args = replace(spec.args, train=replace(spec.args.train, micro_batch_size=size))
    spec = replace(spec, micro_batch_size=size, args=args)
    return spec, f"loss {impl} ({chosen_for}); micro-batch {size} ({found})"


def keep_memory() -> None:
    """Have glibc keep what is given back for the next buffer, whatever its size, instead of giving it to the kernel.

    A step gives large buffers back and asks for them again; by default each is mapped anew, and its pages are faulted
    in and zeroed, for a third to a half of a small model's step (mallopt(3); other C libraries have no such function).
    """
    mmap_max, trim_threshold = -4, -1  # of glibc's malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)


def give_back_memory() -> None:
    """Have glibc give the kernel what it keeps of models that are gone, see :func:`keep_memory`."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if malloc_trim is not None:
        malloc_trim(0)


def why_not_compile(device: torch.device) -> str | None:
    """Why torch.compile cannot work here, with the remedy; None if it can."""
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        return f"no C++ compiler {compiler!r}; install one for more speed"
    if device.type == "cuda" and not any(map(shutil.which, (os.environ.get("CC", "gcc"), "clang", "cc"))):
        return "no C compiler, which Triton needs; install gcc for more speed"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "Python's headers are missing; install them (python3-dev) for more speed"
    return None


def candidates(global_batch_size: int, largest: int) -> list[int]:
    """Divisors of the batch to try, each at least twice the one before, smallest first."""
    chosen = [1]
    for size in range(2, min(global_batch_size, largest) + 1):
        if global_batch_size % size == 0 and size >= 2 * chosen[-1]:
            chosen.append(size)
    return chosen


def find(fabric: L.Fabric, spec: RunSpec, make_loss: Callable[[], NextTokenLoss]) -> tuple[int, str]:
    """The micro-batch size for a run that names none, and how it was found, in a few words.

    Forward and backward run eagerly on random tokens, with gradients and room for Adam's moments in memory: compiling
    each size would take longer than all of this, and compiled they need less. Weights are left alone.
    """
    batch, largest = spec.global_batch_size, LARGEST[fabric.device.type]
    sizes = candidates(batch, largest)
    if len(sizes) == 1:
        return 1, f"no other size up to {largest} divides {batch}"
    if spec.max_steps * batch < WORTH * (1 + REPEATS) * sum(sizes):
        return default_micro_batch(batch), "the run is too short to measure"
    key, known = _key(fabric, spec), remembered(CACHE)
    before = known.get(key)
    if type(before) is int and before in sizes:  # the file is anybody's to change, and true is no 1
        return before, f"measured before, {cache_file(CACHE)}"
    fabric.print(f"Trying micro-batches of {', '.join(map(str, sizes))}; --train.micro_batch_size leaves this out")
    seconds = _seconds_per_sequence(fabric, spec, make_loss(), sizes)
    fastest = min(seconds.values())
    size = next(size for size in sizes if size in seconds and seconds[size] <= (1 + TOLERANCE) * fastest)
    remember(CACHE, {**known, key: size})
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
                start = now(fabric.device)
                with fabric.autocast():
                    result = loss(tokens[:size], tokens[:size])
                result.backward()
                taken = (now(fabric.device) - start) / size
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


def device_failed(error: Exception, micro_batch_size: int) -> UserError | None:
    """What to tell of memory that is too small and of a compiler that fails; None for any other error."""
    from torch._dynamo.exc import TorchDynamoException  # with all of torch.compile: only where something has failed

    if isinstance(error, torch.OutOfMemoryError):
        return out_of_memory(micro_batch_size)
    if isinstance(error, TorchDynamoException):
        return UserError(f"torch.compile fails here ({one_line(error, 150)}): pass --compile false")
    return None


def out_of_memory(size: int) -> UserError:
    """The error for a micro-batch that does not fit."""
    remedy = "lower --train.micro_batch_size" if size > 1 else "take a smaller model, a shorter sequence or bf16-true"
    return UserError(f"the device's memory is too small for a micro-batch of {size}: {remedy}")


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _key(fabric: L.Fabric, spec: RunSpec) -> str:
    """Everything that decides speed and memory: the device in words, the rest as a hash."""
    if fabric.device.type == "cuda":
        device = torch.cuda.get_device_name(fabric.device)
    else:
        device = f"{platform.processor()} {torch.backends.cpu.get_cpu_capability()} x {torch.get_num_threads()}"
    run = (asdict(spec.config), spec.block_size, spec.global_batch_size, spec.precision, spec.compile, spec.loss)
    digest = hashlib.sha256(json.dumps((torch.__version__, *run), default=str).encode()).hexdigest()
    return f"{device} {spec.config.name} {digest[:16]}"
