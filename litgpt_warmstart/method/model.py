"""MuGPT: LitGPT's GPT with mup's readout, and branches that are divided. The forward pass is inherited."""

from functools import partial
from typing import Any

import torch
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.utils import num_parameters
from mup import MuReadout
from torch import nn

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.scales import Sizes


class Readout(MuReadout):
    """mup's readout that keeps its multiplier as a plain number.

    :class:`mup.MuReadout` reads ``weight.infshape`` at every call, which deepcopy, ``load_state_dict(assign=True)`` and
    FSDP lose. Here the shapes are needed only while the optimizer is built. The input is divided by ``width_mult``.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, width_mult: float) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self._width_mult = width_mult
        self.gives_input = False

    def width_mult(self) -> float:
        return self._width_mult

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, shape (..., out_features), or what the weight would be multiplied with while ``gives_input``."""
        return self.output_mult * x / self._width_mult if self.gives_input else super().forward(x)


class MuGPT(GPT):
    """LitGPT's GPT whose logits are divided by ``width_mult`` (arXiv 2203.03466, table 8), branches by another number.

    Args:
        config: The model; its ``attention_scores_scalar`` carries muP's attention scale
            (:func:`litgpt_warmstart.method.parametrization.mup_config` sets it).
        width_mult: n_embd over the muP base's n_embd. At 1 the logits equal LitGPT's GPT bit for bit.
        branch_divisor: What attention and MLP add to the residual stream is divided by it (CompleteP's m_L,
            arXiv 2505.01618, table 1); 1 leaves it alone.

    Raises:
        UserError: The config has a part that muP or growth does not cover.
    """

    depth_mult: float = 1.0
    """n_layer over the muP base's; ``set_base_shapes`` of :mod:`~litgpt_warmstart.method.parametrization` writes it."""

    def __init__(self, config: Config, width_mult: float = 1.0, branch_divisor: float = 1.0) -> None:
        check_supported(config)
        super().__init__(config)
        self.lm_head = Readout(config.n_embd, Sizes.of(config).padded_vocab_size, config.lm_head_bias, width_mult)
        if branch_divisor != 1:
            blocks: Any = self.transformer.h
            for block in blocks:
                for end in branch_ends(config):
                    block.get_submodule(end).register_forward_hook(partial(_divided, branch_divisor))

    def readout_input(self, input_ids: torch.Tensor) -> torch.Tensor:
        """All but the last matrix product: ``F.linear(readout_input, lm_head.weight, lm_head.bias)`` are the logits.

        For losses that never hold all logits. The forward pass is the inherited one; the readout hands its input on:
        int64 tokens (B, T) -> (B, T, n_embd), divided by width_mult.
        """
        self.lm_head.gives_input = True
        try:
            return self(input_ids)
        finally:
            self.lm_head.gives_input = False


def branch_ends(config: Config) -> tuple[str, str]:
    """The modules of a block whose outputs are added to the residual stream, by their names in it."""
    return (
        "post_attention_norm" if config.post_attention_norm else "attn.proj",
        "post_mlp_norm" if config.post_mlp_norm else "mlp.proj",
    )


def _divided(divisor: float, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output / divisor


def parameter_count(config: Config) -> int:
    """All parameters of a model."""
    with torch.device("meta"):
        return num_parameters(MuGPT(config))


def check_supported(config: Config) -> None:
    """Raise a UserError, naming the part, for a config outside the dense families that share LitGPT's plain blocks."""
    refused = {
        "mixture of experts": config.n_expert > 0,
        "multi-head latent attention": config.latent_attention is not None,
        "embeddings scaled by sqrt(n_embd) or norms with unit offset (Gemma)": config.scale_embeddings
        or (config.norm_class_name == "RMSNorm" and "Gemma" in config.name),
    }
    for part, present in refused.items():
        if present:
            raise UserError(f"{config.name or 'the config'} has {part}, which warmstarting does not support")
