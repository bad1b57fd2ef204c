r"""What muP changes in a forward pass, folded into plain LitGPT weights, and out of them again.

    part        MuGPT                                         the same logits in LitGPT's GPT
    readout     logits / width_mult                           lm_head.weight / width_mult
    attention   scores / sqrt(attention_scores_scalar)        q rows / sqrt(attention_scores_scalar / head_size),
                                                              since GPT divides scores by sqrt(head_size)
    branches    what attention and MLP add / branch_divisor   attn.proj and mlp.proj / branch_divisor; where a norm
                                                              follows them, its gain and bias

Rotary embedding is linear, so that a factor of the scores may stand before it: in the rows and biases of q in the fused
qkv, or, where q is normalized, in the gain and bias of its norm.
"""

import math
from dataclasses import dataclass, replace

import torch
from litgpt.config import Config

from litgpt_warmstart.method.model import branch_ends
from litgpt_warmstart.method.scales import Sizes

READOUT = "lm_head.weight"


@dataclass(frozen=True)
class Folding:
    """What stands between a model's weights as trained and a plain LitGPT checkpoint's."""

    config: Config
    """The model, with the ``attention_scores_scalar`` that its weights were trained under."""
    width_mult: float = 1.0
    """What its logits are divided by while training."""
    branch_divisor: float = 1.0
    """What attention and MLP add to the residual stream is divided by while training."""

    def part(self, name: str) -> tuple[slice, float]:
        """Which rows of a parameter carry a factor, and what they are divided by; none, and by 1, where it has none."""
        if name == READOUT:
            return slice(None), self.width_mult
        config, sizes = self.config, Sizes.of(self.config)
        divisor = math.sqrt((config.attention_scores_scalar or sizes.head_size) / sizes.head_size)
        if config.norm_qk and ".attn.norm_q." in name:
            return slice(None), divisor
        if not config.norm_qk and name.endswith((".attn.qkv.weight", ".attn.qkv.bias")):
            return slice(sizes.q_rows), divisor  # q, before k and v
        if any(f".{end}." in name for end in branch_ends(config)):
            return slice(None), self.branch_divisor
        return slice(0), 1.0

    def rows_as_trained(self, name: str, weight: torch.Tensor) -> torch.Tensor | None:
        """The rows that :meth:`fold` changes; None where it changes nothing."""
        rows, divisor = self.part(name)
        return None if divisor == 1 else weight[rows]

    def fold(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """A parameter as trained -> as a plain LitGPT checkpoint has it, in fp32."""
        (rows, divisor), weight = self.part(name), weight.float()
        if divisor == 1:
            return weight
        folded = weight.clone()
        folded[rows] /= divisor
        return folded

    def unfold(self, name: str, folded: torch.Tensor, rows_as_trained: torch.Tensor | None = None) -> torch.Tensor:
        """A parameter of a plain LitGPT checkpoint -> as it was trained.

        ``rows_as_trained`` are taken where they are what was folded: multiplying does not bring every bit back.
        """
        (rows, divisor), kept = self.part(name), rows_as_trained
        if divisor == 1:
            return folded
        if kept is not None and torch.equal(kept.to(folded.dtype) / divisor, folded[rows]):
            return kept if len(kept) == len(folded) else torch.cat((kept.to(folded.dtype), folded[len(kept) :]))
        weight = folded.clone()
        weight[rows] *= divisor
        return weight

    def under(self, other: "Folding", name: str, weight: torch.Tensor) -> torch.Tensor:
        """A parameter as trained, for training on under another folding with the same logits."""
        (rows, before), (_, then) = self.part(name), other.part(name)
        if before == then:
            return weight
        moved = weight.clone()
        moved[rows] *= then / before
        return moved


def attention_scores_scalar(config: Config, mup_base: Config, scores: float = 1.0) -> float:
    """What scores are divided by the root of, where they are divided by the power ``scores`` of head_size.

    For muP that is 1 instead of 1/2, equal to LitGPT's at the muP base.
    """
    head_size, base_head_size = Sizes.of(config).head_size, Sizes.of(mup_base).head_size
    return (mup_base.attention_scores_scalar or base_head_size) * (head_size / base_head_size) ** (2 * scores)


def without_attention(folding: Folding) -> Folding:
    """The same with scores as LitGPT's GPT divides them, so that they are not folded."""
    return replace(folding, config=replace(folding.config, attention_scores_scalar=None))
