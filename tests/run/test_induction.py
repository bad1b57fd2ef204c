"""The induction score against its definition, of models that copy and of models that do not."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from litgpt_warmstart.method.loss import NextTokenLoss
from litgpt_warmstart.run.induction import induction_score, repeated_tokens
from tests.conftest import FAMILIES, build, neox, randomized

CPU = torch.device("cpu")


class Copier(nn.Module):
    """Knows nothing but the token ``distance`` places before the next one, and that for sure."""

    def __init__(self, classes: int, distance: int) -> None:
        super().__init__()
        self.distance, self.lm_head = distance, nn.Linear(classes, classes, bias=False)
        self.lm_head.weight = nn.Parameter(40 * torch.eye(classes))

    def readout_input(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = torch.zeros(*input_ids.shape, len(self.lm_head.weight))
        earlier = input_ids[:, 1 : max(1, input_ids.shape[1] - self.distance + 1)]
        x[:, self.distance :] = F.one_hot(earlier, x.shape[-1]).float()
        return x

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.readout_input(input_ids))


@pytest.mark.parametrize("impl", ["full", "chunked"])
@pytest.mark.parametrize(("classes", "block_size"), [(64, 32), (500, 65)])
def test_a_model_that_copies_scores_minus_the_logarithm_of_the_vocabulary(classes, block_size, impl):
    repeated = repeated_tokens(classes, block_size, CPU)
    copier = Copier(classes, block_size // 2)
    assert induction_score(NextTokenLoss(copier, impl), repeated, 5) == pytest.approx(-math.log(classes), abs=1e-4)
    early = Copier(classes, block_size // 2 - 1)  # copies a neighbour: worse than knowing nothing
    assert induction_score(NextTokenLoss(early, impl), repeated, 5) > 30


def test_a_model_that_has_learned_nothing_scores_next_to_0():
    repeated = repeated_tokens(96, 64, CPU)
    assert abs(induction_score(NextTokenLoss(build(neox()), "chunked"), repeated, 4)) < 0.03


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("micro_batch_size", [3, 100])
def test_a_score_is_the_second_losses_of_the_same_tokens_less_their_first(family, micro_batch_size):
    model = randomized(build(FAMILIES[family](32, 4), FAMILIES[family](16)))
    repeated = repeated_tokens(90, 64, CPU)
    losses = F.cross_entropy(model(repeated[:, :-1]).transpose(1, 2), repeated[:, 1:], reduction="none")  # (64, 63)
    assert torch.equal(repeated[:, 1:32], repeated[:, 33:64])
    expected = (losses[:, 32:] - losses[:, :31]).mean().item()
    for impl in ("full", "chunked"):
        found = induction_score(NextTokenLoss(model, impl), repeated, micro_batch_size)
        assert found == pytest.approx(expected, abs=2e-5)


def test_tokens_are_the_same_each_time_of_the_whole_vocabulary_and_twice_in_a_sequence():
    state = torch.get_rng_state()
    repeated = repeated_tokens(50, 17, CPU)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(repeated, repeated_tokens(50, 17, CPU))
    assert repeated.shape == (240, 16) and torch.equal(repeated[:, :8], repeated[:, 8:])
    counts = torch.bincount(repeated[:, :8].flatten())
    assert len(counts) == 50 and counts.min() > 15 and counts.max() < 70  # 38 each
    assert repeated_tokens(50, 4096, CPU).shape == (4, 4096)


def test_scoring_leaves_gradients_modes_and_random_states_alone():
    model = build(neox())
    model.transformer.h[0].eval()
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    induction_score(NextTokenLoss(model, "chunked"), repeated_tokens(96, 64, CPU), 4)
    assert all(p.grad is None for p in model.parameters()) and torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes and not model.lm_head.gives_input
