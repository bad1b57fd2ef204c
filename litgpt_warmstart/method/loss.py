"""Head and cross entropy: two ways, one result.

At 50,304 classes the logits outweigh the rest of a small model's step. The ways differ in how much of them exists:

    full      all logits, as a matrix; with torch.compile the softmax is fused into what stands around it
    chunked   the logits of one chunk of tokens at a time; gradients are made with them, nothing is computed twice

:func:`choose` takes one for a run.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from litgpt.config import Config
from torch import nn

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.model import MuGPT
from litgpt_warmstart.method.softmax import compiled_softmax, softmax_

LossImpl = Literal["full", "chunked"]
LossChoice = Literal["auto", LossImpl]

IGNORE_INDEX = -100
"""A target that does not count."""

CHUNK_LOGITS = {"cpu": 2**24, "cuda": 2**28}
"""Logits of a chunk: on a CPU they should stay near the last-level cache, a GPU needs large matrices."""

SMALL_LOGIT = 40.0
"""fp32 holds exp of it, and of its negative, and a sum over any vocabulary."""


class NextTokenLoss(nn.Module):
    """Mean cross entropy of a GPT's next-token predictions.

    One module, so that ``torch.compile`` sees the output layer and the loss together; the parameters stay the GPT's.
    """

    def __init__(self, gpt: MuGPT, impl: LossImpl = "full") -> None:
        super().__init__()
        self.gpt, self.impl = gpt, impl
        self._is_compiled = False

    def compiled(self, mode: str | None = None) -> nn.Module:
        """This module under torch.compile; the softmax of the chunked loss is compiled by itself."""
        self._is_compiled = True
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
        return chunked_cross_entropy(x, head.weight, head.bias, targets, self._is_compiled)


def why_not(impl: LossImpl, config: Config, precision: str) -> str | None:
    """Why a way cannot be taken for a model in one of Fabric's precisions; None if it can."""
    if impl == "full":
        return None
    if config.final_logit_softcapping is not None:
        return f"{config.name} caps its logits, which only full does"
    if precision.startswith("16"):
        return f"fp16's range does not hold its products before they are normalized (--precision {precision})"
    return None


def choose(asked: LossChoice, config: Config, precision: str, before: str | None = None) -> tuple[LossImpl, str]:
    """The loss to train with, unless trying them where the run will be shows the other one to be faster.

    Args:
        asked: ``--loss_impl``.
        config: The model.
        precision: Fabric's, such as ``bf16-mixed``.
        before: What the run that is resumed took; ``auto`` stays with it.

    Returns:
        The loss and why it was taken, in a few words.

    Raises:
        UserError: The one asked for cannot be taken.
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
    return "chunked", "as fast as full or faster, in less memory"


def chunk_size(tokens: int, classes: int, n_embd: int, device: str) -> int:
    """Tokens of a chunk, in chunks of about one size: as many as :data:`CHUNK_LOGITS` allows, or twice n_embd.

    Below that, adding up the gradient of the weight, once a chunk, takes longer than making it.
    """
    allowed = max(2 * n_embd, CHUNK_LOGITS.get(device, CHUNK_LOGITS["cuda"]) // classes)
    chunks = math.ceil(tokens / allowed)
    return math.ceil(tokens / chunks / 32) * 32


def chunked_cross_entropy(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    compiled: bool = False,
    chunk_tokens: int | None = None,
) -> torch.Tensor:
    """Mean cross entropy of ``F.linear(x, weight, bias)``, whose logits never exist all at once.

    Args:
        x: Input of the head, shape (N, n_embd).
        weight: Shape (padded_vocab_size, n_embd).
        bias: Shape (padded_vocab_size,), or None.
        targets: int64, shape (N,); :data:`IGNORE_INDEX` does not count.
        compiled: Whether the softmax is.
        chunk_tokens: Tokens of a chunk. Default: :func:`chunk_size`.
    """
    chunk_tokens = chunk_tokens or chunk_size(len(x), len(weight), weight.shape[1], x.device.type)
    loss, *_ = _loss_and_gradients(
        x, weight, bias, targets, head_dtype(weight), chunk_tokens, compiled, torch.is_grad_enabled()
    )
    return loss


@torch.library.custom_op("litgpt_warmstart::chunked_cross_entropy", mutates_args=())
def _loss_and_gradients(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    dtype: torch.dtype,
    chunk_tokens: int,
    compiled: bool,
    with_gradients: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss, and its gradients in the same pass: an operator of its own, so that what stands around it is one graph.

    For a row z of logits with any m near its maximum, e = exp(z - m), s = sum(e), and N targets that count:

        loss        mean(m + log s - z[target])
        grad x      (g @ weight) / (s N)      where g is e, less s at the target
        grad weight g^T @ (x / (s N))

    So g, written over the logits, is the only thing of their size, and is made once: the 1/(s N) of the softmax goes to
    the narrow side of each product.
    """
    softmax = compiled_softmax(x.device.type) if compiled else softmax_
    grad_x, grad_weight, grad_bias = _empty_gradients(x, weight, bias, with_gradients)
    summed_weight = torch.zeros_like(grad_weight, dtype=torch.float32)
    summed_bias = torch.zeros_like(grad_bias, dtype=torch.float32)
    small = x.device.type == "cpu" and _logit_bound(x, weight, bias) < SMALL_LOGIT  # on a CPU, asking is free
    # What autograd knows of the tensors differs between the first call from a compiled graph and later ones: without
    # inference mode, where it knows nothing, the softmax is compiled twice.
    with torch.autocast(x.device.type, enabled=False), torch.inference_mode():
        counts = targets != IGNORE_INDEX
        # fp32 by name: under bf16-true Fabric's default dtype is bf16. (N, 1): 1/N, 0 for what does not count
        share = (counts.float() / counts.sum())[:, None]
        targets = targets.where(counts, 0)[:, None]  # (N, 1)
        xs, w, b = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        logits = torch.empty(min(chunk_tokens, len(x)), len(weight), device=x.device, dtype=dtype)
        scaled = torch.empty_like(xs[:chunk_tokens])
        losses = []
        for start in range(0, len(x), chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            x_c = xs[rows]  # (C, n_embd)
            z = logits[: len(x_c)]
            if b is None:
                torch.mm(x_c, w.T, out=z)
            else:
                torch.addmm(b, x_c, w.T, out=z)
            loss, scale = softmax(z, targets[rows], share[rows], small)
            losses.append(loss)
            if not with_gradients:
                continue
            torch.mul(torch.mm(z, w), scale, out=grad_x[rows])
            scaled_c = torch.mul(x_c, scale, out=scaled[: len(x_c)])
            if dtype == torch.float32:
                summed_weight.addmm_(z.T, scaled_c)
            else:
                summed_weight += torch.mm(z.T, scaled_c)
            if bias is not None:
                summed_bias += torch.mv(z.T, scale[:, 0].to(dtype))
    return torch.cat(losses).sum(), grad_x, summed_weight.to(weight.dtype), summed_bias.to(grad_bias.dtype)


def _empty_gradients(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, with_gradients: bool
) -> list[torch.Tensor]:
    """Room for the gradients; where there is none to be made, no elements."""
    made = [x, weight, weight[:0, 0] if bias is None else bias]
    return [torch.empty_like(like) if with_gradients else like.new_empty(0) for like in made]


@_loss_and_gradients.register_fake
def _(x, weight, bias, targets, dtype, chunk_tokens, compiled, with_gradients):
    return x.new_empty((), dtype=torch.float32), *_empty_gradients(x, weight, bias, with_gradients)


def _keep_gradients(ctx, inputs, output):
    ctx.has_bias = inputs[2] is not None
    ctx.save_for_backward(*output[1:])


def _scale_gradients(ctx, grad_loss, *_):
    grad_x, grad_weight, grad_bias = (grad * grad_loss for grad in ctx.saved_tensors)
    return grad_x, grad_weight, grad_bias if ctx.has_bias else None, *(None,) * 5


_loss_and_gradients.register_autograd(_scale_gradients, setup_context=_keep_gradients)


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


@torch.compiler.assume_constant_result
def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AVX512-BF16 or AMX)."""
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
