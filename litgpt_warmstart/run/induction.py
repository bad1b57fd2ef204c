"""The induction score: how much better a model predicts what it has seen before (arXiv 2209.11895).

Small models learn to copy all of a sudden, and their loss drops with it: a score over training dates that drop.
"""

import torch

from litgpt_warmstart.method.loss import IGNORE_INDEX, NextTokenLoss

_TOKENS, _MIN_SEQUENCES = 4096, 4
"""At 256 tokens a sequence the score of models that do not copy stays within 0.03 of 0."""


def repeated_tokens(vocab_size: int, block_size: int, device: torch.device) -> torch.Tensor:
    """Sequences of random tokens and the same once more, always the same ones, int64, shape (B, 2 * (T // 2)).

    Each token is as likely as any other of the vocabulary; rows that only pad its tables are none.
    """
    drawn = max(_MIN_SEQUENCES, _TOKENS // block_size), block_size // 2
    half = torch.randint(vocab_size, drawn, generator=torch.Generator().manual_seed(0))
    return half.repeat(1, 2).to(device)


@torch.no_grad()
def induction_score(loss: NextTokenLoss, repeated: torch.Tensor, micro_batch_size: int) -> float:
    """Mean loss where tokens come again less their loss before, in nats per token: -ln V where they are just copied.

    Both are over the same tokens: the second half's first one follows nothing that it has followed before, so neither
    half's first one counts.

    Args:
        loss: Of the bare model; its mode, gradients and random states are left alone.
        repeated: See :func:`repeated_tokens`.
        micro_batch_size: Sequences of a forward pass.
    """
    half = repeated.shape[1] // 2
    score = torch.zeros((), device=repeated.device)
    for tokens in repeated.split(micro_batch_size):
        targets = tokens[:, 1:].clone()
        targets[:, :half] = IGNORE_INDEX
        first = loss(tokens[:, : half - 1], tokens[:, 1:half])
        score += (loss(tokens[:, :-1], targets) - first) * (len(tokens) / len(repeated))
    return score.item()
