"""Every way of head and cross entropy gives the plain loss, in fp32, and its gradients."""

from collections import Counter
from typing import get_args

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method import loss as loss_module
from litgpt_warmstart.method.loss import (
    IGNORE_INDEX,
    LossImpl,
    NextTokenLoss,
    choose,
    chunk_size,
    chunked_cross_entropy,
)
from litgpt_warmstart.method.model import MuGPT
from tests.conftest import FAMILIES, build, neox, randomized

IMPLS = get_args(LossImpl)


def batch(block_size: int = 33, classes: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets, a fifth of which does not count."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, classes, (3, block_size + 1), generator=generator)
    targets = tokens[:, 1:].clone()
    targets[torch.rand(targets.shape, generator=generator) < 0.2] = IGNORE_INDEX
    return tokens[:, :-1], targets


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.double() for name, parameter in model.named_parameters()}


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_is_mean_cross_entropy_in_fp32_over_the_targets_that_count(impl, dtype):
    model = randomized(build(neox())).to(dtype)
    input_ids, targets = batch()
    found = NextTokenLoss(model, impl)(input_ids, targets)
    logits = model(input_ids).float()
    expected = F.cross_entropy(logits[targets != IGNORE_INDEX], targets[targets != IGNORE_INDEX])
    tolerance = 1e-6 if dtype == torch.float32 else 2e-3  # the chunked keeps more of bf16 than the plain one
    assert found.dtype == torch.float32 and found.item() == pytest.approx(expected.item(), rel=tolerance)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_in_fp32_agree_with_float64_to_1e_5(impl, family, monkeypatch):
    monkeypatch.setitem(loss_module.CHUNK_LOGITS, "cpu", 32 * 96)  # several chunks
    model = build(FAMILIES[family](32, 4), mup_base=FAMILIES[family](16, 4))  # a readout multiplier of 2
    if model.lm_head.bias is not None:
        torch.nn.init.normal_(model.lm_head.bias)
    input_ids, targets = batch()
    found = NextTokenLoss(model, impl)(input_ids, targets)
    found_gradients = gradients(model, found)
    exact = NextTokenLoss(model.double(), "full")
    logits = exact.gpt(input_ids).flatten(0, 1)
    expected = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE_INDEX)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, gradient in gradients(model, expected).items():
        assert relative_error(found_gradients[name], gradient) < 1e-5, name


@pytest.mark.parametrize("confident", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("emulated", [True, False])
def test_gradients_in_bf16_are_no_worse_than_1_5_times_the_plain_ones(confident, emulated, monkeypatch):
    """Of tokens that are well predicted, too, of whose products little is left."""
    monkeypatch.setattr(loss_module, "cpu_has_bf16", lambda: not emulated)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(512, 64, generator=generator)
    targets = torch.randint(0, 512, (1024,), generator=generator)
    x = torch.randn(1024, 64, generator=generator) * 0.1
    sure = torch.rand(1024, generator=generator) < confident
    x = x + 0.2 * weight[targets] * sure[:, None]
    x, weight = x.bfloat16().float(), weight.bfloat16().float()  # the input's own rounding is not in question

    def found(bf16: bool, chunked: bool) -> list[torch.Tensor]:
        dtype = torch.float32 if bf16 else torch.float64
        leaves = [x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            if chunked:
                loss = chunked_cross_entropy(*leaves, None, targets, chunk_tokens=256)
            else:
                loss = F.cross_entropy(F.linear(*leaves).to(dtype), targets)
        return [g.double() for g in torch.autograd.grad(loss, leaves)]

    exact = found(False, False)
    plain, ours = found(True, False), found(True, True)
    for e, p, o in zip(exact, plain, ours, strict=True):
        assert relative_error(o, e) <= 1.5 * relative_error(p, e)


@pytest.mark.parametrize("impl", IMPLS)
def test_under_fabrics_bf16_true_the_loss_keeps_its_digits(impl):
    fabric = L.Fabric(accelerator="cpu", devices=1, precision="bf16-true")
    with fabric.init_module():
        model = MuGPT(neox())
    module = fabric.setup(NextTokenLoss(model, impl))
    input_ids, targets = batch()
    logits = model(input_ids).double().flatten(0, 1)
    expected = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE_INDEX).item()
    with torch.no_grad():
        found = module(input_ids, targets)
    assert found.dtype == torch.float32 and found.item() == pytest.approx(expected, rel=1e-3)


@settings(max_examples=40)
@given(
    tokens=st.integers(1, 50),
    chunk_tokens=st.integers(1, 60),
    with_bias=st.booleans(),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 5),
)
def test_chunks_of_any_size_give_the_loss_of_the_whole(tokens, chunk_tokens, with_bias, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(tokens, 8, generator=generator) * scale).requires_grad_()
    weight = torch.randn(11, 8, generator=generator, requires_grad=True)
    bias = torch.randn(11, generator=generator, requires_grad=True) if with_bias else None
    targets = torch.randint(0, 11, (tokens,), generator=generator)
    targets[1:][torch.rand(tokens - 1, generator=generator) < 0.3] = IGNORE_INDEX
    leaves = [leaf for leaf in (x, weight, bias) if leaf is not None]
    found = chunked_cross_entropy(x, weight, bias, targets, chunk_tokens=chunk_tokens)
    expected = F.cross_entropy(F.linear(x, weight, bias).double(), targets, ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    pairs = zip(torch.autograd.grad(3 * found, leaves), torch.autograd.grad(3 * expected, leaves), strict=True)
    for ours, plain in pairs:
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("scale", [39.0, 41.0, 1000.0])
def test_large_logits_have_their_maximum_taken_off(scale):
    leaves = [(scale * torch.eye(4)).requires_grad_(), torch.cat((torch.eye(4), -torch.eye(4))).requires_grad_()]
    targets = torch.tensor([0, 5, 2, 7])
    found = chunked_cross_entropy(*leaves, None, targets)
    expected = F.cross_entropy(F.linear(*leaves).double(), targets)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    for ours, plain in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6 * scale)


@given(
    tokens=st.integers(1, 2**20),
    classes=st.integers(1, 2**18),
    n_embd=st.integers(1, 8192),
    device=st.sampled_from(["cpu", "cuda"]),
)
def test_a_chunks_logits_stay_within_the_limit_unless_it_has_twice_as_many_tokens_as_channels(
    tokens, classes, n_embd, device
):
    size = chunk_size(tokens, classes, n_embd, device)
    assert size >= 1
    assert size <= 2 * n_embd + 32 or size * classes <= loss_module.CHUNK_LOGITS[device] + 32 * classes
    assert size >= min(tokens, 2 * n_embd) // 2


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_compiled_a_chunk_has_three_products_and_two_passes_in_one_graph(precision, monkeypatch):
    monkeypatch.setattr(loss_module, "cpu_has_bf16", lambda: True)
    monkeypatch.setitem(loss_module.CHUNK_LOGITS, "cpu", 32 * 96)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    fabric = L.Fabric(accelerator="cpu", devices=1, precision=precision)
    module = fabric.setup(NextTokenLoss(build(neox()), "chunked").compiled())
    input_ids, targets = torch.ones(4, 32, dtype=torch.long), torch.ones(4, 32, dtype=torch.long)  # 4 chunks
    fabric.backward(module(input_ids, targets))
    assert not torch._dynamo.utils.counters["graph_break"]
    with torch.profiler.profile(record_shapes=True) as profile:
        fabric.backward(module(input_ids, targets))
    events = [event for event in profile.events() if event is not None]
    of_logits = Counter(
        event.name for event in events if [32, 96] in event.input_shapes or [96, 32] in event.input_shapes
    )
    assert of_logits.pop("aten::mm", 0) + of_logits.pop("aten::addmm_", 0) + of_logits.pop("aten::addmm", 0) == 12
    moving_nothing = {"aten::slice", "aten::numpy_T", "aten::permute", "aten::as_strided", "aten::resolve_conj"}
    at_the_target = {"aten::gather", "aten::index_put_", "aten::_index_put_impl_"}
    sums = of_logits.pop("aten::sum", 0)
    assert of_logits.keys() <= moving_nothing | at_the_target, of_logits
    assert sums == (4 if precision == "32-true" else 0)
    assert sum(event.name.startswith("Torch-Compiled Region") for event in events) == 1 + 4


def test_without_gradients_none_are_made_and_the_readout_gives_logits_again():
    model = build(neox())
    before = model(batch()[0])
    with torch.no_grad():
        found = NextTokenLoss(model, "chunked")(*batch())
    assert not found.requires_grad and all(p.grad is None for p in model.parameters())
    assert torch.equal(model(batch()[0]), before)


LARGE, CAPPED = dict(vocab_size=50304, padded_vocab_size=50304), dict(final_logit_softcapping=30.0)


@pytest.mark.parametrize(
    ("asked", "model", "precision", "before", "chosen"),
    [
        ("auto", LARGE, "bf16-mixed", None, ("chunked", "as fast as full or faster, in less memory")),
        ("auto", CAPPED, "32-true", None, ("full", "the only one possible")),
        ("full", CAPPED, "16-mixed", None, ("full", "as asked")),
        ("auto", {}, "bf16-mixed", "full", ("full", "as before")),
        ("auto", {}, "bf16-mixed", "chunked", ("chunked", "as before")),
        ("auto", {}, "bf16-mixed", "torch", ("chunked", "before: torch, which is no more")),
        ("auto", {}, "16-mixed", "torch", ("full", "the only one possible")),
    ],
)
def test_the_loss_is_chosen_by_what_is_possible_and_what_was_before(asked, model, precision, before, chosen):
    assert choose(asked, neox(**model), precision, before) == chosen


@pytest.mark.parametrize(("model", "precision", "reason"), [(CAPPED, "32-true", "caps its"), ({}, "16-mixed", "fp16")])
def test_a_loss_that_cannot_be_taken_is_refused_in_one_line(model, precision, reason):
    with pytest.raises(UserError, match=f"--loss_impl chunked: .*{reason}"):
        choose("chunked", neox(**model), precision)
