"""The loss is chosen by the nearest measurement among those that are possible."""

import json

import pytest
import torch

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.run import loss_choice
from litgpt_warmstart.run.loss_choice import choose, device_name, read_figures
from tests.conftest import neox

CPU = torch.device("cpu")


def figure(speeds: dict[str, float], **changes: object) -> dict:
    row = dict(device="cpu", name=device_name(CPU), precision="32-true", compile=True, n_embd=48,
               padded_vocab_size=50304, torch=torch.__version__.partition("+")[0], tokens_per_sec=speeds,
               date="2026-01-01")  # fmt: skip
    return row | changes


@pytest.fixture
def write_figures(tmp_path, monkeypatch):
    def write(*rows: dict) -> None:
        (tmp_path / "figures.json").write_text(json.dumps(rows))
        monkeypatch.setattr(loss_choice, "FIGURES", tmp_path / "figures.json")

    return write


def chosen(n_embd: int = 48, precision: str = "32-true", compile: bool = True, **changes: object) -> str:
    config = neox(n_embd, **({"padded_vocab_size": 50304, "vocab_size": 50257} | changes))
    return choose("auto", config, precision, compile, CPU)[0]


def test_the_nearest_width_and_vocabulary_decide(write_figures):
    write_figures(
        figure({"full": 1, "chunked": 2}),
        figure({"full": 2, "chunked": 1}, n_embd=512),
        figure({"full": 3, "chunked": 2}, padded_vocab_size=512),
    )
    assert [chosen(48), chosen(96), chosen(192), chosen(1024)] == ["chunked", "chunked", "full", "full"]
    assert chosen(48, padded_vocab_size=1024, vocab_size=1000) == "full"


def test_among_ways_as_fast_the_one_with_the_fewest_logits_is_taken(write_figures):
    write_figures(figure({"full": 100, "chunked": 96, "torch": 99}), figure({"full": 100, "chunked": 94}, n_embd=512))
    assert [chosen(48), chosen(512)] == ["chunked", "full"]
    where = f"n_embd 48, 50,304 classes, 32-true, {device_name(CPU)}, compiled"
    assert choose("auto", neox(64), "32-true", True, CPU)[1] == f"nearest measurement: {where}"


def test_precision_and_compiling_go_before_width(write_figures):
    write_figures(
        figure({"full": 1, "chunked": 2}),
        figure({"full": 2, "chunked": 1}, n_embd=4096, precision="bf16-mixed"),
        figure({"full": 2, "chunked": 1}, n_embd=4096, compile=False),
    )
    assert chosen(48) == "chunked"
    assert chosen(48, "bf16-true") == chosen(48, compile=False) == "full"


def test_torch_own_is_taken_only_where_torch_has_it(write_figures, monkeypatch):
    write_figures(figure({"full": 1, "chunked": 2, "torch": 3}))
    assert chosen() == ("torch" if hasattr(torch.nn.functional, "linear_cross_entropy") else "chunked")
    monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy", raising=False)
    assert chosen() == "chunked"


def test_what_the_model_or_precision_rules_out_is_not_chosen(write_figures):
    write_figures(figure({"chunked": 9}), figure({"full": 1, "chunked": 2}))
    assert chosen(final_logit_softcapping=30.0) == "full"
    assert chosen(precision="16-mixed") != "chunked"


def test_without_any_measurement_on_the_device_chunks_are_taken(write_figures):
    write_figures(figure({"full": 1}, device="cuda"))
    assert chosen() == "chunked"


def test_an_impossible_one_is_refused_in_one_line():
    with pytest.raises(UserError, match="--loss_impl chunked: .*fp16"):
        choose("chunked", neox(), "16-mixed", True, CPU)
    assert choose("full", neox(), "16-mixed", True, CPU) == ("full", "as asked")


def test_the_kept_figures_can_be_read():
    figures = read_figures()
    assert {48, 192, 512} <= {f.n_embd for f in figures if f.device == "cpu" and f.precision == "32-true"}
    assert all(speed > 0 for f in figures for speed in f.tokens_per_sec.values())
