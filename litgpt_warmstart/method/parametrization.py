"""muP on LitGPT: base shapes, initialization, optimizer groups. The one place that knows muP's table.

Standard parametrization is muP with the model itself as its base: every multiplier is then 1.
"""

import hashlib
import inspect
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import mup
import torch
from litgpt.config import Config
from litgpt.model import GPT
from torch import nn

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.folding import READOUT, Folding, attention_scores_scalar
from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.method.growth.axis_maps import is_gain
from litgpt_warmstart.method.model import MuGPT
from litgpt_warmstart.method.muon import MATCH_ADAMW
from litgpt_warmstart.method.muon import lr_divisor as muon_lr_divisor

DRAWING_THREADS = 4


class Powers(NamedTuple):
    """What a kind of parameter has at the base is divided by these powers of its width_mult."""

    std: float = 0.0
    """Of its initial standard deviation."""
    lr: float = 0.0
    """Of Adam's learning rate."""


@dataclass(frozen=True)
class Depth:
    """What changes in the blocks as a model gets deeper than its muP base: powers of n_layer over the base's."""

    branches: float
    """What attention and MLP add to the residual stream is divided by this one."""
    gradients: float
    """Gradients of the blocks' parameters are, by the former, and with them Adam's eps where it is scaled."""


@dataclass(frozen=True)
class Parametrization:
    """What changes as a model gets wider, and perhaps deeper, than its muP base.

    The width_mult of a parameter is its last growing dimension over the same one at the base.
    """

    label: str
    """What it is called where a user reads of it."""
    matrix: Powers = Powers()
    """Both dimensions grow."""
    embedding: Powers = Powers()
    readout: Powers = Powers()
    """lm_head's weight."""
    vector: Powers = Powers()
    """Gains and biases, which start at 1 and 0."""
    logits: float = 0.0
    """They are divided by this power of n_embd over the base's."""
    gradients: float = 0.0
    """Those of every parameter that grows are smaller by this power of n_embd, and so is Adam's eps where it is scaled:
    they come through the readout, and its multiplier."""
    scores: float = 0.5
    """Of attention: divided by this power of head_size, and equal to LitGPT's at the base."""
    depth: Depth | None = None
    """None carries nothing over depth."""
    scales_eps: bool = False
    """Whether Adam's eps follows the gradients where nothing else is asked for."""
    is_own_base: bool = False
    """Whether nothing is carried over width: the model itself is the base."""


# arXiv 2203.03466, table 8, the variant that the package mup implements.
_MUP = Parametrization("muP", matrix=Powers(std=0.5, lr=1.0), logits=1.0, gradients=1.0, scores=1.0)
PARAMETRIZATIONS = {
    "sp": Parametrization("SP", is_own_base=True),
    "mup": _MUP,
    # arXiv 2505.01618, table 1, at alpha = 1: its learning rates go with m_L^(alpha - 1), and stay.
    "completep": replace(_MUP, label="CompleteP", depth=Depth(branches=1.0, gradients=1.0), scales_eps=True),
}
DEFAULT = "mup"  # carries a learning rate where nothing else is said
DEFAULT_OVER_DEPTH = "completep"
if TYPE_CHECKING:
    ParametrizationName = str
else:
    ParametrizationName = Literal[*PARAMETRIZATIONS]  # for jsonargparse and pydantic: the table says the names once


def width_mult(config: Config, mup_base: Config, parametrization: str = "mup") -> float:
    """What logits are divided by: for muP, n_embd over the muP base's n_embd."""
    return (config.n_embd / mup_base.n_embd) ** PARAMETRIZATIONS[parametrization].logits


def branch_divisor(config: Config, mup_base: Config, parametrization: str = "mup") -> float:
    """What attention and MLP add to the residual stream is divided by: for CompleteP, n_layer over the muP base's."""
    depth = PARAMETRIZATIONS[parametrization].depth
    return (config.n_layer / mup_base.n_layer) ** depth.branches if depth else 1.0


def carry_alike(one: str, other: str, config: Config, mup_base: Config) -> bool:
    """Whether two parametrizations train a model alike, but for Adam's eps: they differ in what depth changes alone."""
    a, b = (replace(PARAMETRIZATIONS[name], label="", depth=None, scales_eps=False) for name in (one, other))
    return a == b and config.n_layer == mup_base.n_layer


def mup_config(config: Config, mup_base: Config, parametrization: str = "mup") -> Config:
    """``config`` with muP's attention scale, 1/head_size instead of 1/sqrt(head_size), equal to it at the muP base.

    LitGPT divides scores by ``sqrt(attention_scores_scalar)``. The value may be a float, which LitGPT's YAML keeps.

    Raises:
        UserError: The muP base differs from the model in more than the parametrization carries a learning rate over.
    """
    table = PARAMETRIZATIONS[parametrization]
    if config.n_layer != mup_base.n_layer and table.depth is None and not table.is_own_base:
        raise UserError(
            f"the muP base {mup_base.name!r} has {mup_base.n_layer} layers and {config.name!r} {config.n_layer}:"
            f" {table.label} carries a learning rate over width only; pass --parametrization {DEFAULT_OVER_DEPTH}"
        )
    scalar = attention_scores_scalar(config, mup_base, table.scores)
    if scalar == config.head_size:  # LitGPT's own default
        return replace(config, attention_scores_scalar=None)
    # LitGPT declares an int, and its code takes any number.
    return replace(config, attention_scores_scalar=int(scalar) if scalar == int(scalar) else scalar)


def folding(config: Config, mup_base: Config, parametrization: str = "mup") -> Folding:
    """What a model's forward pass does beside LitGPT's under a muP base."""
    divisors = (divisor(config, mup_base, parametrization) for divisor in (width_mult, branch_divisor))
    return Folding(mup_config(config, mup_base, parametrization), *divisors)


def set_base_shapes(model: MuGPT, mup_base: Config) -> None:
    """Give every parameter of a bare MuGPT its ``infshape``, and the model its ``depth_mult``; weights are left alone.

    Apply it again after anything that replaces parameters (deepcopy, ``load_state_dict(assign=True)``).
    """
    model.depth_mult = model.config.n_layer / mup_base.n_layer
    mup_base = replace(mup_base, n_layer=model.config.n_layer)  # all blocks have the same shapes
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


def plain_std(model: MuGPT, name: str, mup_base: Config) -> float:
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


class Divisors(NamedTuple):
    """What a parameter has at the muP base is divided by these."""

    std: float
    """Of its initialization."""
    lr: float
    """Adam's."""
    gradient: float
    """How much smaller its gradients are, see :attr:`Parametrization.gradients`."""


def divisors(model: MuGPT, name: str, parametrization: str = "mup") -> Divisors:
    """What changes of a parameter from the muP base to the model; base shapes must be set."""
    infshape, table = infshape_of(model.get_parameter(name)), PARAMETRIZATIONS[parametrization]
    others = {READOUT: table.readout, "transformer.wte.weight": table.embedding}
    powers = table.matrix if infshape.ninf() == 2 else others.get(name, table.vector)
    width = infshape.width_mult()
    n_embd_mult = infshape_of(model.get_parameter("transformer.wte.weight")).width_mult()
    gradient = n_embd_mult**table.gradients
    if not infshape.ninf():  # lm_head's bias comes after the multiplier
        gradient = 1.0
    elif ".attn.norm_" in name:  # of a gain that all heads share each of them adds a share
        gradient = width**table.gradients
    if table.depth and name.startswith("transformer.h."):
        gradient *= model.depth_mult**table.depth.gradients
    return Divisors(width**powers.std, width**powers.lr, gradient)


def initial_weights(
    model: MuGPT,
    mup_base: Config,
    seed: int,
    growth: Growth = Growth(),
    parametrization: str = "mup",
    ahead: int = DRAWING_THREADS,
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
        ahead: How many are drawn ahead at most; with 0, and the one before let go of, no two stand in memory.

    Yields:
        Name and fp32 tensor on the CPU in the parameter's shape.
    """
    threads = min(ahead, torch.get_num_threads())
    drawn: deque[tuple[str, Future[torch.Tensor]]] = deque()
    with ThreadPoolExecutor(max(1, threads)) as pool:  # a draw is serial and leaves Python's lock alone
        for name, parameter in model.named_parameters():
            std = plain_std(model, name, mup_base) / divisors(model, name, parametrization).std
            drawn.append((name, pool.submit(_draw, model.config, name, parameter.shape, std, seed, growth)))
            if len(drawn) > threads:
                name, tensor = drawn.popleft()
                yield name, tensor.result()
                del tensor
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
        del weight  # before the next one is made
    if parameters:
        raise UserError(f"the weights lack {sorted(parameters)[0]!r} of {model.config.name!r}")


def build_optimizer(
    model: MuGPT,
    cls: Callable[..., torch.optim.Optimizer],
    arguments: Mapping[str, Any],
    base_lr: float,
    parametrization: str = "mup",
    scale_eps: bool | None = None,
) -> torch.optim.Optimizer:
    """An Adam-like optimizer, or Muon, of a MuGPT's parameters, grouped by learning rate as mup.MuAdam groups them.

    Each group carries ``lr_scale`` beside ``lr``: the schedule writes ``base_lr * lr_scale * lr_multiplier``. What
    weight decay takes off in a step is the same in each.

    Args:
        model: The bare model with base shapes.
        cls: The optimizer's class.
        arguments: Its arguments but for lr.
        base_lr: The learning rate that was tuned.
        parametrization: A name in :data:`PARAMETRIZATIONS`.
        scale_eps: Whether eps follows the gradients, so that it is as small beside them as at the muP base (mupscaling,
            arXiv 2602.10545; CompleteP, 2505.01618, table 1). None for the parametrization's own way.
    """
    if scale_eps is None:
        scale_eps = PARAMETRIZATIONS[parametrization].scales_eps
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    orthogonalizes = getattr(cls, "orthogonalizes", False)
    adjust_lr_fn = arguments.get("adjust_lr_fn", MATCH_ADAMW)
    for name, parameter in model.named_parameters():
        found, infshape = divisors(model, name, parametrization), infshape_of(parameter)
        is_matrix = infshape.ninf() == 2
        lr_divisor, eps_divisor = found.lr, found.gradient if scale_eps else 1.0
        if is_matrix and orthogonalizes:
            outputs, inputs = infshape
            now, base = (outputs.dim, inputs.dim), (outputs.base_dim, inputs.base_dim)
            lr_divisor, eps_divisor = muon_lr_divisor(now, base, adjust_lr_fn), 1.0
        groups.setdefault((is_matrix, lr_divisor, eps_divisor), []).append(parameter)
    decay = arguments.get("weight_decay", 0.0)
    described = []
    for key in sorted(groups, key=lambda key: not key[0]):  # matrices first
        is_matrix, lr_divisor, eps_divisor = key
        lr = base_lr / lr_divisor
        group = dict(params=groups[key], lr=lr, lr_scale=lr / base_lr, weight_decay=decay * lr_divisor)
        if eps_divisor != 1:
            usual = inspect.signature(cls).parameters["eps"].default
            group["eps"] = arguments.get("eps", usual) / eps_divisor
        if is_matrix and orthogonalizes:
            group["orthogonal"] = True
        described.append(group)
    return cls(described, **arguments, lr=base_lr)


def set_learning_rate(optimizer: torch.optim.Optimizer, base_lr: float, lr_multiplier: float) -> None:
    """Write ``base_lr * lr_scale * lr_multiplier`` into every group."""
    for group in optimizer.param_groups:
        group["lr"] = base_lr * group["lr_scale"] * lr_multiplier
