"""What only the device can say of a run: whether to compile, how to take the loss, which micro-batch; time and memory.

All of it is said before the run's data is planned. The micro-batch is the fastest that fits, found by trying once per
machine and model.
"""

import hashlib
import json
import os
import platform
import resource
import shutil
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import lightning as L
import torch

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import write_whole
from litgpt_warmstart.method import parametrization
from litgpt_warmstart.method.flops import matmul_flops_per_token
from litgpt_warmstart.method.loss import NextTokenLoss, choose, cpu_has_bf16
from litgpt_warmstart.run.build import bare_loss, build_state, update_weights
from litgpt_warmstart.run.checkpoint import read_checkpoint
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

ROUNDS, LEAST_SECONDS, MOST_SECONDS = 3, 2.0, 30.0
"""Optimizer steps that are timed: at least so many, and more for so long; fewer where one takes very long."""


def tuned(fabric: L.Fabric, spec: RunSpec, before: Record | None = None) -> tuple[RunSpec, str]:
    """The specification with what the device decides, and in words what was chosen and why.

    What the checkpoint had that the run goes on from, whose record is ``before``, is kept.
    """
    if spec.compile and (reason := why_not_compile(fabric.device)):
        fabric.print(f"Training without torch.compile: {reason}")
        spec = replace(spec, compile=False)
    past = before.training if before else {}
    tokens = spec.micro_batch_size * spec.block_size
    impl, chosen_for = choose(spec.loss_impl, spec.config, spec.precision, fabric.device, tokens, past.get("loss_impl"))
    if impl == "chunked" and fabric.device.type == "cpu" and "bf16" in spec.precision and not cpu_has_bf16():
        chosen_for += ", in fp32 as this CPU only emulates bf16"
    spec = replace(spec, loss_impl=impl)
    size, found = spec.micro_batch_size, "as asked"
    if spec.find_micro_batch:
        size, found = past.get("micro_batch_size", 0), "as before"
        if not size or spec.global_batch_size % size:
            size, found = find(fabric, spec, lambda: bare_loss(fabric, spec))
    train = spec.hyperparameters.get("train", {}) | {"micro_batch_size": size}
    hyperparameters = {**spec.hyperparameters, "loss_impl": impl, "train": train}
    spec = replace(spec, micro_batch_size=size, hyperparameters=hyperparameters)
    return spec, f"loss {impl} ({chosen_for}); micro-batch {size} ({found})"


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
    key, known = _key(fabric, spec), _read_cache()
    before = known.get(key)
    if type(before) is int and before in sizes:  # the file is anybody's to change, and true is no 1
        return before, f"measured before, {_cache_file()}"
    fabric.print(f"Trying micro-batches of {', '.join(map(str, sizes))}; --train.micro_batch_size leaves this out")
    seconds = _seconds_per_sequence(fabric, spec, make_loss(), sizes)
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


def _key(fabric: L.Fabric, spec: RunSpec) -> str:
    """Everything that decides speed and memory: the device in words, the rest as a hash."""
    if fabric.device.type == "cuda":
        device = torch.cuda.get_device_name(fabric.device)
    else:
        device = f"{platform.processor()} {torch.backends.cpu.get_cpu_capability()} x {torch.get_num_threads()}"
    run = (asdict(spec.config), spec.block_size, spec.global_batch_size, spec.precision, spec.compile, spec.loss_impl)
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
    with suppress(OSError, RuntimeError):  # no home folder, or none to write to: measured anew next time
        _cache_file().parent.mkdir(parents=True, exist_ok=True)
        write_whole(_cache_file(), json.dumps(sizes, indent=1))


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
    peak_bytes: int
    """CUDA: allocated at most. CPU: resident at most, Python and its libraries included."""


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
    _forget_peak_memory(device)
    try:
        spec, choices = tuned(fabric, spec)
        state = build_state(fabric, spec, read_checkpoint(spec.source_dir) if spec.source_dir else None)
        batch, block_size, accumulation = spec.micro_batch_size, spec.block_size, spec.accumulation_iters
        tokens = torch.randint(spec.config.vocab_size, (batch, block_size + 1)).to(device)  # (B, T + 1)
        input_ids, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        parametrization.set_learning_rate(state.optimizer, spec.base_lr, 0.0)  # the arithmetic of a step, no way to NaN

        def train_micro_batch() -> None:
            fabric.backward(state.loss(input_ids, targets) / accumulation)

        def update() -> None:
            update_weights(fabric, spec, state)

        first_seconds = _timed(train_micro_batch, device)
        _timed(train_micro_batch, device)
        _timed(update, device)
        micro_seconds, update_seconds, started = [], [], time.perf_counter()
        while (spent := time.perf_counter() - started) < LEAST_SECONDS or len(update_seconds) < ROUNDS:
            micro_seconds += [_timed(train_micro_batch, device) for _ in range(min(2, accumulation))]
            update_seconds.append(_timed(update, device))
            if spent > MOST_SECONDS:
                break
    except torch.OutOfMemoryError as error:
        raise out_of_memory(spec.micro_batch_size) from error
    micro, updating = statistics.median(micro_seconds), statistics.median(update_seconds)
    step_seconds = accumulation * micro + updating
    compile_seconds = max(0.0, first_seconds - micro) if spec.compile else 0.0
    tokens_per_sec = spec.tokens_per_step / step_seconds
    return Measurement(
        device=torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.backends.cpu.get_cpu_capability()}",
        precision=spec.precision,
        compile=spec.compile,
        choices=choices,
        micro_batch_size=batch,
        micro_batches=accumulation,
        micro_batch_seconds=micro,
        update_seconds=updating,
        step_seconds=step_seconds,
        compile_seconds=compile_seconds,
        run_seconds=compile_seconds + spec.max_steps * step_seconds,
        tokens_per_sec=tokens_per_sec,
        matmul_flops_per_sec=tokens_per_sec * matmul_flops_per_token(spec.config, block_size),
        peak_bytes=_peak_memory(device),
    )


def _timed(work: Callable[[], None], device: torch.device) -> float:
    start = _now(device)
    work()
    return _now(device) - start


def _forget_peak_memory(device: torch.device) -> None:
    """Begin a new peak, where the system lets a process do so."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # no Linux, or not allowed: the peak is that of the process's whole life
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory(device: torch.device) -> int:
    """Bytes at the peak: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
