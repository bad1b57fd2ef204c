"""The softmax of the chunked loss as one Triton kernel: Inductor's kernels of it take three times as long.

50,304 classes in bf16 are 100 kB a row: a program reads its row from memory once, and again, still in the L2 cache,
to write it.
"""
# pyright: reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false

import torch
import triton
import triton.language as tl

BLOCK, WARPS = 8192, 16
"""Classes that a program has at a time, and its warps: few rows at once, so that they stay in the L2 cache."""


@triton.jit
def _softmax_row(logits, targets, share, losses, scale, classes: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0)
    z_row = logits + row.to(tl.int64) * classes
    target = tl.load(targets + row)
    z_target = tl.load(z_row + target).to(tl.float32)
    columns = tl.arange(0, block)
    m = float("-inf")
    s = 0.0
    for start in range(0, classes, block):
        z = tl.load(z_row + start + columns, mask=start + columns < classes, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(m, tl.max(z, 0))
        s = s * tl.exp(m - higher) + tl.sum(tl.exp(z - higher), 0)
        m = higher
    row_share = tl.load(share + row)
    tl.store(losses + row, (m + tl.log(s) - z_target) * row_share)
    tl.store(scale + row, row_share / s)
    for start in range(0, classes, block):
        inside = start + columns < classes
        z = tl.load(z_row + start + columns, mask=inside, other=0.0).to(tl.float32)
        gradient = tl.where(start + columns == target, tl.exp(z_target - m) - s, tl.exp(z - m))
        tl.store(z_row + start + columns, gradient.to(logits.dtype.element_ty), mask=inside)


def softmax_(
    logits: torch.Tensor, targets: torch.Tensor, share: torch.Tensor, small: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`litgpt_warmstart.method.softmax.softmax_` on a GPU; m is always the row's maximum."""
    losses, scale = torch.empty_like(share), torch.empty_like(share)
    rows, classes = logits.shape
    _softmax_row[(rows,)](logits, targets, share, losses, scale, classes, BLOCK, num_warps=WARPS)
    return losses, scale
