"""Table 1 of arXiv 2411.07340 as LitGPT configs."""

import pytest
import torch
from litgpt.config import Config, name_to_config
from litgpt.model import GPT
from litgpt.utils import num_parameters

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method import scales

TABLE_1 = {  # name -> n_embd, n_head, head_size, parameters, tuned learning rate and batch size
    "5M": (48, 2, 24, 4_998_912, 0.03, 64),
    "10M": (96, 6, 16, 10_329_600, 0.01, 64),
    "22M": (192, 8, 24, 21_986_304, 0.003, 256),
    "35M": (288, 12, 24, 34_970_112, None, None),
    "70M": (512, 16, 32, 70_426_624, None, None),
}


@pytest.mark.parametrize("name", TABLE_1)
def test_scale_is_the_row_of_table_1(name):
    scales.register()
    n_embd, n_head, head_size, parameters, lr, batch = TABLE_1[name]
    config = Config.from_name(f"warmstart-{name.lower()}")
    with torch.device("meta"):
        assert num_parameters(GPT(config)) == parameters
    assert (config.n_embd, config.n_head, config.head_size, config.n_layer) == (n_embd, n_head, head_size, 6)
    assert (config.block_size, config.padded_vocab_size, config.vocab_size) == (1024, 50304, 50257)
    scale = scales.find_scale(name)
    assert (scale.base_lr, scale.global_batch_size) == (lr, batch)


def test_registering_twice_adds_nothing():
    scales.register()
    before = dict(name_to_config)
    scales.register()
    assert name_to_config == before and sum(name.startswith("warmstart-") for name in before) == 5


@pytest.mark.parametrize("target", ["70M", "70m", "warmstart-70m"])
def test_a_scale_has_a_short_name_and_a_litgpt_name(target):
    assert scales.resolve_config(target).n_embd == 512


def test_a_name_takes_the_given_vocabulary_and_a_file_keeps_its_own(tmp_path):
    assert scales.resolve_config("pythia-14m", padded_vocab_size=4096).padded_vocab_size == 4096
    (tmp_path / "model_config.yaml").write_text("{n_embd: 16, n_head: 2, padded_vocab_size: 96}")
    for target in (tmp_path, tmp_path / "model_config.yaml"):
        assert scales.resolve_config(str(target), padded_vocab_size=4096).padded_vocab_size == 96


def test_a_folder_named_like_a_scale_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "70M").mkdir()
    assert scales.resolve_config("70M").n_embd == 512


def test_a_config_that_is_not_there_is_told_with_the_names_that_would_do_as_well(tmp_path):
    for target in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(UserError, match="^no model config at .*: give a LitGPT name or an existing"):
            scales.resolve_config(str(target))


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("bias", 1, "true or false"),
        ("name", 5, "a word"),
        ("hf_config", 5, "names and values"),
        ("n_layer", "6", "a whole number"),
        ("norm_eps", "1e-5", "a number (1.0e-05 has a dot)"),
        ("head_size", 8.5, "a whole number or null"),
        ("sliding_window_indices", 1, "a list of whole numbers or null"),
        ("norm_class_name", "BatchNorm", "one of LayerNorm, RMSNorm"),
    ],
)
def test_a_field_of_another_type_is_told_in_a_users_words(field, value, told):
    with pytest.raises(UserError) as refused:
        scales.checked_config({field: value}, "'x.yaml'")
    assert str(refused.value).endswith(f": {field} is {value!r}: give {told}")
