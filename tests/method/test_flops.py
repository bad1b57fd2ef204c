"""FLOPs in closed form: one count against Lightning's measurement, the other against the paper's terms by hand."""

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.throughput import measure_flops
from litgpt.model import GPT

from litgpt_warmstart.method.flops import hoffmann_flops_per_token, matmul_flops_per_token, matmul_parameters
from litgpt_warmstart.method.scales import SCALES, resolve_config
from tests.conftest import FAMILIES


@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: scale.short_name)
def test_flops_per_token_agree_with_measure_flops_to_2_percent(scale):
    config = resolve_config(scale.name)
    with torch.device("meta"):
        model = GPT(config)
        x = torch.randint(0, 1, (1, 1024))
    measured = measure_flops(model, lambda: model(x), lambda y: F.cross_entropy(y.flatten(0, 1), x.flatten()))
    assert matmul_flops_per_token(config, 1024) * 1024 == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_matmul_parameters_are_all_matrices_but_the_embedding(family):
    config = FAMILIES[family](16, 4)
    with torch.device("meta"):
        sizes = {n: p.numel() for n, p in GPT(config).named_parameters() if p.dim() == 2 and "wte" not in n}
    assert matmul_parameters(config) == sum(sizes.values())


def test_hoffmanns_count_is_appendix_f_worked_out_by_hand_for_5m():
    embeddings = logits = 4_945_084_416  # 2 x 1024 x 50304 x 48, for a sequence of 1024
    query_key_value = 14_155_776  # 2 x 3 x 1024 x 48 x (24 x 2)
    key_at_query = 100_663_296  # 2 x 1024 x 1024 x (24 x 2)
    softmax = 6_291_456  # 3 x 2 x 1024 x 1024
    softmax_at_query = 100_663_296  # 2 x 1024 x 1024 x (24 x 2)
    final_linear = 4_718_592  # 2 x 1024 x (24 x 2) x 48
    dense_block = 37_748_736  # 2 x 1024 x (48 x 192 + 48 x 192)
    layer = query_key_value + key_at_query + softmax + softmax_at_query + final_linear + dense_block
    forward = embeddings + 6 * layer + logits
    assert forward == 11_475_615_744
    per_token = hoffmann_flops_per_token(resolve_config("5M"), 1024)
    assert per_token * 1024 == 3 * forward == 34_426_847_232 and per_token == 33_619_968


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("block_size", [8, 64])
def test_the_two_counts_differ_by_the_embedding_as_a_product_and_the_softmax(family, block_size):
    config = FAMILIES[family](16, 4)
    more = hoffmann_flops_per_token(config, block_size) - matmul_flops_per_token(config, block_size)
    assert more == 3 * (2 * 96 * 16 + 2 * 3 * 4 * block_size)  # two layers of four heads
