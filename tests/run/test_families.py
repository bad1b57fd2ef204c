"""Names, config.json and weights of each family: transformers computes what LitGPT does, whoever converts."""

import json
from dataclasses import replace

import pytest
import torch
from litgpt.config import Config, configs
from litgpt.model import GPT
from litgpt.scripts.convert_lit_checkpoint import convert_lit_checkpoint
from litgpt.utils import save_config

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.run.export import export
from litgpt_warmstart.run.families import CONVERTED_BY_NAME, find_family, hf_config, litgpt_name, read_hf_config
from tests.conftest import FAMILIES, llama, neox

LLAMA_3 = dict(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=32)
MODELS = {
    "gpt_neox": neox(48, 4),
    "phi": neox(48, 4, shared_attention_norm=True, lm_head_bias=True, gelu_approximate="tanh"),
    "llama": llama(48, 4),
    "llama-3": llama(48, 4, rope_adjustments=LLAMA_3, rope_base=500_000),
    "phi3": llama(48, 4, name="Phi-3-tiny"),
    "qwen2": llama(48, 4, attn_bias=True),
    "qwen3": llama(48, 4, norm_qk=True),
    "wide_heads": llama(48, 4, norm_qk=True, head_size=16),
    "olmo2": FAMILIES["olmo2"](48, 4),
    "scaled": neox(48, 4, attention_scores_scalar=36),
}


def written(config: Config, folder) -> torch.Tensor:
    """A plain checkpoint folder of random weights, and its logits."""
    torch.manual_seed(0)
    model = GPT(replace(config, name=litgpt_name(config))).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3)
    folder.mkdir()
    torch.save(model.state_dict(), folder / "lit_model.pth")
    save_config(model.config, folder)
    with torch.no_grad():
        return model(TOKENS)


TOKENS = torch.randint(0, 96, (2, 48), generator=torch.Generator().manual_seed(0))


def transformers_logits(folder) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model, loaded = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not loaded["missing_keys"] and not loaded["unexpected_keys"], loaded
    with torch.no_grad():
        return model.eval()(TOKENS).logits


@pytest.mark.parametrize("name", MODELS)
def test_exported_models_have_litgpts_logits_in_transformers(name, tmp_path):
    expected = written(MODELS[name], tmp_path / "source")
    export(tmp_path / "source", tmp_path / "out", "transformers")
    logits = transformers_logits(tmp_path / "out")
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", [*MODELS][:-2])  # LitGPT's own dies of OLMo 2, and leaves the scale out
def test_litgpts_own_conversion_takes_the_name_and_gives_the_same_logits(name, tmp_path, capsys):
    expected = written(MODELS[name], tmp_path / "source")
    convert_lit_checkpoint(tmp_path / "source", tmp_path / "out")
    torch.save(torch.load(tmp_path / "out/model.pth"), tmp_path / "out/pytorch_model.bin")  # as litgpt evaluate does
    (tmp_path / "out/config.json").write_text(json.dumps(hf_config(MODELS[name])))
    logits = transformers_logits(tmp_path / "out")
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("given", ["mine", *CONVERTED_BY_NAME[:5], "Phi-4", "Qwen3-0.6B", "Llama-3.2-1B", "OLMo-2-x"])
def test_a_name_begins_as_its_family_is_known_and_as_no_other_is(name, given):
    config = replace(MODELS[name], name="Phi-3-tiny" if name == "phi3" else given)
    family, written_name = find_family(config), litgpt_name(config)
    known = [p for p in CONVERTED_BY_NAME if written_name.lower().startswith(p)]
    assert bool(known) == bool(family.converted_by) and written_name.endswith(config.name)
    assert not known or written_name.lower().startswith(family.converted_by)
    assert litgpt_name(replace(config, name=written_name)) == written_name
    assert not written_name.startswith("Phi-4")  # of which LitGPT drops the readout


def test_a_model_that_transformers_cannot_hold_is_refused_by_the_part():
    with pytest.raises(UserError, match="post_mlp_norm True, which no model of transformers known here has"):
        hf_config(replace(llama(48, 4), post_mlp_norm=True))
    with pytest.raises(UserError, match="n_query_groups == n_head False"):
        hf_config(replace(neox(48, 4), n_query_groups=2))
    assert litgpt_name(replace(neox(48, 4), n_query_groups=2)) == "neox-48"
    with pytest.raises(UserError, match="rope_n_elem % 2 == 0 False"):  # it would rotate 4 dimensions of a head, not 3
        hf_config(neox(48, 4, rotary_percentage=0.25))


@pytest.mark.parametrize("name", ["gpt_neox", "phi"])
def test_a_config_json_that_does_not_tell_how_much_is_rotated_means_its_classs_default(name, tmp_path):
    import transformers

    config = replace(MODELS[name], n_embd=64, head_size=16)
    told = {entry: value for entry, value in hf_config(config).items() if not entry.startswith(("rotary", "partial"))}
    (tmp_path / "config.json").write_text(json.dumps(told))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters["partial_rotary_factor"]
    assert read_hf_config(tmp_path / "config.json", "mine").config.rotary_percentage == theirs


def test_the_config_json_of_each_model_that_litgpt_knows_is_read_back(tmp_path):
    """Its name and its count of tokens in use are all that a config.json does not tell."""
    told, path = [], tmp_path / "config.json"
    for each in configs:
        config = Config(**each)
        if find_family(config) is None:
            continue
        path.write_text(json.dumps(hf_config(config)))
        model = read_hf_config(path, config.name)
        apart = {name: getattr(config, name) for name in ("name", "hf_config", "vocab_size", "padding_multiple")}
        assert replace(model.config, **apart) == config
        told.append(model.family.model_type)
    assert len(told) > 100 and {"gpt_neox", "phi", "phi3", "llama", "qwen2", "qwen3", "olmo2"} == {*told}
