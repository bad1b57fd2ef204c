"""``--moments carried``: the optimizer's state that lies beside a base's final weights, for the model grown from it."""

from pathlib import Path
from typing import Any

import torch

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method import parametrization as mup
from litgpt_warmstart.method.model import MuGPT
from litgpt_warmstart.method.moments import carry
from litgpt_warmstart.run.checkpoint import STATE, Header, load_tensors
from litgpt_warmstart.run.optimizer import ChosenOptimizer, recorded_optimizer
from litgpt_warmstart.run.spec import RunSpec

REMEDY = "pass --moments fresh"


def check_moments(base: Header, optimizer: ChosenOptimizer) -> ChosenOptimizer:
    """The optimizer that a base was trained with, whose moments another one can go on with.

    Raises:
        UserError: The base has no training state, or that of another optimizer.
    """
    record, path = base.record, base.path / STATE
    if record is None or not record.training or not path.is_file():
        raise UserError(f"--moments carried: base {str(base.path)!r} has no training state ({STATE}): {REMEDY}")
    before = recorded_optimizer(record.training["optimizer"])
    check_same_moments(base.path, before, optimizer)
    return before


def check_same_moments(base: Path, before: ChosenOptimizer, optimizer: ChosenOptimizer) -> None:
    """Raise a UserError where a base's optimizer, perhaps of a run to come, keeps other moments than another one."""
    if _states(before) != _states(optimizer):
        raise UserError(
            f"--moments carried: base {str(base)!r} was trained with {before}, this run has {optimizer}: pass its"
            f" --optimizer, or {REMEDY.removeprefix('pass ')}"
        )


def _states(optimizer: ChosenOptimizer) -> tuple[Any, ...]:
    """What decides which moments an optimizer keeps."""
    return optimizer.class_path, *(bool(optimizer.init_args.get(name)) for name in ("amsgrad", "centered", "momentum"))


def load_moments(optimizer: torch.optim.Optimizer, gpt: MuGPT, spec: RunSpec, base: Header, source: MuGPT) -> None:
    """Give a grown model's optimizer, fresh and not yet set up, the moments of its base.

    Args:
        optimizer: As :func:`~litgpt_warmstart.method.parametrization.build_optimizer` makes it for ``gpt``.
        gpt: The bare model, with base shapes.
        spec: The run.
        base: The checkpoint that was grown, which has a training state.
        source: A bare model of the base's, on any device, with base shapes under the run's muP base.

    Raises:
        UserError: See :func:`check_moments`; or the state is damaged.
    """
    before, growth = check_moments(base, spec.optimizer), spec.growth
    saved = load_tensors(base.path / STATE).get("optimizer")
    if before is None or growth is None or not isinstance(saved, dict) or not saved.get("state"):
        raise UserError(f"--moments carried: {str(base.path / STATE)!r} has no optimizer's state: {REMEDY}")
    names = parameter_order(source, spec, base, before)
    try:
        states = {names[number]: state for number, state in saved["state"].items()}
    except (IndexError, TypeError) as error:
        raise UserError(f"{str(base.path / STATE)!r} is damaged: it has the state of another model") from error

    named = {parameter: name for name, parameter in gpt.named_parameters()}
    order = [named[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    foldings = base.trained_under, mup.folding(base.config, spec.mup_base_config, spec.parametrization)
    carried = dict(carry(states, source, gpt, growth, spec.parametrization, spec.seed, foldings))
    content = optimizer.state_dict()
    content["state"] = {number: carried[name] for number, name in enumerate(order)}
    optimizer.load_state_dict(content)


def parameter_order(model: MuGPT, spec: RunSpec, base: Header, optimizer: ChosenOptimizer) -> list[str]:
    """The names of a base's parameters in the order in which its optimizer counted them.

    ``model`` has the base's shapes, and gets those of the muP base that the base was trained under, for the moment.
    """
    record = base.record
    if record is None:
        raise ValueError("a foreign checkpoint has no optimizer of ours")
    mup.set_base_shapes(model, base.mup_base_config)
    scale_eps = record.training.get("scale_eps", False)
    arguments = optimizer.arguments(fused=False)
    built = mup.build_optimizer(model, optimizer.cls, arguments, 1.0, record.parametrization, scale_eps)
    named = {parameter: name for name, parameter in model.named_parameters()}
    mup.set_base_shapes(model, spec.mup_base_config)
    return [named[parameter] for group in built.param_groups for parameter in group["params"]]
