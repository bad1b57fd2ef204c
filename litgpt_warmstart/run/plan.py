"""What a warmstart takes, told before it is begun: tokens, Hoffmann FLOPs, memory, time, whether such growth pays.

Nothing is downloaded, prepared or written; a micro-batch that was found is remembered for the run.
"""

import itertools
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from litgpt.config import Config

from litgpt_warmstart.data.plan import plan_blocks, unread_blocks
from litgpt_warmstart.data.prepared_text import PreparedText
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method import parametrization
from litgpt_warmstart.method.flops import hoffmann_flops_per_token, matmul_flops_per_token
from litgpt_warmstart.method.growth import check_growable
from litgpt_warmstart.method.limits import Limits, limits
from litgpt_warmstart.method.model import parameter_count
from litgpt_warmstart.method.scales import SCALES, resolve_config, short_name
from litgpt_warmstart.run.build import build_state, update_weights
from litgpt_warmstart.run.checkpoint import Header, read_checkpoint
from litgpt_warmstart.run.devices import check_precision, share
from litgpt_warmstart.run.spec import RunSpec
from litgpt_warmstart.run.tuning import device_failed, give_back_memory, keep_memory, now, tuned

RELIABLE_GROWTH = 2.0
"""The growth in parameters that arXiv 2605.13405 finds the most reliable."""
ABOUT = 1.25
"""What still counts as about that: Table 1's neighbours are 1.6 to 2.1 times each other."""
MANY_TOKENS_PER_PARAM = 20.0
"""Below it that paper finds the largest gains."""

ROUNDS, LEAST_SECONDS, MOST_SECONDS = 3, 2.0, 30.0
"""Optimizer steps that are timed: at least so many, and more for so long; fewer where one takes very long."""


@dataclass(frozen=True)
class ModelFigures:
    """A model and what its training takes; of the base, what its whole lineage took, None where no record tells."""

    name: str
    n_embd: int
    parameters: int
    tokens: int | None
    matmul_flops: int | None
    """By :func:`litgpt_warmstart.method.flops.matmul_flops_per_token`."""
    hoffmann_flops: int | None
    """By :func:`litgpt_warmstart.method.flops.hoffmann_flops_per_token`."""


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

    def lines(self, steps: int) -> list[str]:
        """Time in lines, of a run of so many steps."""
        compiling = f", and {duration(self.compile_seconds)} to compile" if self.compile else ""
        return [
            f"Time on {self.device}, {self.precision}: {duration(self.run_seconds)} for {steps:,} steps of"
            f" {duration(self.step_seconds)}{compiling}; validation is not in it",
            f"  {self.micro_batches:,} micro-batches of {self.micro_batch_size} at"
            f" {duration(self.micro_batch_seconds)}, update {duration(self.update_seconds)};"
            f" {self.tokens_per_sec:,.0f} tokens/s, {self.matmul_flops_per_sec / 1e9:,.0f} matmul GFLOP/s",
            f"  {self.choices}",
        ]


def make_plan(
    spec: RunSpec,
    base: Header,
    measured: bool = True,
    device_memory: int | None = None,
    bytes_per_sec: float | None = None,
) -> tuple[str, dict[str, Any]]:
    """Plan a warmstart from a base.

    Args:
        spec: The run; time and memory of several devices are measured on one, of its part.
        base: The checkpoint that is grown.
        measured: Unless true, nothing is built and timed; nor is a model that no device holds alone.
        device_memory: Bytes of a device, by which a strategy is chosen. Default: of this machine's.
        bytes_per_sec: What a device can send to others.

    Returns:
        The plan in lines, and as plain values.

    Raises:
        UserError: The run cannot start, or does not fit into memory.
    """
    config, tokens, parameters = spec.config, spec.max_tokens, parameter_count(spec.config)
    source = base_figures(base)
    target = ModelFigures(config.name, config.n_embd, parameters, tokens, **spec.flops(tokens))
    data, tokens_left, warnings = tokens_left_in_data(spec)
    factor, widening, per_param = parameters / source.parameters, config.n_embd / source.n_embd, tokens / parameters
    at_least_many = tokens + spec.tokens_per_step > MANY_TOKENS_PER_PARAM * parameters  # a budget is cut to whole steps
    stages = route(base.config, config) if factor > ABOUT * RELIABLE_GROWTH and at_least_many else ()
    if stages:
        warnings.append(growth_warning(factor, per_param, stages))
    can_save, sharing = savings(source, target), share(spec, device_memory, bytes_per_sec)
    memory = f"Memory: {sharing.state_bytes / 1e9:.2f} GB for weights, gradients and Adam's moments; "
    measurement = measure(spec) if measured and sharing.strategy == "ddp" else None
    if measurement is None:
        memory += "activations are not in it, and time was not measured"
    else:
        whole = "resident, Python and libraries included" if measurement.device.startswith("CPU") else "allocated"
        memory += f"{measurement.peak_bytes / 1e9:.2f} GB at the measured peak ({whole})"
        max_time = spec.args.train.max_time
        if max_time and measurement.run_seconds > max_time:
            reached = max_time / measurement.run_seconds
            warnings.append(f"--train.max_time {max_time:g} ends the run after about {reached:.0%} of its tokens")
    lines = [
        f"{source.name} -> {target.name}: {source.parameters:,} -> {parameters:,} parameters ({factor:.2f}x),"
        f" n_embd {source.n_embd} -> {target.n_embd} ({widening:.2f}x)",
        f"Budget: {tokens:,} tokens ({per_param:.2f} per parameter) in {spec.max_steps:,} steps of"
        f" {spec.tokens_per_step:,}; the base's lineage has read {_count(source.tokens)}",
        f"Hoffmann FLOPs, with embedding and softmax: target {target.hoffmann_flops:.3g}, the base's lineage"
        f" {_count(source.hoffmann_flops)}",
        *savings_lines(can_save),
        f"Data: {data}",
        *([sharing.line] if sharing.devices > 1 else ()),
        memory,
        *(measurement.lines(spec.max_steps) if measurement else ()),
        *(f"Warning: {warning}" for warning in warnings),
    ]
    figures = dict(
        base=asdict(source), target=asdict(target), parameter_growth=factor, width_growth=widening,
        steps=spec.max_steps, tokens_per_step=spec.tokens_per_step, tokens_per_param=per_param,
        limits=can_save and asdict(can_save), state_bytes=sharing.state_bytes, devices=asdict(sharing),
        measurement=measurement and asdict(measurement), data=data, tokens_left=tokens_left,
        warnings=warnings, route=[short_name(stage.name) for stage in stages] if len(stages) > 2 else [],
    )  # fmt: skip
    return "\n".join(lines), figures


def savings(source: ModelFigures, target: ModelFigures) -> Limits | None:
    """What the growth can save of the target's training; None where the base's record does not tell what it took."""
    if None in (source.tokens, source.hoffmann_flops):
        return None
    counted = ("parameters", "tokens", "hoffmann_flops")
    return limits(*((getattr(source, name), getattr(target, name)) for name in counted))


def savings_lines(found: Limits | None) -> list[str]:
    """The same in lines."""
    if found is None:
        return ["What growth can save is not known: the base's record does not tell what it took"]
    beyond = found.speed_ups
    if math.isinf(beyond["tokens"]):
        times = 1 / beyond["tokens_with_base"]
        return [f"Growth can save all of so short a training, but the base's took {times:.1f} times its compute"]
    return [
        f"Growth can save {found.words}",
        f"  A speed-up beyond {beyond['tokens']:.2f}, or {beyond['tokens_with_base']:.2f} with the base counted, is one"
        " to distrust: the run from scratch is then not what it should be",
    ]


def _count(number: int | None) -> str:
    if number is None:
        return "an unknown number"
    return f"{number:,}" if number < 10**12 else f"{number:.3g}"


def duration(seconds: float) -> str:
    """Seconds in the largest unit that leaves at least two of it."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} s"


def base_figures(base: Header) -> ModelFigures:
    """The base, with what it and all before it have spent by their own records."""
    record, config = base.record, base.config
    parameters = parameter_count(config)
    if record is None or any(not ancestor.tokens for ancestor in record.lineage):  # one of them says nothing of itself
        return ModelFigures(config.name, config.n_embd, parameters, None, None, None)
    spent = [(a.tokens, a.matmul_flops, a.hoffmann_flops) for a in record.lineage]
    if record.tokens:
        own = record.tokens * hoffmann_flops_per_token(config, record.training["block_size"])
        spent.append((record.tokens, record.matmul_flops, record.hoffmann_flops or own))
    tokens, matmul, hoffmann = (sum(column) for column in zip(*spent, strict=True)) if spent else (0, 0, 0)
    known = all(count for *_, count in spent)  # records of older versions have one count alone
    return ModelFigures(config.name, config.n_embd, parameters, tokens, matmul, hoffmann if known else None)


def growth_warning(factor: float, tokens_per_param: float, stages: tuple[Config, ...]) -> str:
    """What the literature says of growth by more than about twice, with the stages instead."""
    told = (
        f"growth by {factor:.1f}x in parameters at {tokens_per_param:.3g} tokens per parameter seldom pays: arXiv"
        f" 2605.13405 found about {RELIABLE_GROWTH:g}x per step the most reliable, and the gains largest below"
        f" {MANY_TOKENS_PER_PARAM:g} tokens per parameter"
    )
    if len(stages) <= 2:
        return f"{told}; no scale of Table 1 makes nearer steps. Compare it with a run from scratch"
    sizes = [parameter_count(config) for config in stages]
    factors = ", ".join(f"{later / earlier:.1f}x" for earlier, later in itertools.pairwise(sizes))
    return f"{told}; by stages instead: {' -> '.join(short_name(c.name) for c in stages)} ({factors})"


def route(source: Config, target: Config) -> tuple[Config, ...]:
    """The stages from source to target over Table 1's scales whose growths are the nearest to twice.

    Of all ways over scales that can be grown from one another the one whose worst growth deviates least, by ratio; of
    equal ones the one that deviates least in sum.

    Returns:
        Source, scales in between, target.
    """
    vocabulary = dict(padded_vocab_size=source.padded_vocab_size, vocab_size=source.vocab_size)
    scales = [resolve_config(scale.name, **vocabulary) for scale in SCALES]  # narrow to wide
    between = [scale for scale in scales if source.n_embd < scale.n_embd < target.n_embd]
    sizes = {config.n_embd: parameter_count(config) for config in (source, *between, target)}

    def off(earlier: Config, later: Config) -> float:
        with suppress(UserError):
            check_growable(earlier, later)
            return abs(math.log(sizes[later.n_embd] / sizes[earlier.n_embd] / RELIABLE_GROWTH))
        return math.inf

    def deviation(way: tuple[Config, ...]) -> tuple[float, float]:
        found = [off(*growth) for growth in itertools.pairwise(way)]
        return max(found), sum(found)

    ways = (itertools.combinations(between, count) for count in range(len(between) + 1))
    return min(((source, *stages, target) for stages in itertools.chain.from_iterable(ways)), key=deviation)


def tokens_left_in_data(spec: RunSpec) -> tuple[str, int | None, list[str]]:
    """The data in words, how many tokens the run finds unread in it, and what to be warned of.

    Only data that is prepared here already is looked at.
    """
    data, name = spec.data, type(spec.data).__name__
    if not isinstance(data, PreparedText):
        return f"{name} does not tell which tokens it reads", None, []
    if not data.is_prepared:
        return f"{name} is not prepared here, so what is left of it is not known; the run prepares it first", None, []
    told, left = f"{name} is prepared here", None
    try:
        blocks = unread_blocks(spec, data)
        left, whole = len(blocks) * spec.block_size, len(blocks.order) * spec.block_size
        told = f"{name}: {left:,} of {whole:,} tokens are left after what the lineage has read"
        return told, left, plan_blocks(spec).warnings
    except UserError as error:
        return told, left, [f"the run would be refused: {error}"]


def measure(spec: RunSpec) -> Measurement:
    """Build the model as a run does, and time some of its optimizer steps on random tokens.

    Raises:
        UserError: The base cannot be read, or the device's memory is too small.
    """
    on_gpu = torch.cuda.is_available()
    check_precision(spec.precision)
    fabric = L.Fabric(accelerator="cuda" if on_gpu else "cpu", devices=1, precision=spec.precision)
    fabric.launch()
    fabric.seed_everything(spec.seed, verbose=False)
    device = fabric.device
    try:
        if spec.args.keep_memory:
            keep_memory(device)
        spec, choices = tuned(fabric, spec)
        _forget_peak_memory(device)
        state = build_state(fabric, spec, read_checkpoint(spec.start_dir) if spec.start_dir else None)
        batch, accumulation = spec.micro_batch_size, spec.accumulation_iters
        tokens = torch.randint(spec.config.vocab_size, (batch, spec.block_size + 1)).to(device)  # (B, T + 1)
        input_ids, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        parametrization.set_learning_rate(state.optimizer, spec.base_lr, 0.0)  # the arithmetic of a step, no way to NaN

        def train_micro_batch() -> None:
            fabric.backward(state.loss(input_ids, targets) / accumulation)

        update = partial(update_weights, fabric, spec, state)
        first_seconds = _timed(train_micro_batch, device)
        _timed(train_micro_batch, device)
        _timed(update, device)
        micro_seconds, update_seconds, started = [], [], time.perf_counter()
        while (spent := time.perf_counter() - started) < LEAST_SECONDS or len(update_seconds) < ROUNDS:
            micro_seconds += [_timed(train_micro_batch, device) for _ in range(min(2, accumulation))]
            update_seconds.append(_timed(update, device))
            if spent > MOST_SECONDS:
                break
    except RuntimeError as error:
        raise device_failed(error, spec.micro_batch_size) or error from error
    micro, updating = statistics.median(micro_seconds), statistics.median(update_seconds)
    step_seconds = accumulation * micro + updating
    compile_seconds = max(0.0, first_seconds - micro) if spec.compile else 0.0
    tokens_per_sec = spec.tokens_per_step / step_seconds
    name = torch.cuda.get_device_name(device) if on_gpu else f"CPU, {torch.backends.cpu.get_cpu_capability()}"
    return Measurement(
        name, spec.precision, spec.compile, choices, batch, accumulation, micro, updating, step_seconds,
        compile_seconds, compile_seconds + spec.max_steps * step_seconds, tokens_per_sec,
        tokens_per_sec * matmul_flops_per_token(spec.config, spec.block_size), _peak_memory(device),
    )  # fmt: skip


def _forget_peak_memory(device: torch.device) -> None:
    """Begin a new peak, where the system lets a process do so: other models may have been built in it before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    give_back_memory()
    with suppress(OSError):  # no Linux, or not allowed: the peak is that of the process's whole life
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory(device: torch.device) -> int:
    """Bytes at the peak: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, StopIteration):  # what getrusage tells is never forgotten
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _timed(work: Callable[[], None], device: torch.device) -> float:
    start = now(device)
    work()
    return now(device) - start
