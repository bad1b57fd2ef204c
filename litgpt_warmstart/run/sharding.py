"""How Fabric shares a model among devices, and the parts that FSDP makes of it.

FSDP is torch's second, by Fabric's ModelParallelStrategy, not by its FSDPStrategy: it shards parameter by parameter and
keeps each one's name, so that muP's groups, growing and saving go tensor by tensor as on one device; it puts no module
around a block, so that torch.compile makes a graph of each, and of head and loss; and it runs on CPUs.
"""

import logging
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
from lightning.fabric.strategies.strategy import Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from litgpt_warmstart.method.loss import NextTokenLoss
from litgpt_warmstart.run.spec import RunSpec


def make_fabric(
    spec: RunSpec, strategy: str = "ddp", environment: ClusterEnvironment | None = None, loggers: Any = None
) -> L.Fabric:
    """Fabric for a run, in one process or, with the ``environment`` that has started them, in several."""
    shared: Strategy | str = "auto"
    for name in ("fabric.utilities.distributed", "pytorch.utilities.rank_zero"):  # six lines of processes that meet
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # torch 2.13: its successor is new
    if environment and strategy == "ddp":
        shared = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    elif environment:
        shared = ModelParallelStrategy(_shard, data_parallel_size=spec.num_devices, tensor_parallel_size=1)
    return L.Fabric(
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        devices=spec.devices if environment else 1,
        num_nodes=spec.args.num_nodes if environment else 1,
        strategy=shared,
        precision=spec.precision,
        loggers=loggers,
        plugins=[environment] if environment else None,
    )


def _shard(loss: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Leave each device its rows of every parameter, in memory of its own that is not yet written.

    A block is gathered while it computes; embedding, last norm and head with the whole, from the forward pass on until
    the backward pass ends: where :class:`NextTokenLoss` reads the head's weight, it is all there.
    """
    assert isinstance(loss, NextTokenLoss)
    mesh = mesh["data_parallel"]
    for block in loss.gpt.transformer["h"].children():
        fully_shard(block, mesh=mesh)
    fully_shard(loss, mesh=mesh)
    device = torch.device("cuda", torch.cuda.current_device()) if mesh.device_type == "cuda" else torch.device("cpu")
    loss.to_empty(device=device)
    loss.gpt.cos, loss.gpt.sin = loss.gpt.rope_cache(device)
    return loss


def parts(model: nn.Module, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Whole weights by name -> what a model's parameters take of them: where they are sharded, their own rows."""
    parameters = dict(model.named_parameters())
    for name, weight in weights:
        yield name, part(parameters.get(name), weight)
        del weight  # before the next one is made: there may be no room for two


def part(parameter: torch.Tensor | None, whole: torch.Tensor) -> torch.Tensor:
    """The rows of a whole tensor that a sharded parameter has of its own here; nothing is copied or sent."""
    if not isinstance(parameter, DTensor) or parameter.shape != whole.shape:
        return whole
    mesh, rows = parameter.device_mesh, len(parameter.to_local())
    first = mesh.get_local_rank() * -(-len(whole) // mesh.size())
    own = whole[first : first + rows]
    return DTensor.from_local(
        own, mesh, parameter.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def gathered(tensor: Any) -> Any:
    """All of a tensor, on every device; those that have a part of it must ask together. Other values are themselves."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether what a device has of a tensor is finite."""
    return bool(torch.isfinite(tensor.to_local() if isinstance(tensor, DTensor) else tensor).all())


def gathered_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state dict as on one device."""
    state = optimizer.state_dict()
    moments = {number: {name: gathered(v) for name, v in of.items()} for number, of in state["state"].items()}
    return {**state, "state": moments}


def load_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Put an optimizer's state dict back, where parameters are sharded their own rows of it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        number: {name: part(parameters[number], v) if isinstance(v, torch.Tensor) else v for name, v in of.items()}
        for number, of in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": moments})
