"""muP on LitGPT: base shapes, initialization, optimizer groups. The one place that knows muP's table.

Per parameter, with width_mult = its last growing dimension over the same dimension at the muP base
(arXiv 2203.03466, table 8, the variant that mup implements):

    | parameter                          | initial std            | Adam's learning rate  | forward        |
    |------------------------------------|------------------------|-----------------------|----------------|
    | matrix, both dimensions grow       | base / sqrt(width_mult)| base_lr / width_mult  | 1              |
    | embedding                          | base                   | base_lr               | 1              |
    | readout (lm_head)                  | base                   | base_lr               | 1 / width_mult |
    | gain, bias                         | 1, 0                   | base_lr               | 1              |
    | attention scores                   |                        |                       | 1 / head_size  |

Standard parametrization is the same with the target itself as muP base: every multiplier is then 1.
"""

import hashlib
import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import mup
import torch
from litgpt.config import Config
from litgpt.model import GPT
from torch import nn

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.folding import Folding, attention_scores_scalar
from litgpt_warmstart.method.growth import is_gain
from litgpt_warmstart.method.model import MuGPT
from litgpt_warmstart.run.optimizer import ChosenOptimizer

DRAWING_THREADS = 4


def width_mult(config: Config, mup_base: Config) -> float:
    """n_embd over the muP base's n_embd."""
    return config.n_embd / mup_base.n_embd


def mup_config(config: Config, mup_base: Config) -> Config:
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
    scalar = attention_scores_scalar(config, mup_base)
    if scalar == config.head_size:  # LitGPT's own default
        return replace(config, attention_scores_scalar=None)
    return replace(config, attention_scores_scalar=int(scalar) if scalar == int(scalar) else scalar)


def folding(config: Config, mup_base: Config) -> Folding:
    """What a model's forward pass does beside LitGPT's under a muP base.

    Args:
        config: The model.
        mup_base: Config of the model whose learning rate was tuned.
    """
    return Folding(mup_config(config, mup_base), width_mult(config, mup_base))


def set_base_shapes(model: GPT, mup_base: Config) -> None:
    """Give every parameter of a bare MuGPT its ``infshape``; weights are left alone.

    Apply it again after anything that replaces parameters (deepcopy, ``load_state_dict(assign=True)``).

    Args:
        model: The bare model, not compiled or wrapped.
        mup_base: Config of the model whose learning rate was tuned.
    """
    # Any model that differs from the base in each width dimension tells mup which dimensions grow.
    delta = replace(
        mup_base,
        n_embd=2 * mup_base.n_embd,
        n_head=2 * mup_base.n_head,
        n_query_groups=2 * mup_base.n_query_groups,
        head_size=2 * mup_base.head_size,
        intermediate_size=2 * mup_base.intermediate_size,
    )
    with torch.device("meta"):
        base_shapes = mup.make_base_shapes(MuGPT(mup_base), MuGPT(delta))
    try:
        mup.set_base_shapes(model, base_shapes, rescale_params=False)
    except AssertionError as error:
        raise UserError(f"the muP base {mup_base.name!r} has other parameters than {model.config.name!r}") from error


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
    if any(module is proj for block in model.transformer.h for proj in (block.attn.proj, block.mlp.proj)):
        return 1 / math.sqrt(mup_base.n_embd) / mup_base.n_layer
    return math.sqrt(2 / (5 * mup_base.n_embd))


def mup_std(model: GPT, name: str, mup_base: Config) -> float:
    """sigma_muP of a parameter; its ``infshape`` must be set."""
    infshape = model.get_parameter(name).infshape
    std = plain_std(model, name, mup_base)
    return std / math.sqrt(infshape.width_mult()) if infshape.ninf() == 2 else std


def initial_weights(
    model: GPT, mup_base: Config, seed: int, perturb: float = 1.0
) -> Iterator[tuple[str, torch.Tensor]]:
    """muP's initialization, one parameter at a time, in the order of ``named_parameters``; a few are drawn ahead.

    Each parameter has a generator of its own on the CPU, seeded by seed, name and the model's widths: the numbers
    depend neither on the device nor on the depth, and a wider model's are independent of those that its source was
    initialized with under the same seed. (A model grown to its own size would draw those again: give another seed.)

    Args:
        model: A bare MuGPT with base shapes, on any device including meta; only its shapes are read.
        mup_base: Config of the model whose learning rate was tuned.
        seed: Seed of the draw.
        perturb: Multiplier of every standard deviation.

    Yields:
        Name and fp32 tensor on the CPU in the parameter's shape.
    """
    threads = min(DRAWING_THREADS, torch.get_num_threads())
    drawn: deque[tuple[str, Future[torch.Tensor]]] = deque()
    with ThreadPoolExecutor(threads) as pool:  # a draw is serial and leaves Python's lock alone
        for name, parameter in model.named_parameters():
            std = perturb * mup_std(model, name, mup_base)
            drawn.append((name, pool.submit(_draw, model.config, name, parameter.shape, std, seed)))
            if len(drawn) > threads:
                name, tensor = drawn.popleft()
                yield name, tensor.result()
        while drawn:
            name, tensor = drawn.popleft()
            yield name, tensor.result()


def _draw(c: Config, name: str, shape: torch.Size, std: float, seed: int) -> torch.Tensor:
    if is_gain(name):
        return torch.ones(shape)
    if std == 0:
        return torch.zeros(shape)
    widths = f"{c.n_embd}:{c.n_head}:{c.n_query_groups}:{c.head_size}:{c.intermediate_size}"
    digest = hashlib.sha256(f"{seed}:{widths}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.empty(shape).normal_(0.0, std, generator=generator)


@torch.no_grad()
def load_weights(model: GPT, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
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
    model: GPT, optimizer: ChosenOptimizer, base_lr: float, fused: bool = True
) -> torch.optim.Optimizer:
    """mup's grouping of a MuGPT's parameters under an Adam-like optimizer.

    Each group carries ``lr_scale`` beside ``lr``: the schedule writes ``base_lr * lr_scale * lr_multiplier``.

    Args:
        model: The bare model with base shapes.
        optimizer: The class and its arguments.
        base_lr: The learning rate that was tuned.
        fused: Use the fused implementation where the optimizer has one and its arguments say nothing of it.
    """
    arguments = {name: tuple(v) if isinstance(v, list) else v for name, v in optimizer.arguments(fused).items()}
    built = mup.MuAdam(model.parameters(), impl=optimizer.cls, **arguments, lr=base_lr)
    for group in built.param_groups:
        group["lr_scale"] = group["lr"] / base_lr
    return built


def set_learning_rate(optimizer: torch.optim.Optimizer, base_lr: float, lr_multiplier: float) -> None:
    """Write ``base_lr * lr_scale * lr_multiplier`` into every group."""
    for group in optimizer.param_groups:
        group["lr"] = base_lr * group["lr_scale"] * lr_multiplier
