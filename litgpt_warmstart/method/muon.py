"""Muon for the matrices of the blocks, AdamW for the rest, as one optimizer.

Muon's step is the momentum made orthogonal (K. Jordan et al., 2024; arXiv 2502.16982), so its size does not come from
the gradient's entries, and neither does muP's rule for it, see :func:`lr_divisor`.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

MATCH_ADAMW, ORIGINAL = "match_rms_adamw", "original"


class Muon(torch.optim.Optimizer):
    """torch's Muon for groups that are ``orthogonal``, its AdamW for the others; weight decay is decoupled in both.

    LitGPT's fused qkv is one matrix to it.

    Args:
        params: Groups of parameters; ``orthogonal`` ones hold matrices.
        lr: Of both.
        weight_decay: Of both.
        momentum: Muon's, as are the next three.
        nesterov: Whether it is Nesterov's.
        ns_steps: Newton-Schulz iterations.
        adjust_lr_fn: ``match_rms_adamw`` makes updates about as large as AdamW's, so that a learning rate that was
            tuned with AdamW serves both (arXiv 2502.16982); ``original`` is that of its first authors.
        betas: AdamW's, as are the next two.
        eps: Added to the root of the second moment.
        fused: Whether its step is one kernel.

    Raises:
        ValueError: An argument is out of its range.
    """

    orthogonalizes = True
    """For whoever groups parameters."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = MATCH_ADAMW,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        fused: bool | None = None,
    ) -> None:
        if not 0 <= momentum < 1:  # torch's Muon takes any that is not negative
            raise ValueError(f"momentum {momentum} must lie in [0, 1)")
        if ns_steps not in range(1, 100) or not isinstance(ns_steps, int):  # and asks for less than 100 at its step
            raise ValueError(f"ns_steps {ns_steps} must be a whole number from 1 to 99")
        muon: dict[str, Any] = dict(momentum=momentum, nesterov=nesterov, ns_steps=ns_steps, adjust_lr_fn=adjust_lr_fn)
        makers: dict[bool, Callable[..., torch.optim.Optimizer]] = {
            True: lambda groups: torch.optim.Muon(groups, lr=lr, weight_decay=weight_decay, **muon),
            False: lambda groups: torch.optim.AdamW(
                groups, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps, fused=fused
            ),
        }
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay))
        self._parts = {kind: make(self._groups(kind)) for kind, make in makers.items() if self._groups(kind)}

    def _groups(self, orthogonal: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group.get("orthogonal", False) == orthogonal]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for orthogonal, part in self._parts.items():
            part.param_groups, part.state = self._groups(orthogonal), self.state  # loading a state makes others
            part.step()
        return loss


def lr_divisor(shape: tuple[int, int], base_shape: tuple[int, int], adjust_lr_fn: str) -> float:
    """What Muon's learning rate at the muP base is divided by for a matrix, shapes (outputs, inputs).

    Features move alike at every width where an update's spectral norm goes with sqrt(outputs / inputs): the spectral
    condition, arXiv 2310.17813, eq. (1), from which muP follows for every optimizer. An orthogonal update has the norm
    that ``adjust_lr_fn`` gives it: sqrt(max(1, outputs / inputs)), so nothing changes where both grow alike, or, under
    ``match_rms_adamw``, 0.2 sqrt(max(outputs, inputs)), so the divisor is the root of their growth.
    """

    def excess(outputs: int, inputs: int) -> float:
        norm = max(outputs, inputs) if adjust_lr_fn == MATCH_ADAMW else max(1.0, outputs / inputs)
        return math.sqrt(norm * inputs / outputs)

    return excess(*shape) / excess(*base_shape)
