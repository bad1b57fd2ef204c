"""The softmax of the chunked loss, which turns logits into their gradient where they lie.

Compiled, in two passes over them, by Inductor on a CPU (three where the maximum is taken) and by a Triton kernel on a
GPU.
"""

from collections.abc import Callable
from functools import cache, partial

import torch

Softmax = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, bool], tuple[torch.Tensor, torch.Tensor]]


def softmax_(
    logits: torch.Tensor, targets: torch.Tensor, share: torch.Tensor, small: bool, compiled: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Overwrite each row z of logits by the gradient of its cross entropy, times the row's sum s of exp(z - m).

    That is e = exp(z - m), less s at the target. The target is written, not taken off the products that follow: of a
    token that is well predicted little is left.

    Args:
        logits: z, shape (C, padded_vocab_size).
        targets: int64, shape (C, 1).
        share: What a row counts in the mean, fp32, shape (C, 1).
        small: Whether exp of all logits, and of their negatives, is known to be in range. Then m is 0, else the row's
            maximum.
        compiled: Whether the pass that takes exp is.

    Returns:
        The cross entropy m + log(s) - z[target] times the share, and what makes gradients of the mean of what is
        written, share / s; fp32, shape (C, 1) each.
    """
    z_target = logits.gather(1, targets).float()
    m, s = (_compiled_exp() if compiled else _exp_)(logits, small)
    if s is None:
        s = logits.sum(1, keepdim=True)
    rows = torch.arange(len(logits), device=logits.device)
    at_target = (z_target - m).exp() - s
    logits[rows, targets[:, 0]] = at_target[:, 0].to(logits.dtype)  # scatter_ passes over all of bf16 logits on a CPU
    return (m + s.log() - z_target) * share, share / s


def _exp_(logits: torch.Tensor, small: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Write exp(z - m) over z.

    Returns:
        m, of shape (C, 1) or (), and s, (C, 1), in fp32; None for s where the sum of what is written is as good.
    """
    z = logits.float()  # itself where it is fp32
    m = z.new_zeros(()) if small else z.amax(1, keepdim=True)
    if not torch.compiler.is_compiling():
        e = (z if small else z.sub_(m)).exp_()
        if e is not logits:
            logits.copy_(e)
        return m, e.sum(1, keepdim=True)
    # Of one tensor that is written and summed Inductor makes a buffer of all logits in fp32. So fp32 is summed
    # afterwards; else exp is taken twice, since what is written is rounded.
    s = None if logits.dtype == torch.float32 else (z - m).exp().sum(1, keepdim=True)
    logits.copy_((z - m).exp())
    return m, s


@cache
def _compiled_exp() -> Callable[[torch.Tensor, bool], tuple[torch.Tensor, torch.Tensor | None]]:
    return torch.compile(_exp_)


@cache
def compiled_softmax(device_type: str) -> Softmax:
    """:func:`softmax_` for a kind of device, in two passes."""
    if device_type == "cuda":
        from litgpt_warmstart.method import softmax_triton  # Triton comes with torch for GPUs alone

        return softmax_triton.softmax_
    return partial(softmax_, compiled=True)
