"""muP on LitGPT: base shapes, initialization, optimizer groups. The one place that knows muP's table.

Standard parametrization is muP with the model itself as its base: every multiplier is then 1.
"""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import mup
import torch
from litgpt.config import Config
from litgpt.model import GPT
from torch import nn

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.folding import READOUT, Folding, attention_scores_scalar
from litgpt_warmstart.method.growth import Growth, is_gain
from litgpt_warmstart.method.model import MuGPT

DRAWING_THREADS = 4


@dataclass(frozen=True)
class Parametrization:
    """What changes as a model gets wider than its muP base.

    Of each kind of parameter: the powers of its width_mult (its last growing dimension over the same one at the base)
    that its initial standard deviation and Adam's learning rate at the base are divided by.
    """

    label: str
    """What it is called where a user reads of it."""
    matrix: tuple[float, float] = (0.0, 0.0)
    """Both dimensions grow."""
    embedding: tuple[float, float] = (0.0, 0.0)
    readout: tuple[float, float] = (0.0, 0.0)
    """lm_head's weight."""
    vector: tuple[float, float] = (0.0, 0.0)
    """Gains and biases, which start at 1 and 0."""
    logits: float = 0.0
    """They are divided by this power of n_embd over the base's."""
    scores: float = 0.5
    """Of attention: divided by this power of head_size, and equal to LitGPT's at the base."""
    is_own_base: bool = False
    """Whether nothing is carried over width: the model itself is the base."""


PARAMETRIZATIONS = {
    "sp": Parametrization("SP", is_own_base=True),
    # arXiv 2203.03466, table 8, the variant that the package mup implements.
    "mup": Parametrization("muP", matrix=(0.5, 1.0), logits=1.0, scores=1.0),
}
DEFAULT = "mup"  # carries a learning rate where nothing else is said
if TYPE_CHECKING:
    ParametrizationName = str
else:
    ParametrizationName = Literal[*PARAMETRIZATIONS]  # for jsonargparse and pydantic: the table says the names once


def width_mult(config: Config, mup_base: Config, parametrization: str = "mup") -> float:
    """What logits are divided by: for muP, n_embd over the muP base's n_embd."""
    return (config.n_embd / mup_base.n_embd) ** PARAMETRIZATIONS[parametrization].logits


def mup_config(config: Config, mup_base: Config, parametrization: str = "mup") -> Config:
    """``config`` with muP's attention scale, 1/head_size instead of 1/sqrt(head_size), equal to it at the muP base.

    LitGPT divides scores by ``sqrt(attention_scores_scalar)``. The value may be a float, which LitGPT's YAML keeps.

    Raises:
        UserError: The muP base differs from the model in more than width.
    """
    if config.n_layer != mup_base.n_layer:
        raise UserError(
            f"the muP base {mup_base.name!r} has {mup_base.n_layer} layers and {config.name!r} {config.n_layer}: muP"
            " carries a learning rate over width only"
        )
    scalar = attention_scores_scalar(config, mup_base, PARAMETRIZATIONS[parametrization].scores)
    if scalar == config.head_size:  # LitGPT's own default
        return replace(config, attention_scores_scalar=None)
    # LitGPT declares an int, and its code takes any number.
    return replace(config, attention_scores_scalar=int(scalar) if scalar == int(scalar) else scalar)


def folding(config: Config, mup_base: Config, parametrization: str = "mup") -> Folding:
    """What a model's forward pass does beside LitGPT's under a muP base."""
    return Folding(mup_config(config, mup_base, parametrization), width_mult(config, mup_base, parametrization))


def set_base_shapes(model: GPT, mup_base: Config) -> None:
    """Give every parameter of a bare MuGPT its ``infshape``; weights are left alone.

    Apply it again after anything that replaces parameters (deepcopy, ``load_state_dict(assign=True)``).
    """
    # Any model that differs from the base in each width dimension tells mup which dimensions grow.
    grow = ("n_embd", "n_head", "n_query_groups", "head_size", "intermediate_size")
    delta = replace(mup_base, **{name: 2 * getattr(mup_base, name) for name in grow})
    with torch.device("meta"):
        base_shapes = mup.make_base_shapes(MuGPT(mup_base), MuGPT(delta))
    try:
        mup.set_base_shapes(model, base_shapes, rescale_params=False)
    except AssertionError as error:
        raise UserError(f"the muP base {mup_base.name!r} has other parameters than {model.config.name!r}") from error


def infshape_of(parameter: nn.Parameter) -> mup.InfShape:
    """Which of a parameter's dimensions grow, and how much they have; :func:`set_base_shapes` puts it there."""
    return getattr(parameter, "infshape")  # noqa: B009  # torch declares no such attribute


def plain_std(model: GPT, name: str, mup_base: Config) -> float:
    """Standard deviation of a parameter at the muP base: GPT-NeoX's recipe (arXiv 2204.06745, section 2.2.2).

    1/(sqrt(d) L) for the two projections into the residual stream, sqrt(2/(5 d)) for every other matrix, 0 for biases
    (and gains, which start at 1).
    """
    module_name, _, kind = name.rpartition(".")
    module = model.get_submodule(module_name)
    if kind == "bias" or is_gain(name):
        return 0.0
    if not isinstance(module, (nn.Linear, nn.Embedding)):
        raise TypeError(f"{name} belongs to a {type(module).__name__}, which has no initialization here")
    if module_name.endswith((".attn.proj", ".mlp.proj")):
        return 1 / math.sqrt(mup_base.n_embd) / mup_base.n_layer
    return math.sqrt(2 / (5 * mup_base.n_embd))


def divisors(model: GPT, name: str, parametrization: str = "mup") -> tuple[float, float]:
    """What a parameter's initial std and learning rate at the muP base are divided by; base shapes must be set."""
    infshape, table = infshape_of(model.get_parameter(name)), PARAMETRIZATIONS[parametrization]
    others = {READOUT: table.readout, "transformer.wte.weight": table.embedding}
    std, lr = table.matrix if infshape.ninf() == 2 else others.get(name, table.vector)
    return infshape.width_mult() ** std, infshape.width_mult() ** lr


def initial_weights(
    model: GPT, mup_base: Config, seed: int, growth: Growth = Growth(), parametrization: str = "mup"
) -> Iterator[tuple[str, torch.Tensor]]:
    """muP's initialization, one parameter at a time, in the order of ``named_parameters``; a few are drawn ahead.

    Each parameter has a generator of its own on the CPU, seeded by seed, name and the model's widths: the numbers
    depend neither on the device nor on the depth, and a wider model's are independent of those that its source was
    initialized with under the same seed. (A model grown to its own size would draw those again: give another seed.)

    Args:
        model: A bare MuGPT with base shapes, on any device including meta; only its shapes are read.
        mup_base: Config of the model whose learning rate was tuned.
        seed: Seed of the draw.
        growth: Says how muP's noise is drawn, see :meth:`~litgpt_warmstart.method.growth.Growth.noise`.
        parametrization: A name in :data:`PARAMETRIZATIONS`.

    Yields:
        Name and fp32 tensor on the CPU in the parameter's shape.
    """
    threads = min(DRAWING_THREADS, torch.get_num_threads())
    drawn: deque[tuple[str, Future[torch.Tensor]]] = deque()
    with ThreadPoolExecutor(threads) as pool:  # a draw is serial and leaves Python's lock alone
        for name, parameter in model.named_parameters():
            std = plain_std(model, name, mup_base) / divisors(model, name, parametrization)[0]
            drawn.append((name, pool.submit(_draw, model.config, name, parameter.shape, std, seed, growth)))
            if len(drawn) > threads:
                name, tensor = drawn.popleft()
                yield name, tensor.result()
        while drawn:
            name, tensor = drawn.popleft()
            yield name, tensor.result()


def _draw(c: Config, name: str, shape: torch.Size, std: float, seed: int, growth: Growth) -> torch.Tensor:
    if is_gain(name):
        return torch.ones(shape)
    if std == 0:
        return torch.zeros(shape)
    widths = f"{c.n_embd}:{c.n_head}:{c.n_query_groups}:{c.head_size}:{c.intermediate_size}"
    digest = hashlib.sha256(f"{seed}:{widths}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return growth.noise(shape, std, generator)


@torch.no_grad()
def load_weights(model: GPT, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Copy weights into a model tensor by tensor, in its device and precision.

    Raises:
        UserError: A weight is missing, unknown, or of another shape.
    """
    parameters = dict(model.named_parameters())
    for name, weight in weights:
        parameter = parameters.pop(name, None)
        if parameter is None or parameter.shape != weight.shape:
            expected = "no such parameter" if parameter is None else f"shape {tuple(parameter.shape)}"
            raise UserError(f"weight {name!r} of shape {tuple(weight.shape)} does not fit: the model has {expected}")
        parameter.copy_(weight)
    if parameters:
        raise UserError(f"the weights lack {sorted(parameters)[0]!r} of {model.config.name!r}")


def build_optimizer(
    model: GPT,
    cls: Callable[..., torch.optim.Optimizer],
    arguments: Mapping[str, Any],
    base_lr: float,
    parametrization: str = "mup",
) -> torch.optim.Optimizer:
    """An Adam-like optimizer of a MuGPT's parameters, grouped by learning rate as mup.MuAdam groups them.

    Each group carries ``lr_scale`` beside ``lr``: the schedule writes ``base_lr * lr_scale * lr_multiplier``. What
    weight decay takes off in a step is the same in each.

    Args:
        model: The bare model with base shapes.
        cls: The optimizer's class.
        arguments: Its arguments but for lr.
        base_lr: The learning rate that was tuned.
        parametrization: A name in :data:`PARAMETRIZATIONS`.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        _, divisor = divisors(model, name, parametrization)
        groups.setdefault((infshape_of(parameter).ninf() == 2, divisor), []).append(parameter)
    decay = arguments.get("weight_decay", 0.0)
    described = []
    for is_matrix, divisor in sorted(groups, key=lambda key: not key[0]):  # matrices first
        lr = base_lr / divisor
        described.append(
            dict(params=groups[is_matrix, divisor], lr=lr, lr_scale=lr / base_lr, weight_decay=decay * divisor)
        )
    return cls(described, **arguments, lr=base_lr)


def set_learning_rate(optimizer: torch.optim.Optimizer, base_lr: float, lr_multiplier: float) -> None:
    """Write ``base_lr * lr_scale * lr_multiplier`` into every group."""
    for group in optimizer.param_groups:
        group["lr"] = base_lr * group["lr_scale"] * lr_multiplier
