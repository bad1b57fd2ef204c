"""norms.csv: the size of every layer's output and of every weight while a model trains (``--track``).

For figures as 8 and 10 of arXiv 2411.07340. As ``mup.coord_check`` defines them, over all entries of a tensor x:

    l1    mean |x|
    l2    sqrt(mean x^2)

Outputs are those of one validation block, always the same, so that steps and runs can be compared. They come from an
eager forward pass of the bare model: hooks in the compiled one would have it compiled anew.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Literal

import lightning as L
import torch
from torch import nn

from litgpt_warmstart.method.loss import chunk_size, head_dtype
from litgpt_warmstart.method.model import MuGPT
from litgpt_warmstart.run.metrics import Cells, RowFile, RowFormat, whole_number
from litgpt_warmstart.run.spec import RunSpec

FILE_NAME = "norms.csv"
COLUMNS = ("step", "tokens", "kind", "name", "l1", "l2")

Kind = Literal["activation", "weight"]


@dataclass(frozen=True)
class Norm:
    """A row of norms.csv."""

    step: int
    """Optimizer steps before."""
    tokens: int
    kind: Kind
    name: str
    """LitGPT's name of the module, or of the parameter."""
    l1: float
    """Mean absolute value."""
    l2: float
    """Root mean square."""


def _norm(cells: Cells) -> Norm:
    """A row from its cells."""
    kind: Kind = "weight" if cells["kind"] == "weight" else "activation"
    if cells["kind"] != kind or not cells["name"].isprintable() or not cells["name"]:
        raise ValueError("no kind, or no name")
    step, tokens = whole_number(cells["step"]), whole_number(cells["tokens"])
    return Norm(step, tokens, kind, cells["name"], float(cells["l1"]), float(cells["l2"]))


NORMS = RowFormat(COLUMNS, _norm)


class Tracker:
    """Records norms at step 0, every ``spec.track`` steps and after the last one; nothing where that is None.

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
        self._file, path = None, spec.out_dir / FILE_NAME
        self._recorded: set[int] = set()
        if spec.track:
            self._file = RowFile(path, NORMS, resume_step)
            self._recorded = {row.step for row in self._file.kept}
            fabric.print(f"Norms at step 0, every {spec.track:,} steps and the last one: {str(path)!r}")
        elif resume_step is not None and path.exists():  # of an earlier part of the run, which may have got further
            NORMS.keep(path, resume_step)

    def record_if_due(self, step_count: int) -> None:
        """Record, after so many optimizer steps, if it is the step to, and an earlier part of the run has not."""
        if self._file is None or self._probe is None or step_count in self._recorded:
            return
        if step_count % (self._spec.track or 1) and step_count != self._spec.max_steps:
            return
        with self._fabric.autocast():
            norms = measure(self._gpt, self._probe)
        row = {"step": step_count, "tokens": step_count * self._spec.tokens_per_step}
        self._file.append(row | norm for norm in norms)

    def flush_to_disk(self) -> None:
        """Have what is recorded on disk against a loss of power."""
        if self._file is not None:
            self._file.flush_to_disk()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


@torch.no_grad()
def measure(gpt: MuGPT, probe: torch.Tensor) -> list[dict[str, float | str]]:
    """Kind, name, l1 and l2 of every module's output, in the order they are made, and of every parameter.

    Modules that only hold others or hand their input on are left out. The device is waited for once.

    Args:
        gpt: The bare model; mode, gradients and random states are left alone.
        probe: Tokens, int64, shape (B, T).
    """
    named: list[dict[str, float | str]] = []
    widths, norms = [], []

    def add(kind: Kind, name: str, width: int, row_norms: torch.Tensor) -> None:
        named.append({"kind": kind, "name": name})
        widths.append(width)
        norms.append(row_norms)

    def add_output(name: str, module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        if module is gpt.lm_head:
            add("activation", name, len(gpt.lm_head.weight), _logit_norms(output, gpt.lm_head))
        else:
            add("activation", name, output.shape[-1], _row_norms(output))

    with ExitStack() as hooks:
        for name, module in gpt.named_modules():
            if module is not gpt and not isinstance(module, nn.Identity):
                hooks.callback(module.register_forward_hook(partial(add_output, name)).remove)
        gpt.readout_input(probe)
    for name, parameter in gpt.named_parameters():
        add("weight", name, parameter.shape[-1], _row_norms(parameter))

    on_host = torch.cat(norms, dim=1).cpu().double().split([n.shape[1] for n in norms], dim=1)
    for row, width, (l1, l2) in zip(named, widths, on_host, strict=True):
        row["l1"] = (l1.mean() / width).item()
        row["l2"] = (l2.square().mean() / width).sqrt().item()
    return named


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
    chunks = x.to(dtype).split(chunk_size(len(x), len(weight), x.device.type))
    logits = weight.new_empty(len(chunks[0]), len(weight))  # one after the other: fresh memory takes as long as they do
    norms = []
    with torch.autocast(x.device.type, enabled=False):
        for chunk in chunks:
            z = torch.mm(chunk, weight.T, out=logits[: len(chunk)])
            norms.append(_row_norms(z if bias is None else z.add_(bias)))
    return torch.cat(norms, dim=1)
