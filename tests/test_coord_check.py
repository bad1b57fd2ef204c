"""Coordinate check (arXiv 2203.03466, appendix D.1): activations keep their size over width under muP, not under SP."""

import math

import pytest
import torch
from litgpt.config import Config
from mup.coord_check import get_coord_data

from tests.conftest import build

WIDTHS = (48, 96, 192, 384)
N_LAYER, BATCH, BLOCK, VOCAB = 4, 4, 32, 256


def config(n_embd: int) -> Config:
    return Config(
        name=f"neox-{n_embd}", block_size=BLOCK, n_layer=N_LAYER, n_embd=n_embd, n_head=n_embd // 24,
        vocab_size=VOCAB, padded_vocab_size=VOCAB,
    )  # fmt: skip


def slopes(parametrization: str) -> dict[str, float]:
    """Log-log slope of each block's mean L1 activation against width after 4 Adam steps, over 8 seeds."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCAB, (BATCH, BLOCK + 1), generator=generator)
    models = {
        width: lambda w=width: build(
            config(w), config(WIDTHS[0] if parametrization == "mup" else w), seed=torch.initial_seed()
        )
        for width in WIDTHS
    }
    frame = get_coord_data(
        models, [(tokens[:, :-1], tokens[:, 1:].flatten())], optimizer="adam", lr=1e-2, mup=parametrization == "mup",
        nsteps=4, nseeds=8, flatten_output=True, cuda=False, show_progress=False,
        filter_module_by_name=lambda name: name.startswith("transformer.h.") and name.count(".") == 2,
    )  # fmt: skip
    means = frame[frame["t"] == 4].groupby(["module", "width"])["l1"].mean()
    x = [math.log2(width) for width in WIDTHS]
    centre = sum(x) / len(x)
    found = {}
    for module in sorted(set(frame["module"])):
        y = [math.log2(means[module, width]) for width in WIDTHS]
        found[module] = sum((a - centre) * b for a, b in zip(x, y, strict=True)) / sum((a - centre) ** 2 for a in x)
    return found


@pytest.mark.slow
def test_block_activations_do_not_grow_with_width_under_mup():
    found = slopes("mup")
    assert len(found) == N_LAYER
    assert all(abs(slope) < 0.2 for slope in found.values()), found


@pytest.mark.slow
def test_the_last_blocks_activations_grow_with_width_under_sp():
    found = slopes("sp")
    assert found[f"transformer.h.{N_LAYER - 1}"] > 0.5, found
