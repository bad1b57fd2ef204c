"""The loss is the plain one, in fp32, over the targets that count."""

import pytest
import torch
import torch.nn.functional as F

from litgpt_warmstart.loss import IGNORE_INDEX, NextTokenLoss
from tests.conftest import build, neox, randomized


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_is_mean_cross_entropy_in_fp32_over_the_targets_that_count(dtype):
    model = randomized(build(neox())).to(dtype)
    tokens = torch.randint(0, 96, (2, 33), generator=torch.Generator().manual_seed(0))
    targets = tokens[:, 1:].clone()
    targets[1] = IGNORE_INDEX
    loss = NextTokenLoss(model)(tokens[:, :-1], targets)
    expected = F.cross_entropy(model(tokens[:1, :-1])[0].float(), tokens[0, 1:])
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=1e-6)
