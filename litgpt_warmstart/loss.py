"""Head and cross entropy as one module: what is compiled and what Fabric wraps."""

import torch
import torch.nn.functional as F
from litgpt.model import GPT
from torch import nn

IGNORE_INDEX = -100
"""A target that does not count."""


class NextTokenLoss(nn.Module):
    """Mean cross entropy of a GPT's next-token predictions.

    One module, so that ``torch.compile`` sees the output layer and the loss together and keeps no second copy of the
    logits, which at 50,304 classes outweigh the rest of a small model's step.

    Args:
        gpt: The bare model; it keeps its parameters.
    """

    def __init__(self, gpt: GPT) -> None:
        super().__init__()
        self.gpt = gpt

    def forward(self, input_ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss in fp32, a scalar.

        Args:
            input_ids: Tokens, int64, shape (B, T).
            targets: The tokens that follow, int64, shape (B, T); :data:`IGNORE_INDEX` does not count.
        """
        logits = self.gpt(input_ids)  # (B, T, padded_vocab_size)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE_INDEX)
