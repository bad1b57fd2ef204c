"""FLOPs in closed form against Lightning's measurement."""

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.throughput import measure_flops
from litgpt.model import GPT

from litgpt_warmstart.flops import matmul_flops_per_token, matmul_parameters
from litgpt_warmstart.scales import SCALES, resolve_config
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
