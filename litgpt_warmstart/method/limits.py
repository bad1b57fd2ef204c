"""What growth can save at most, by what of the base it carries.

With N parameters, D tokens and C FLOPs of base (b) and target (t), a target that begins with what the base has learnt

    carries     is spared so many of its D_t tokens          and with the base counted saves, of C_t
    the tokens  D_b                                          D_b / D_t - C_b / C_t
    the loss    D_0, after which it is where the base is:    D_0 / D_t - C_b / C_t
                L(N_t, D_0) = L(N_b, D_b)

L is the fit of Hoffmann et al., :data:`litgpt_warmstart.method.laws.HOFFMANN`. With delta = D_b / D_t, and compute as
N times D, the first is delta (1 - 1/g) at a growth by g; the second comes to at most about 6% for a target of 1e9
parameters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from litgpt_warmstart.method.laws import HOFFMANN


@dataclass(frozen=True)
class Limits:
    """Shares of the target's own training, alone from scratch, that growth can save; below 0 it costs more."""

    loss: float
    """If it carries the loss; the base's own training is not counted."""
    loss_with_base: float
    tokens: float
    """If it carries the tokens."""
    tokens_with_base: float

    @property
    def speed_ups(self) -> dict[str, float]:
        """The shares as speed-ups, by the same names."""
        return {name: speed_up(share) for name, share in vars(self).items()}

    @property
    def words(self) -> str:
        """What can be saved, in a sentence."""
        told = {name: f"{share:.0%} ({speed_up(share):.2f}x)" for name, share in vars(self).items()}
        return (
            f"{told['loss']} if it carries the base's loss, {told['loss_with_base']} with the base counted;"
            f" {told['tokens']} if it carries what the base's tokens taught, {told['tokens_with_base']} with the base"
            " counted"
        )


def speed_up(share: float) -> float:
    """How many times faster training is of which a share is saved."""
    return math.inf if share >= 1 else 1 / (1 - share)


def tokens_spared(base_parameters: float, base_tokens: float, target_parameters: float) -> float:
    """Tokens after which a larger model, from scratch, is at the loss that the base has reached: D_0 above."""
    return HOFFMANN.tokens(target_parameters, HOFFMANN.loss(base_parameters, base_tokens))


def limits(parameters: Sequence[float], tokens: Sequence[float], flops: Sequence[float]) -> Limits:
    """The limits of a growth, given those of base and target: parameters, tokens and FLOPs of their training.

    The target's tokens and FLOPs are those of its whole budget. Of what is NaN, as not known, the limits are NaN.
    """
    spared = tokens_spared(parameters[0], tokens[0], parameters[1]) if tokens[0] else 0.0
    loss, carried = (min(each / tokens[1], 1.0) for each in (spared, tokens[0]))  # NaN where it stands first
    base = flops[0] / flops[1]
    return Limits(loss, loss - base, carried, carried - base)
