"""What only the device can say of a run: whether to compile, how to take the loss, which micro-batch.

All of it is said before the run's data is planned. The micro-batch is the fastest that fits, found by trying once per
machine and model.
"""

import ctypes
import gc
import hashlib
import json
import math
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import lightning as L
import torch
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy

from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.files import cache_file, remember, remembered
from litgpt_warmstart.method.loss import LossImpl, choose, cpu_has_bf16
from litgpt_warmstart.run.build import bare_loss, compiled
from litgpt_warmstart.run.checkpoint import installed_versions
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.sharding import make_fabric
from litgpt_warmstart.run.spec import RunSpec

REPEATS = 4
"""Micro-batches that are timed, after one that compiles and one that warms up."""
TOLERANCE = 0.03
"""Among sizes that are this close to the fastest the smallest is taken: it needs the least memory."""
WORTH = 20
"""A run is tried for as long as it takes so many times what the trials take."""
LARGEST = {"cpu": 4, "cuda": 256}
"""No larger micro-batch is tried: a CPU's speed is flat from 1 on, and it has no error to catch when memory ends."""
TOKENS = {"cpu": 2**12, "cuda": 2**16}
"""Of the micro-batch that is tried first, at most."""
BUSY_FLOPS = 1.2e13
"""Matrix products that keep a GPU busy while what comes next is launched: the first micro-batch needs no more."""
BYTES_PER_ACTIVATION = 40
"""What a token takes for each channel of each layer, measured with 70M in bf16-mixed."""
BYTES_PER_LOGIT = 12
"""What full takes for each, eagerly, measured with stock's 5M in bf16-mixed; chunked has those of a chunk alone."""
FLOPS_PER_SEC, TRIAL_SECONDS = {"cpu": 1e11, "cuda": 1e14}, 15.0
"""About what a device makes of matrix products, and what a trial takes: is a run long enough to try anything for it?"""
CACHE = "micro_batch"


@dataclass(frozen=True)
class Choice:
    """What is tried."""

    loss_impl: LossImpl
    micro_batch_size: int

    def of(self, spec: RunSpec) -> RunSpec:
        """The specification with this choice."""
        train = replace(spec.args.train, micro_batch_size=self.micro_batch_size)
        args = replace(spec.args, loss_impl=self.loss_impl, train=train)
        return replace(spec, micro_batch_size=self.micro_batch_size, args=args)


def tuned(fabric: L.Fabric, spec: RunSpec, before: Record | None = None) -> tuple[RunSpec, str]:
    """The specification with what the device decides, and in words what was chosen and why.

    What the checkpoint had that the run goes on from, whose record is ``before``, is kept.
    """
    device, is_sharded = fabric.device, isinstance(fabric.strategy, ModelParallelStrategy)
    if spec.compile and (reason := why_not_compile(device)):
        fabric.print(f"Training without torch.compile: {reason}")
        spec = replace(spec, compile=False)
    past, batch = before.training if before else {}, spec.device_batch_size
    impl, why = choose(spec.args.loss_impl, spec.config, spec.precision, past.get("loss_impl"))
    if impl == "chunked" and device.type == "cpu" and "bf16" in spec.precision and not cpu_has_bf16():
        why += ", in fp32 as this CPU only emulates bf16"
    sizes, found = candidates(batch, LARGEST[device.type]), ""
    if spec.args.train.micro_batch_size is not None:
        sizes, found = [spec.micro_batch_size], "as asked"
    elif (size := past.get("micro_batch_size")) and batch % size == 0:
        sizes, found = [size], "as before"
    first = Choice(impl, _first(spec.on_one_device, impl, sizes, device))
    # A CPU has no error to catch when the memory for all logits ends.
    is_open = spec.args.loss_impl == "auto" and not past.get("loss_impl") and device.type == "cuda"
    impls: list[LossImpl] = ["chunked", "full"] if is_open and impl == "chunked" else [impl]
    if is_sharded:
        choice, told = first, "no device holds the whole model to try others with"
    else:
        alone = make_fabric(spec.on_one_device) if spec.num_devices > 1 else fabric
        choice, told = find(alone, spec.on_one_device, first, sizes, impls)
    why = why if choice.loss_impl == impl else "faster here"
    words = f"loss {choice.loss_impl} ({why}); micro-batch {choice.micro_batch_size} ({found or told})"
    return choice.of(spec), words


def keep_memory(device: torch.device) -> None:
    """On a CPU, have glibc keep what is given back for the next buffer of any size, not give it to the kernel.

    A step gives large buffers back and asks for them again; by default each is mapped anew, and its pages are faulted
    in and zeroed, for a third to a half of a small model's step (mallopt(3); other C libraries have no such function).
    """
    mmap_max, trim_threshold = -4, -1  # of glibc's malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and device.type == "cpu":
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)


def give_back_memory() -> None:
    """Free what models that are gone have left, for one process that builds several, see :func:`keep_memory`."""
    gc.collect()
    torch.cuda.empty_cache()
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


def find(
    fabric: L.Fabric, spec: RunSpec, first: Choice, sizes: list[int], impls: Sequence[LossImpl]
) -> tuple[Choice, str]:
    """The fastest way to train here, and how it was found, in a few words.

    What is tried runs as the run will, compiled where that is, on random tokens, with room for Adam's moments: first
    smaller micro-batches, as long as they are as fast, else larger ones, as long as they are faster; then the other
    loss. Where each is compiled, they end where they would take too much of the run, by :data:`WORTH`.
    """
    if len(sizes) == 1 and len(impls) == 1:
        return first, f"no other size up to {LARGEST[fabric.device.type]} divides {spec.global_batch_size}"
    if not _is_long_enough(spec, sizes, fabric.device):
        return first, "the run is too short to measure"
    key, known = _key(fabric, spec), remembered(CACHE)
    known_size, known_impl = known.get(key), known.get(f"{key} loss", impls[0])
    if type(known_size) is int and known_size in sizes and known_impl in impls:  # the file is anybody's; true is no 1
        return Choice(known_impl, known_size), f"measured before, {cache_file(CACHE)}"
    fabric.print("Trying micro-batches; --train.micro_batch_size and --loss_impl leave this out")
    trials = Trials(fabric, spec)
    size = trials.search(first, sizes)
    for impl in impls:
        trials.worth(Choice(impl, size))
    choice = trials.best
    if trials.is_complete:
        told = {f"{key} loss": choice.loss_impl} if len(impls) > 1 else {}
        remember(CACHE, {**remembered(CACHE), key: choice.micro_batch_size, **told})  # others have written, perhaps
    return choice, trials.told


class Trials:
    """Choices that were tried, with the seconds that a sequence takes; a choice that does not fit takes for ever."""

    def __init__(self, fabric: L.Fabric, spec: RunSpec) -> None:
        self.fabric, self.spec = fabric, spec
        self.seconds: dict[Choice, float] = {}
        self.spent = 0.0
        self.is_complete = True

    @property
    def best(self) -> Choice:
        """Of those that are about as fast as the fastest, the one with the smallest micro-batch."""
        fastest = min(self.seconds.values())
        fast = [choice for choice, seconds in self.seconds.items() if seconds <= (1 + TOLERANCE) * fastest]
        return min(fast, key=lambda choice: choice.micro_batch_size)

    @property
    def told(self) -> str:
        """What was measured."""
        several = len({choice.loss_impl for choice in self.seconds}) > 1
        rates = [
            f"{choice.micro_batch_size}{f' {choice.loss_impl}' * several}: {self.spec.block_size / seconds:,.0f}"
            for choice, seconds in sorted(self.seconds.items(), key=lambda trial: trial[0].micro_batch_size)
            if seconds < math.inf
        ]
        return f"tokens/s by size: {', '.join(rates)}"

    def search(self, first: Choice, sizes: list[int]) -> int:
        """The best micro-batch for a loss, from a first one on."""
        at = sizes.index(first.micro_batch_size)
        while self.measure(replace(first, micro_batch_size=sizes[at])) == math.inf:
            if at == 0:
                raise out_of_memory(sizes[0])
            at -= 1
        for further in (reversed(sizes[:at]), sizes[at + 1 :]):
            for size in further:
                before = self.best
                if not self.worth(replace(first, micro_batch_size=size)):
                    return self.best.micro_batch_size
                if self.best == before:
                    break
            if self.best.micro_batch_size != sizes[at]:
                break
        return self.best.micro_batch_size

    def worth(self, choice: Choice) -> bool:
        """Try a choice if the run, as fast as it can be by now, is long enough for it; whether it was tried."""
        if choice in self.seconds:
            return True
        spec = self.spec
        run = spec.max_steps * spec.global_batch_size * min(self.seconds.values())
        if spec.compile and min(run, _max_seconds(spec)) < WORTH * self.spent * (1 + 1 / len(self.seconds)):
            self.is_complete = False
            return False
        self.measure(choice)
        return True

    def measure(self, choice: Choice) -> float:
        """Seconds that a sequence takes."""
        start = time.perf_counter()
        try:
            self.seconds[choice] = _seconds_per_sequence(self.fabric, choice.of(self.spec))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise device_failed(error, choice.micro_batch_size) or error from error
            self.seconds[choice] = math.inf
        give_back_memory()
        self.spent += time.perf_counter() - start
        return self.seconds[choice]


def _seconds_per_sequence(fabric: L.Fabric, spec: RunSpec) -> float:
    """Seconds that forward and backward take for a sequence, as the run will do them, on random tokens."""
    device = fabric.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # the run's own numbers are left alone
        eager = bare_loss(fabric, spec)
    moments = [torch.empty_like(p) for p in eager.parameters() for _ in range(2)]  # Adam's, which come later
    loss = fabric.setup(compiled(eager, spec.compile) if spec.compile else eager)
    generator = torch.Generator().manual_seed(0)
    shape = (spec.micro_batch_size, spec.block_size)
    tokens = torch.randint(spec.config.vocab_size, shape, generator=generator).to(device)
    for _ in range(2):
        fabric.backward(loss(tokens, tokens))
    start = now(device)
    for _ in range(REPEATS):
        fabric.backward(loss(tokens, tokens))
    taken = now(device) - start
    del moments
    return taken / REPEATS / spec.micro_batch_size


def _is_long_enough(spec: RunSpec, sizes: list[int], device: torch.device) -> bool:
    """Whether anything may be tried for a run: all where nothing is compiled, else a first one, and then we know."""

    def seconds(sequences: int) -> float:
        return spec.flops(sequences * spec.block_size)["matmul_flops"] / FLOPS_PER_SEC[device.type]

    run, trials = spec.max_steps * spec.global_batch_size, (2 + REPEATS) * sum(sizes)
    if spec.compile:
        return min(seconds(run), _max_seconds(spec)) >= WORTH * TRIAL_SECONDS
    return run >= WORTH * trials and _max_seconds(spec) >= WORTH * seconds(trials)


def _max_seconds(spec: RunSpec) -> float:
    """When ``--train.max_time`` ends the run."""
    return spec.args.train.max_time or math.inf


def _first(spec: RunSpec, impl: LossImpl, sizes: list[int], device: torch.device) -> int:
    """The largest micro-batch that a device has a use for, and that fills no more than a quarter of a GPU."""
    tokens = TOKENS[device.type]
    if device.type == "cuda":
        per_token = BYTES_PER_ACTIVATION * spec.config.n_layer * spec.config.n_embd
        if impl == "full":
            per_token += BYTES_PER_LOGIT * spec.num_classes
        fit = torch.cuda.mem_get_info(device)[0] / 4 / per_token
        tokens = min(tokens, fit, BUSY_FLOPS / spec.flops(1)["matmul_flops"])
    return max([size for size in sizes if size * spec.block_size <= tokens], default=sizes[0])


def device_failed(error: Exception, micro_batch_size: int) -> UserError | None:
    """What to tell of memory that is too small and of a compiler that fails; None for any other error."""
    from torch._dynamo.exc import TorchDynamoException  # with all of torch.compile: only where something has failed

    if is_out_of_memory(error):
        return out_of_memory(micro_batch_size)
    if isinstance(error, TorchDynamoException):
        return UserError(f"torch.compile fails here ({one_line(error, 150)}): pass --compile false")
    return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device has no room left: torch's allocator says so, or CUDA itself, its graphs and its libraries."""
    told = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    is_cudas = isinstance(error, RuntimeError) and "CUDA" in str(error) and any(words in str(error) for words in told)
    return is_cudas or isinstance(error, torch.OutOfMemoryError)


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
        kind = torch.backends.cpu.get_cpu_capability() + (" bf16" if cpu_has_bf16() else "")
        device = f"CPU {kind} x {torch.get_num_threads()}"
    asked = (spec.args.loss_impl, spec.args.train.micro_batch_size)
    precision = (spec.precision, torch.get_float32_matmul_precision())  # the command sets it, the Python API does not
    run = (asdict(spec.config), spec.block_size, spec.global_batch_size, precision, spec.compile, asked)
    digest = hashlib.sha256(json.dumps((installed_versions(), *run), default=str).encode()).hexdigest()
    return f"{device} {spec.config.name} {digest[:16]}"
