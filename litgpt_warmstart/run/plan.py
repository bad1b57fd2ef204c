"""What a warmstart takes, told before it is begun: tokens, Hoffmann FLOPs, memory, time, whether such growth pays.

Nothing is downloaded, prepared or written.
"""

import itertools
import math
from contextlib import suppress
from dataclasses import dataclass

from litgpt.config import Config

from litgpt_warmstart.data.blocks import BlockDataModule
from litgpt_warmstart.data.plan import plan_blocks, unread_blocks
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.flops import hoffmann_flops_per_token, matmul_flops_per_token
from litgpt_warmstart.method.growth import check_growable
from litgpt_warmstart.method.model import parameter_count
from litgpt_warmstart.method.scales import SCALES, resolve_config, short_name
from litgpt_warmstart.run import checkpoint
from litgpt_warmstart.run.spec import RunSpec
from litgpt_warmstart.run.tuning import Measurement, measure

RELIABLE_GROWTH = 2.0
"""The growth in parameters that arXiv 2605.13405 finds the most reliable."""
ABOUT = 1.25
"""What still counts as about that: Table 1's neighbours are 1.6 to 2.1 times each other."""
MANY_TOKENS_PER_PARAM = 20.0
"""Below it that paper finds the largest gains."""


@dataclass(frozen=True)
class ModelFigures:
    """A model and what its training takes; of the base, what its whole lineage took."""

    name: str
    n_embd: int
    parameters: int
    tokens: int | None
    """None where no record tells."""
    matmul_flops: int | None
    """By :func:`litgpt_warmstart.method.flops.matmul_flops_per_token`."""
    hoffmann_flops: int | None
    """By :func:`litgpt_warmstart.method.flops.hoffmann_flops_per_token`."""


@dataclass(frozen=True)
class RunPlan:
    """What ``litgpt warmstart_plan`` tells."""

    base: ModelFigures
    target: ModelFigures
    parameter_growth: float
    width_growth: float
    steps: int
    tokens_per_step: int
    tokens_per_param: float
    state_bytes: int
    """Weights, gradients and Adam's two moments, in closed form."""
    measurement: Measurement | None
    data: str
    tokens_left: int | None
    """In the data after what the lineage has read; None where it is not prepared here, or does not tell."""
    warnings: tuple[str, ...]
    route: tuple[str, ...]
    """Instead of one large growth: the stages from base to target; empty where nothing speaks against one."""

    def describe(self) -> str:
        """All of it in lines."""
        base, target, measured = self.base, self.target, self.measurement
        lines = [
            f"{base.name} -> {target.name}: {base.parameters:,} -> {target.parameters:,} parameters"
            f" ({self.parameter_growth:.2f}x), n_embd {base.n_embd} -> {target.n_embd} ({self.width_growth:.2f}x)",
            f"Budget: {target.tokens:,} tokens ({self.tokens_per_param:.2f} per parameter) in {self.steps:,} steps of"
            f" {self.tokens_per_step:,}; the base's lineage has read {_count(base.tokens)}",
            f"Hoffmann FLOPs, with embedding and softmax: target {target.hoffmann_flops:.3g}, the base's lineage"
            f" {_count(base.hoffmann_flops)}",
            f"Data: {self.data}",
        ]
        memory = f"Memory: {self.state_bytes / 1e9:.2f} GB for weights, gradients and Adam's moments"
        if measured is None:
            lines.append(f"{memory}; activations are not in it, and time was not measured")
        else:
            whole = "resident, Python and libraries included" if measured.device.startswith("CPU") else "allocated"
            compiling = f", and {duration(measured.compile_seconds)} to compile" if measured.compile else ""
            lines += [
                f"{memory}; {measured.peak_bytes / 1e9:.2f} GB at the measured peak ({whole})",
                f"Time on {measured.device}, {measured.precision}: {duration(measured.run_seconds)} for"
                f" {self.steps:,} steps of {duration(measured.step_seconds)}{compiling}; validation is not in it",
                f"  {measured.micro_batches:,} micro-batches of {measured.micro_batch_size} at"
                f" {duration(measured.micro_batch_seconds)}, update {duration(measured.update_seconds)};"
                f" {measured.tokens_per_sec:,.0f} tokens/s, {measured.matmul_flops_per_sec / 1e9:,.0f} matmul GFLOP/s",
                f"  {measured.choices}",
            ]
        return "\n".join([*lines, *(f"Warning: {warning}" for warning in self.warnings)])


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


def make_plan(spec: RunSpec, base: checkpoint.Header, measured: bool = True) -> RunPlan:
    """Plan a warmstart from a base; unless ``measured``, nothing is built and timed.

    Raises:
        UserError: The run cannot start, or does not fit into memory.
    """
    config, steps, tokens = spec.config, spec.max_steps, spec.max_tokens
    parameters = parameter_count(config)
    target = ModelFigures(
        config.name,
        config.n_embd,
        parameters,
        tokens,
        tokens * matmul_flops_per_token(config, spec.block_size),
        tokens * hoffmann_flops_per_token(config, spec.block_size),
    )
    source = base_figures(base)
    data, tokens_left, warnings = tokens_left_in_data(spec)
    factor, stages = parameters / source.parameters, ()
    at_least_many = tokens + spec.tokens_per_step > MANY_TOKENS_PER_PARAM * parameters  # a budget is cut to whole steps
    if factor > ABOUT * RELIABLE_GROWTH and at_least_many:
        stages = route(base.config, spec.config)
        warnings.append(growth_warning(factor, tokens / parameters, stages))
    measurement = measure(spec) if measured else None
    if measurement and spec.max_time and measurement.run_seconds > spec.max_time:
        reached = spec.max_time / measurement.run_seconds
        warnings.append(f"--train.max_time {spec.max_time:g} ends the run after about {reached:.0%} of its tokens")
    return RunPlan(
        base=source,
        target=target,
        parameter_growth=factor,
        width_growth=spec.config.n_embd / base.config.n_embd,
        steps=steps,
        tokens_per_step=spec.tokens_per_step,
        tokens_per_param=tokens / parameters,
        state_bytes=4 * parameters * (2 if spec.precision == "bf16-true" else 4),
        measurement=measurement,
        data=data,
        tokens_left=tokens_left,
        warnings=tuple(warnings),
        route=tuple(short_name(config.name) for config in stages) if len(stages) > 2 else (),
    )


def base_figures(base: checkpoint.Header) -> ModelFigures:
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
    between = [resolve_config(scale.name, **vocabulary) for scale in SCALES]
    between = [config for config in between if source.n_embd < config.n_embd < target.n_embd]
    ways = (
        (source, *stages, target)
        for count in range(len(between) + 1)
        for stages in itertools.combinations(between, count)  # narrow to wide, as SCALES is
    )
    sizes = {config.n_embd: parameter_count(config) for config in (source, *between, target)}

    def deviation(way: tuple[Config, ...]) -> tuple[float, float]:
        parameters = [sizes[config.n_embd] for config in way]
        off = [abs(math.log(later / earlier / RELIABLE_GROWTH)) for earlier, later in itertools.pairwise(parameters)]
        return max(off), sum(off)

    def possible(way: tuple[Config, ...]) -> bool:
        with suppress(UserError):
            for earlier, later in itertools.pairwise(way):
                check_growable(earlier, later)
            return True
        return False

    return min(filter(possible, ways), key=deviation)


def tokens_left_in_data(spec: RunSpec) -> tuple[str, int | None, list[str]]:
    """The data in words, how many tokens the run finds unread in it, and what to be warned of.

    Only data that is prepared here already is looked at.
    """
    data, name = spec.data, type(spec.data).__name__
    if not isinstance(data, BlockDataModule):
        return f"{name} does not tell which tokens it reads", None, []
    if not data.is_prepared:
        return f"{name} is not prepared here, so what is left of it is not known; the run prepares it first", None, []
    told, left = f"{name} is prepared here", None
    try:
        order, first = unread_blocks(spec, data)
        left = max(0, len(order) - first) * spec.block_size
        told = f"{name}: {left:,} of {len(order) * spec.block_size:,} tokens are left after what the lineage has read"
        return told, left, plan_blocks(spec).warnings
    except UserError as error:
        return told, left, [f"the run would be refused: {error}"]
