"""The builder: configs, growth and seed make a MuGPT with its weights; a run's model, loss and optimizer.

Training, growing a folder, the coordinate check, the Python API and the tests have their models from here.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import lightning as L
import torch
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
from litgpt.config import Config
from torch import nn
from torch.nn.utils import get_total_norm

from litgpt_warmstart.edge import LARGEST_SEED
from litgpt_warmstart.method import parametrization as mup
from litgpt_warmstart.method.growth import Grown, Growth, grow
from litgpt_warmstart.method.loss import NextTokenLoss
from litgpt_warmstart.method.model import MuGPT
from litgpt_warmstart.method.scales import Sizes
from litgpt_warmstart.run.checkpoint import Checkpoint
from litgpt_warmstart.run.moments import load_moments
from litgpt_warmstart.run.record import Ancestor
from litgpt_warmstart.run.resume import State
from litgpt_warmstart.run.sharding import parts
from litgpt_warmstart.run.spec import CUDA_GRAPHS, CompileMode, RunSpec


def bare_model(config: Config, mup_base: Config, parametrization: str = "mup") -> MuGPT:
    """A MuGPT with base shapes on the current device, in the current precision; its weights are yet to come.

    ``config`` is with or without muP's attention scale; ``mup_base`` is the model whose learning rate was tuned.
    """
    changed = mup.folding(config, mup_base, parametrization)
    model = MuGPT(changed.config, changed.width_mult, changed.branch_divisor)
    mup.set_base_shapes(model, mup_base)
    return model


def first_weights(
    model: MuGPT,
    mup_base: Config,
    seed: int,
    growth: Growth | None = None,
    source: Checkpoint | None = None,
    parametrization: str = "mup",
    ahead: int = mup.DRAWING_THREADS,
) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights that training starts from, tensor by tensor, fp32 on the CPU, with their names.

    Args:
        model: Made by :func:`bare_model`; only its shapes are read.
        mup_base: Config of the model whose learning rate was tuned.
        seed: Of the initialization, or the perturbation.
        growth: How the source becomes the model; None for an initialization.
        source: The checkpoint to grow from.
        parametrization: A name in :data:`~litgpt_warmstart.method.parametrization.PARAMETRIZATIONS`.
        ahead: How many tensors are drawn ahead at most.
    """
    drawn_by = seed
    if growth and growth.shrink != 0 and source and is_deepened_alone(source.config, model.config):
        drawn_by += model.config.n_layer * (LARGEST_SEED + 1)  # its blocks' names and widths are the source's own
    initial = mup.initial_weights(model, mup_base, drawn_by, growth or Growth(), parametrization, ahead)
    if growth is None or source is None:
        return initial
    foldings = (
        mup.folding(source.config, mup_base, parametrization),
        mup.folding(model.config, mup_base, parametrization),
    )
    return grow(source.weights_under(foldings[0]), initial, source.config, model.config, growth, foldings, seed)


def is_deepened_alone(source: Config, target: Config) -> bool:
    """Whether a model has its source's widths, and more blocks."""
    return source.n_layer < target.n_layer and Sizes.of(source) == Sizes.of(target)


def build_model(
    config: Config,
    mup_base: Config,
    seed: int,
    growth: Growth | None = None,
    source: Checkpoint | None = None,
    parametrization: str = "mup",
) -> MuGPT:
    """A model as training starts with it; see :func:`bare_model` and :func:`first_weights`."""
    model = bare_model(config, mup_base, parametrization)
    mup.load_weights(model, first_weights(model, mup_base, seed, growth, source, parametrization))
    return model


def bare_loss(fabric: L.Fabric, spec: RunSpec, empty_init: bool = False) -> NextTokenLoss:
    """A run's model and its loss, before Fabric sets them up; the weights, perhaps not even drawn, are yet to come."""
    with fabric.init_module(empty_init=empty_init):
        gpt = bare_model(spec.config, spec.mup_base_config, spec.parametrization)
    gpt.max_seq_length = spec.block_size
    return NextTokenLoss(gpt, spec.loss)


def build_state(fabric: L.Fabric, spec: RunSpec, start: Checkpoint | None, resumed: Checkpoint | None = None) -> State:
    """A run's model, loss and optimizer, set up by Fabric, before the first or the next step.

    It starts from ``start``, grown where the specification says how, else as it is, or goes on from ``resumed``; from
    scratch there is neither.
    """
    eager = bare_loss(fabric, spec, empty_init=True)
    gpt = eager.gpt
    is_sharded = isinstance(fabric.strategy, ModelParallelStrategy)
    weights, lineage, grown = _origin(gpt, spec, start, resumed, 0 if is_sharded else mup.DRAWING_THREADS)
    if not is_sharded:
        mup.load_weights(gpt, weights)
    if spec.compile:
        fabric.print("Compiling at the first step, which takes a while; --compile false for short runs")
    loss = fabric.setup(compiled(eager, spec.compile) if spec.compile else eager)
    if is_sharded:  # each device has room for its own part alone
        mup.set_base_shapes(gpt, spec.mup_base_config)
        mup.load_weights(gpt, parts(gpt, weights))
    # A fused step unscales gradients itself, too late for clipping.
    arguments = spec.optimizer.arguments(fused=spec.precision != "16-mixed")
    how = spec.base_lr, spec.parametrization, spec.scale_eps
    bare: Any = mup.build_optimizer(gpt, spec.optimizer.cls, arguments, *how)
    if start and spec.growth and spec.growth.carries_moments and not resumed:
        with torch.device("meta"):
            source = bare_model(start.config, spec.mup_base_config, spec.parametrization)
        load_moments(bare, gpt, spec, start, source)
    optimizer: Any = fabric.setup_optimizers(bare)
    return State(gpt, loss, optimizer, lineage, grown, is_sharded)


def update_weights(fabric: L.Fabric, spec: RunSpec, state: State) -> None:
    """Clip the gradients, whose norm stays on the device, take an optimizer step, and drop them."""
    if (max_norm := spec.args.train.max_norm) is not None:
        # No error for a norm that is not finite: 16-mixed skips such a step, and asking would stall the device.
        state.grad_norm = fabric.clip_gradients(state.gpt, state.optimizer, max_norm=max_norm, error_if_nonfinite=False)
    elif spec.precision != "16-mixed":  # whose gradients are scaled
        state.grad_norm = get_total_norm([p.grad for p in state.gpt.parameters() if p.grad is not None])
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=not uses_cuda_graphs(spec.compile, fabric.device))


def _origin(
    gpt: MuGPT, spec: RunSpec, start: Checkpoint | None, resumed: Checkpoint | None, ahead: int
) -> tuple[Iterable[tuple[str, torch.Tensor]], tuple[Ancestor, ...], Grown | None]:
    """The weights to train, the checkpoints that they come from, and how a run's first ones were grown."""
    if resumed and resumed.record:
        return resumed.weights.items(), resumed.record.lineage, resumed.record.growth
    if start and not spec.growth:
        under = mup.folding(start.config, spec.mup_base_config, spec.parametrization)
        grown = start.record.growth if start.record and not start.record.tokens else None  # and not trained since
        return start.weights_under(under).items(), start.ancestors(), grown
    weights = first_weights(gpt, spec.mup_base_config, spec.seed, spec.growth, start, spec.parametrization, ahead)
    if start is None or spec.growth is None:
        return weights, (), None
    return weights, start.ancestors(), spec.growth.done(start.config, spec.config, start.path, spec.seed)


def compiled(loss: NextTokenLoss, compile: bool | CompileMode) -> nn.Module:
    """The loss under torch.compile, in the mode asked for."""
    torch.compiler.reset()  # it compiles a code object for a few models only, then goes on eagerly
    mode = compile if isinstance(compile, str) else None
    if uses_cuda_graphs(compile, loss.gpt.lm_head.weight.device):
        for parameter in loss.parameters():  # accumulated in place: a graph's own output is overwritten by its next run
            parameter.grad = torch.zeros_like(parameter)
    return loss.compiled(mode)


def uses_cuda_graphs(compile: bool | CompileMode, device: torch.device) -> bool:
    """Whether a step is replayed from CUDA graphs; gradients must then keep their place, zeroed rather than dropped."""
    return device.type == "cuda" and compile in CUDA_GRAPHS
