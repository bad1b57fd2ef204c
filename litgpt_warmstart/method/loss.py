"""Head and cross entropy: two ways, one result.

At 50,304 classes the logits outweigh the rest of a small model's step. The ways differ in how much of them exists:

    full      all logits, as a matrix; with torch.compile the softmax is fused into what stands around it
    chunked   the logits of one chunk of tokens at a time; gradients are made with them, nothing is computed twice

:func:`choose` takes one for a run.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import psutil
import torch
import torch.nn.functional as F
from litgpt.config import Config
from torch import nn

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.model import MuGPT
from litgpt_warmstart.method.scales import Sizes

LossImpl = Literal["full", "chunked"]
LossChoice = Literal["auto", LossImpl]

IGNORE_INDEX = -100
"""A target that does not count."""

CHUNK_LOGITS = {"cpu": 2**24, "cuda": 2**28}
"""Logits of a chunk: on a CPU they should stay near the last-level cache, a GPU needs large matrices."""

BYTES_PER_LOGIT = 16
"""What ``full`` holds at most: logits and their gradients in bf16 and in fp32, and the probabilities in fp32."""

SMALL_LOGIT = 40.0
"""fp32 holds exp of it, and of its negative, and a sum over any vocabulary."""


class NextTokenLoss(nn.Module):
    """Mean cross entropy of a GPT's next-token predictions.

    One module, so that ``torch.compile`` sees the output layer and the loss together; the parameters stay the GPT's.
    """

    def __init__(self, gpt: MuGPT, impl: LossImpl = "full") -> None:
        super().__init__()
        self.gpt, self.impl = gpt, impl
        self._compiled_exp_and_sum: ExpAndSum | None = None

    def compiled(self, mode: str | None = None) -> nn.Module:
        """This module under torch.compile. The chunked loss stays outside; its elementwise part is compiled alone."""
        self._compiled_exp_and_sum = torch.compile(exp_and_sum)
        compiled: Any = torch.compile(self, mode=mode)  # torch declares a function
        return compiled

    def forward(self, input_ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss in fp32, a scalar.

        Args:
            input_ids: Tokens, int64, shape (B, T).
            targets: The tokens that follow, int64, shape (B, T); :data:`IGNORE_INDEX` does not count.
        """
        if self.impl == "full":
            logits = self.gpt(input_ids)  # (B, T, padded_vocab_size)
            return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE_INDEX)
        x = self.gpt.readout_input(input_ids).flatten(0, 1)  # (B * T, n_embd)
        head, targets = self.gpt.lm_head, targets.flatten()
        chunked: Any = chunked_cross_entropy  # torch.compiler.disable hides what it takes
        return chunked(x, head.weight, head.bias, targets, self._compiled_exp_and_sum)


def why_not(impl: LossImpl, config: Config, precision: str) -> str | None:
    """Why a way cannot be taken for a model in one of Fabric's precisions; None if it can."""
    if impl != "full" and config.final_logit_softcapping is not None:
        return f"{config.name} caps its logits, which only full does"
    if impl == "chunked" and precision.startswith("16"):
        return f"fp16's range does not hold its products before they are normalized (--precision {precision})"
    return None


def choose(
    asked: LossChoice, config: Config, precision: str, device: torch.device, tokens: int, before: str | None = None
) -> tuple[LossImpl, str]:
    """The loss to train with: ``full`` in bf16 on hardware that has it, if the logits fit, else ``chunked``.

    Args:
        asked: ``--loss_impl``.
        config: The model.
        precision: Fabric's, such as ``bf16-mixed``.
        device: Where the model is.
        tokens: Those of a micro-batch.
        before: What the run that is resumed took; ``auto`` stays with it.

    Returns:
        The loss and why it was taken, in a few words.

    Raises:
        UserError: The one asked for cannot be taken here.
    """
    if asked != "auto":
        if reason := why_not(asked, config, precision):
            raise UserError(f"--loss_impl {asked}: {reason}; leave it out to have one chosen")
        return asked, "as asked"
    if why_not("chunked", config, precision):
        return "full", "the only one possible"
    if before == "full":
        return "full", "as before"
    if before is not None:
        return "chunked", "as before" if before == "chunked" else f"before: {before}, which is no more"
    if not (precision.startswith("bf16") and has_bf16(device)):
        return "chunked", "no bf16 in hardware" if precision.startswith("bf16") else f"precision {precision}"
    if BYTES_PER_LOGIT * tokens * Sizes.of(config).padded_vocab_size > _memory(device) / 2:
        return "chunked", "all logits take more than half of the memory"
    return "full", "bf16, and all logits fit"


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware."""
    return torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else cpu_has_bf16()


def _memory(device: torch.device) -> int:
    """Bytes that are free."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def chunk_size(tokens: int, classes: int, device: str) -> int:
    """Tokens of a chunk: as many as :data:`CHUNK_LOGITS` allows, in chunks of about one size."""
    allowed = max(1, CHUNK_LOGITS.get(device, CHUNK_LOGITS["cuda"]) // classes)
    chunks = math.ceil(tokens / allowed)
    return math.ceil(tokens / chunks / 32) * 32


ExpAndSum = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def exp_and_sum(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Overwrite logits by exp(logits - maximum of the row), of fp32 precision up to the last rounding.

    (C, padded_vocab_size) -> each row's maximum and its sum of exponentials, fp32, (C, 1) each.
    """
    x = logits.float()  # itself where it is fp32
    maximum = x.amax(1, keepdim=True)
    e = torch.exp(x - maximum) if torch.compiler.is_compiling() else x.sub_(maximum).exp_()  # fused, or in place
    if e is not logits:
        logits.copy_(e)
    return maximum, e.sum(1, keepdim=True)


def exp_and_sum_of_small(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`exp_and_sum` of fp32 logits below :data:`SMALL_LOGIT`: no maximum is taken off, 0 stands for it."""
    e = logits.exp_()
    return e.new_zeros(()), e.sum(1, keepdim=True)


@torch.compiler.disable
def chunked_cross_entropy(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    compiled_exp_and_sum: ExpAndSum | None = None,
    chunk_tokens: int | None = None,
) -> torch.Tensor:
    """Mean cross entropy of ``F.linear(x, weight, bias)``, whose logits never exist all at once.

    Args:
        x: Input of the head, shape (N, n_embd).
        weight: Shape (padded_vocab_size, n_embd).
        bias: Shape (padded_vocab_size,), or None.
        targets: int64, shape (N,); :data:`IGNORE_INDEX` does not count.
        compiled_exp_and_sum: :func:`exp_and_sum`, compiled; taken where that is faster.
        chunk_tokens: Tokens of a chunk. Default: :func:`chunk_size`.
    """
    device, dtype = x.device.type, head_dtype(weight)
    reduce = compiled_exp_and_sum or exp_and_sum
    if device == "cpu" and dtype == torch.float32:  # in place, compiling gains nothing, and asking for a bound is free
        reduce = exp_and_sum_of_small if _logit_bound(x, weight, bias) < SMALL_LOGIT else exp_and_sum
    chunk_tokens = chunk_tokens or chunk_size(len(x), len(weight), device)
    return _ChunkedCrossEntropy.apply(x, weight, bias, targets, dtype, reduce, chunk_tokens, torch.is_grad_enabled())


def head_dtype(weight: torch.Tensor) -> torch.dtype:
    """What logits are computed in where not all of them exist at once: as autocast says, but never in emulated bf16."""
    device = weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    if device == "cpu" and dtype == torch.bfloat16 and not cpu_has_bf16():
        return torch.float32  # emulated, bf16 products take some fifty times as long
    return dtype


@torch.no_grad()
def _logit_bound(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> float:
    """What no logit's magnitude exceeds (Cauchy-Schwarz)."""
    product = torch.linalg.vector_norm(x, dim=1).max() * torch.linalg.vector_norm(weight, dim=1).max()
    return (product if bias is None else product + bias.abs().max()).item()


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AVX512-BF16 or AMX)."""
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The loss, and its gradients in the same pass.

    For a row z of logits with maximum m, e = exp(z - m), s = sum(e), and N targets that count:

        loss        mean(m + log s - z[target])
        grad x      (g @ weight) / (s N)      where g is e, less s at the target
        grad weight g^T @ (x / (s N))

    So g, written over the logits, is the only thing of their size, and is made once: the 1/(s N) of the softmax goes to
    the narrow side of each product.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, targets, dtype, reduce, chunk_tokens, with_gradients):
        counts = targets != IGNORE_INDEX
        targets = targets.where(counts, 0)
        # fp32 by name: under bf16-true Fabric's default dtype is bf16. (N, 1): 1/N, 0 for what does not count
        share = (counts.float() / counts.sum())[:, None]
        w = weight.to(dtype)
        b = None if bias is None else bias.to(dtype)
        loss = torch.zeros((), device=x.device, dtype=torch.float32)
        if with_gradients:
            grad_x = torch.empty_like(x)
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
            grad_bias = torch.zeros(len(weight), device=x.device, dtype=torch.float32)
        logits = torch.empty(min(chunk_tokens, len(x)), len(weight), device=x.device, dtype=dtype)
        with torch.autocast(x.device.type, enabled=False):
            for start in range(0, len(x), chunk_tokens):
                rows = slice(start, start + chunk_tokens)
                x_c, target_c, share_c = x[rows].to(dtype), targets[rows, None], share[rows]  # (C, ...)
                z = logits[: len(x_c)]
                if b is None:
                    torch.mm(x_c, w.T, out=z)
                else:
                    torch.addmm(b, x_c, w.T, out=z)
                z_target = z.gather(1, target_c).float()
                maximum, total = reduce(z)
                loss += ((maximum + total.log() - z_target) * share_c).sum()
                if not with_gradients:
                    continue
                # written once, not taken off the products: of a token that is well predicted little is left
                z.scatter_(1, target_c, ((z_target - maximum).exp() - total).to(dtype))
                scale = share_c / total  # (C, 1)
                grad_x[rows] = torch.mm(z, w) * scale
                scaled = (x_c * scale).to(dtype)
                if dtype == torch.float32:
                    grad_weight.addmm_(z.T, scaled)
                else:
                    grad_weight += torch.mm(z.T, scaled)
                if bias is not None:
                    grad_bias += torch.mv(z.T, scale[:, 0].to(dtype))
            if with_gradients:
                ctx.save_for_backward(
                    grad_x, grad_weight.to(weight.dtype), None if bias is None else grad_bias.to(bias.dtype)
                )
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss):
        return *(None if grad is None else grad * grad_loss for grad in ctx.saved_tensors), *(None,) * 5
