"""The softmax of the chunked loss, which turns logits into their gradient where they lie.

Compiled, one pass reads the logits and another one writes them: by Inductor on a CPU, by a Triton kernel on a GPU.
"""

from collections.abc import Callable
from functools import cache

import torch

Softmax = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, bool], tuple[torch.Tensor, torch.Tensor]]


def softmax_(
    logits: torch.Tensor, targets: torch.Tensor, share: torch.Tensor, small: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Overwrite each row z of logits by the gradient of its cross entropy, times the row's sum s of exp(z - m).

    That is exp(z - m), less s at the target.

    Args:
        logits: z, shape (C, padded_vocab_size).
        targets: int64, shape (C, 1).
        share: What a row counts in the mean, fp32, shape (C, 1).
        small: Whether exp of all logits, and of their negatives, is known to be in range. Then m is 0, else the row's
            maximum.

    Returns:
        The cross entropy m + log(s) - z[target] times the share, and what makes gradients of the mean of what is
        written, share / s; fp32, shape (C, 1) each.
    """
    z = logits.float()  # itself where it is fp32
    m = z.new_zeros(()) if small else z.amax(1, keepdim=True)
    z_target = z.gather(1, targets)
    if torch.compiler.is_compiling():
        s = (z - m).exp().sum(1, keepdim=True)
        at_target = torch.arange(z.shape[1], device=z.device) == targets
        # exp once more: of one tensor, used twice, Inductor makes a buffer of all logits in fp32. And the target is
        # written, not taken off the products: of a token that is well predicted little is left
        logits.copy_(torch.where(at_target, (z_target - m).exp() - s, (z - m).exp()))
    else:
        e = (z if small else z.sub_(m)).exp_()
        s = e.sum(1, keepdim=True)
        e.scatter_(1, targets, (z_target - m).exp() - s)
        if e is not logits:
            logits.copy_(e)
    return (m + s.log() - z_target) * share, share / s


@cache
def compiled_softmax(device_type: str) -> Softmax:
    """:func:`softmax_` for a kind of device, in two passes."""
    if device_type == "cuda":
        from litgpt_warmstart.method import softmax_triton  # Triton comes with torch for GPUs alone

        return softmax_triton.softmax_
    return torch.compile(softmax_)
