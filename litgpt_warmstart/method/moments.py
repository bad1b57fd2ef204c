"""An optimizer's moments, carried from a model to one that was grown from it (arXiv 2602.10545).

Under muP a gradient's entries get smaller as a model gets wider, all by the same ratio r, since all come through the
readout's 1/width_mult, and under CompleteP those of blocks by the ratio of depths, too: the powers that stand in
:attr:`~litgpt_warmstart.method.parametrization.Parametrization.gradients`. A mean of gradients is therefore divided by
r, a mean of their squares by r^2, and each update stays what it was at the source, if eps is divided by r as well. What
holds no entry of the source begins at 0, and the step count, which only corrects a bias that has long gone, is kept.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.folding import Folding
from litgpt_warmstart.method.growth import OPERATORS, Growth
from litgpt_warmstart.method.growth.axis_maps import kind_of, shape_of, split
from litgpt_warmstart.method.growth.operators import Placement
from litgpt_warmstart.method.model import MuGPT, branch_ends
from litgpt_warmstart.method.parametrization import PARAMETRIZATIONS, divisors

POWERS = {
    "exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2, "exp_inf": 1,  # Adam and its kind
    "sum": 2, "square_avg": 2, "grad_avg": 1,  # Adagrad, RMSprop
    "momentum_buffer": 1,  # Muon
}  # fmt: skip
"""Of the gradient, by torch's names of an optimizer's state."""


def carry(
    states: Mapping[str, Mapping[str, Any]],
    source_model: MuGPT,
    target_model: MuGPT,
    growth: Growth,
    parametrization: str,
    seed: int = 0,
    foldings: tuple[Folding, Folding] | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The states of a grown model's parameters, one at a time, placed as the growth has placed the weights.

    Args:
        states: Those of the source's parameters by name: tensors in the parameter's shape, and single numbers.
        source_model: The source, on any device; its shapes are read, and base shapes, which are the target's.
        target_model: The target, likewise.
        growth: How it was grown.
        parametrization: What both are trained under.
        seed: Of what the operator draws.
        foldings: What the source was trained under, and is trained under now, with the same logits, as under another
            muP base. Default: no difference.

    Raises:
        UserError: A state is unknown, or missing.
    """
    operator, source, target = OPERATORS[growth.operator], source_model.config, target_model.config
    growth = replace(growth, alignment=growth.aligned(source, target)[0])
    for name, _ in target_model.named_parameters():
        position, origin = split(name)[0], operator.source_name(name, source, target)
        if origin not in states:
            raise UserError(f"--moments carried: the base's optimizer has no state of {origin}: pass --moments fresh")
        state = states[origin]
        adds_nothing = f"transformer.h.{position}.attn.proj.weight"  # nor have its parameters any gradient yet
        is_blank = position is not None and operator.is_blank(adds_nothing, source, target)
        nothing = growth.shrink_of(kind_of(name)) == 0 or is_blank
        then, now = (divisors(*of, parametrization).gradient for of in ((source_model, origin), (target_model, name)))
        ratio = now / then
        if position is not None and operator.plain and not any(f".{end}." in name for end in branch_ends(target)):
            # what the branch adds is kept by its last weights, so that less of it comes from them alone
            depth = PARAMETRIZATIONS[parametrization].depth
            ratio /= (target_model.depth_mult / source_model.depth_mult) ** depth.gradients if depth else 1.0
        # where entries come from: what copies of a weight are divided by is no matter of its gradient
        placement = Placement(operator.placement(name, source, target, growth.alignment, seed).origins)
        grown: dict[str, Any] = {}
        for what, moment in state.items():
            if not isinstance(moment, torch.Tensor) or moment.dim() == 0:
                grown[what] = deepcopy(moment)  # the step count, or a product over steps; each parameter has its own
                continue
            # RMSprop's is of what was divided by the root of square_avg
            power = 0 if what == "momentum_buffer" and "square_avg" in state else POWERS.get(what)
            if power is None:
                raise UserError(f"--moments carried: {what} of the base's optimizer is not known: pass --moments fresh")
            grown[what], moment = torch.zeros(shape_of(name, target)), moment.float()
            if foldings:
                for _ in range(power):  # a gradient changes as its weight does, inversely
                    moment = foldings[1].under(foldings[0], origin, moment)
            if not nothing:
                grown[what][placement.held] = placement.taken(moment) / ratio**power
        yield name, grown
