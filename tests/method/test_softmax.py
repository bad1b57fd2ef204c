"""The softmax that writes gradients over logits: eager, by Inductor, and by Triton."""

import os
import subprocess
import sys

import pytest
import torch
from torch._inductor.utils import run_and_get_code

from litgpt_warmstart.method.softmax import compiled_softmax, softmax_
from tests.conftest import cuda_only


def rows(number: int, classes: int, dtype: torch.dtype, scale: float = 1.0) -> tuple[torch.Tensor, ...]:
    """Logits, targets and shares of rows."""
    generator = torch.Generator().manual_seed(number)
    logits = (scale * torch.randn(number, classes, generator=generator)).to(dtype)
    targets = torch.randint(0, classes, (number, 1), generator=generator)
    return logits, targets, torch.rand(number, 1, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_a_row_becomes_its_gradient_and_gives_its_cross_entropy(dtype, scale):
    logits, targets, share = rows(7, 300, dtype, scale)
    exact = logits.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact, targets[:, 0], reduction="none")[:, None] * share
    (gradient,) = torch.autograd.grad(expected.sum(), exact)
    losses, made = softmax_(logits, targets, share, False)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-6)
    digits = 1e-6 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(logits.double() * made, gradient, rtol=digits, atol=1e-12)


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_it_makes_no_other_tensor_of_the_logits_size_and_of_fp32_takes_exp_once(small, dtype):
    torch.compiler.reset()
    _, code = run_and_get_code(compiled_softmax("cpu"), *rows(32, 4096, dtype), small)
    assert len(code) == 1 and "empty_strided_cpu((32, 4096)" not in code[0]
    of_rows = "empty_strided_cpu((32, 1)" in code[0]  # the maximum, or the sum where it is not taken afterwards
    assert of_rows == (not small or dtype == torch.bfloat16)
    assert code[0].count(".exp()") == (1 if dtype == torch.float32 else 2)


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_it_does_the_same_and_is_compiled_twice_at_most_for_chunks_of_many_sizes(small, dtype):
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    for number in range(2, 14):
        compiled, eager = rows(number, 96, dtype, 3.0), rows(number, 96, dtype, 3.0)
        found, expected = compiled_softmax("cpu")(*compiled, small), softmax_(*eager, small)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(compiled[0], eager[0])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_in_tritons_interpreter_its_kernel_does_the_same():
    pytest.importorskip("triton")
    code = """
import torch
from litgpt_warmstart.method import softmax, softmax_triton
from tests.method.test_softmax import rows
softmax_triton.BLOCK = 64
for dtype in (torch.float32, torch.float16):  # it knows no bf16
    kernel, eager = rows(5, 300, dtype, 30.0), rows(5, 300, dtype, 30.0)
    for found, expected in zip(softmax_triton.softmax_(*kernel, False), softmax.softmax_(*eager, False)):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(kernel[0], eager[0])
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"TRITON_INTERPRET": "1"})


@pytest.mark.gpu
@cuda_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [96, 50304])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_on_a_gpu_triton_does_the_same(dtype, classes, scale):
    gpu = [tensor.cuda() for tensor in rows(40, classes, dtype, scale)]
    eager = rows(40, classes, dtype, scale)
    losses, made = compiled_softmax("cuda")(*gpu, False)
    expected_losses, expected = softmax_(*eager, False)
    torch.testing.assert_close(losses.cpu(), expected_losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(made.cpu(), expected, rtol=1e-5, atol=0)
    digits = 1e-5 if dtype == torch.float32 else 8e-3
    torch.testing.assert_close(gpu[0].cpu(), eager[0], rtol=digits, atol=1e-6)
