"""torch.compile: whether it can work here, and what its CUDA graphs ask of the loop."""

import os
import shutil
import sysconfig
from pathlib import Path

import torch
from torch import nn

from litgpt_warmstart.method.loss import NextTokenLoss
from litgpt_warmstart.run.spec import CompileMode


def compiled(loss: NextTokenLoss, compile: bool | CompileMode) -> nn.Module:
    """The loss under torch.compile, in the mode asked for."""
    mode = None if compile is True else compile
    if uses_cuda_graphs(compile, loss.gpt.lm_head.weight.device):
        for parameter in loss.parameters():  # accumulated in place: a graph's own output is overwritten by its next run
            parameter.grad = torch.zeros_like(parameter)
    return loss.compiled(mode)


def uses_cuda_graphs(compile: bool | CompileMode, device: torch.device) -> bool:
    """Whether a step is replayed from CUDA graphs; gradients must then keep their place, zeroed rather than dropped."""
    return device.type == "cuda" and compile in ("reduce-overhead", "max-autotune")


def why_not_compile(device: torch.device) -> str | None:
    """Why torch.compile cannot work here, with the remedy; None if it can."""
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        return f"no C++ compiler {compiler!r}; install one for more speed"
    if device.type == "cuda" and not any(map(shutil.which, (os.environ.get("CC", "gcc"), "clang", "cc"))):
        return "no C compiler, which Triton needs; install gcc for more speed"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "Python's headers are missing; install them (python3-dev) for more speed"
    return None
