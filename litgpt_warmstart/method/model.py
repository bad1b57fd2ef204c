"""MuGPT: LitGPT's GPT with mup's readout. The forward pass is inherited."""

import torch
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.utils import num_parameters
from mup import MuReadout

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
    """LitGPT's GPT whose logits are divided by ``width_mult`` (arXiv 2203.03466, table 8).

    Args:
        config: The model; its ``attention_scores_scalar`` carries muP's attention scale
            (:func:`litgpt_warmstart.method.parametrization.mup_config` sets it).
        width_mult: n_embd over the muP base's n_embd. At 1 the logits equal LitGPT's GPT bit for bit.

    Raises:
        UserError: The config has a part that muP or growth does not cover.
    """

    def __init__(self, config: Config, width_mult: float = 1.0) -> None:
        check_supported(config)
        super().__init__(config)
        self.lm_head = Readout(config.n_embd, Sizes.of(config).padded_vocab_size, config.lm_head_bias, width_mult)

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
