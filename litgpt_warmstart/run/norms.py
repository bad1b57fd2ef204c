"""norms.csv (``--track``): the size of every layer's output and of every weight of a model in training; if it copies.

For figures as 8 and 10 of arXiv 2411.07340. As ``mup.coord_check`` defines them, over all entries of a tensor x:

    l1    mean |x|
    l2    sqrt(mean x^2)

Outputs are those of one validation block, always the same, so that steps and runs can be compared. They come from an
eager forward pass of the bare model: hooks in the compiled one would have it compiled anew.
"""

from contextlib import ExitStack
from functools import partial

import lightning as L
import torch
from torch import nn

from litgpt_warmstart.method.loss import NextTokenLoss, chunk_size, head_dtype
from litgpt_warmstart.method.model import MuGPT
from litgpt_warmstart.run.induction import induction_score, repeated_tokens
from litgpt_warmstart.run.metrics import RowFile, RowFormat, number, whole_number
from litgpt_warmstart.run.spec import RunSpec

FILE_NAME = "norms.csv"
INDUCTION = "induction"
"""The kind of a row with a score; see :mod:`litgpt_warmstart.run.induction`."""


def _kind(cell: str) -> str:
    if cell not in ("activation", "weight", INDUCTION):
        raise ValueError(f"{cell!r} is no kind")
    return cell


def _name(cell: str) -> str:
    """LitGPT's name of the module, or of the parameter; ``loss`` of a score."""
    if not cell or not cell.isprintable():
        raise ValueError(f"{cell!r} is no name")
    return cell


NORMS = RowFormat(
    {"step": whole_number, "tokens": whole_number, "kind": _kind, "name": _name, "l1": number, "l2": number,
     "score": number},
    optional=1,
)  # fmt: skip
"""Its rows tell optimizer steps and tokens trained on before; a score stands alone, without l1 and l2."""


class Tracker:
    """Records norms and a score at step 0, every ``--track`` steps and after the last one; nothing where that is None.

    Args:
        fabric: Its precision is the outputs' own.
        spec: The run.
        gpt: The bare model that is trained.
        probe: Tokens to record outputs for, int64, shape (1, T); None where nothing is recorded.
        resume_step: Keep the rows up to this step of an earlier part of the run; None starts anew.
    """

    def __init__(
        self, fabric: L.Fabric, spec: RunSpec, gpt: MuGPT, probe: torch.Tensor | None, resume_step: int | None
    ) -> None:
        self._fabric, self._spec, self._gpt, self._probe = fabric, spec, gpt, probe
        path = spec.out_dir / FILE_NAME
        self.file = RowFile(path, NORMS, resume_step) if spec.args.track else None
        self._recorded = {row["step"] for row in self.file.kept} if self.file else set()
        if spec.args.track:
            fabric.print(f"Norms at step 0, every {spec.args.track:,} steps and the last one: {str(path)!r}")
        elif resume_step is not None and NORMS.read(path):  # of an earlier part of the run, which may have got further
            NORMS.keep(path, resume_step)

    def record_if_due(self, step_count: int) -> None:
        """Record, after so many optimizer steps, if it is the step to, and an earlier part of the run has not."""
        if self.file is None or self._probe is None or step_count in self._recorded:
            return
        if step_count % (self._spec.args.track or 1) and step_count != self._spec.max_steps:
            return
        spec, loss = self._spec, NextTokenLoss(self._gpt, self._spec.loss)
        repeated = repeated_tokens(self._gpt.config.vocab_size, spec.block_size, self._probe.device)
        with self._fabric.autocast():
            rows = measure(self._gpt, self._probe)
            score = induction_score(loss, repeated, spec.micro_batch_size)
        rows.append({"kind": INDUCTION, "name": "loss", "score": score})
        at = {"step": step_count, "tokens": step_count * spec.tokens_per_step}
        self.file.append(at | row for row in rows)


@torch.no_grad()
def measure(gpt: MuGPT, probe: torch.Tensor) -> list[dict[str, float | str]]:
    """Kind, name, l1 and l2 of every module's output, in the order they are made, and of every parameter.

    Modules that only hold others or hand their input on are left out. The device is waited for once.

    Args:
        gpt: The bare model; mode, gradients and random states are left alone.
        probe: Tokens, int64, shape (B, T).
    """
    rows: list[tuple[str, str, int, torch.Tensor]] = []

    def add_output(name: str, module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        if module is gpt.lm_head:
            rows.append(("activation", name, len(gpt.lm_head.weight), _logit_norms(output, gpt.lm_head)))
        else:
            rows.append(("activation", name, output.shape[-1], _row_norms(output)))

    with ExitStack() as hooks:
        for name, module in gpt.named_modules():
            if module is not gpt and not isinstance(module, nn.Identity):
                hooks.callback(module.register_forward_hook(partial(add_output, name)).remove)
        gpt.readout_input(probe)
    rows += [("weight", name, weight.shape[-1], _row_norms(weight)) for name, weight in gpt.named_parameters()]
    norms = [row[-1] for row in rows]
    on_host = torch.cat(norms, dim=1).cpu().double().split([n.shape[1] for n in norms], dim=1)
    return [
        {"kind": kind, "name": name, "l1": (l1.mean() / width).item(), "l2": (l2.square().mean() / width).sqrt().item()}
        for (kind, name, width, _), (l1, l2) in zip(rows, on_host, strict=True)
    ]


def _row_norms(x: torch.Tensor) -> torch.Tensor:
    """Sum of |x| and root of the sum of x^2 over the last dimension, fp32, shape (2, rows).

    Not over all of x at once: on a CPU vector_norm adds entry after entry, and in fp32 the absolute values of 50
    million logits came out a fifth short.
    """
    return torch.stack([torch.linalg.vector_norm(x, p, dim=-1, dtype=torch.float32).flatten() for p in (1, 2)])


def _logit_norms(x: torch.Tensor, head: nn.Linear) -> torch.Tensor:
    """:func:`_row_norms` of the logits of x (B, T, n_embd), a few tokens' at a time: all may not fit."""
    x, dtype = x.flatten(0, 1), head_dtype(head.weight)
    weight, bias = head.weight.to(dtype), None if head.bias is None else head.bias.to(dtype)
    chunks = x.to(dtype).split(chunk_size(len(x), len(weight), weight.shape[1], x.device.type))
    logits = weight.new_empty(len(chunks[0]), len(weight))  # one after the other: fresh memory takes as long as they do
    norms = []
    with torch.autocast(x.device.type, enabled=False):
        for chunk in chunks:
            z = torch.mm(chunk, weight.T, out=logits[: len(chunk)])
            norms.append(_row_norms(z if bias is None else z.add_(bias)))
    return torch.cat(norms, dim=1)
