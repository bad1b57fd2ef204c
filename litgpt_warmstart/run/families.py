"""Families of models: which of transformers' a LitGPT config is, its config.json, and the name LitGPT converts it by.

``litgpt convert_from_litgpt``, and ``evaluate`` with it, looks at the name of a config before it looks at its fields.
So a name must begin as its family's do, and must not begin as another's.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from litgpt.config import Config
from litgpt.scripts import convert_hf_checkpoint as hf_convert
from litgpt.scripts import convert_lit_checkpoint as litgpt_convert

from litgpt_warmstart.data.tokenizer_files import TokenizerFiles
from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.method.scales import Sizes, checked_config
from litgpt_warmstart.parsing import Positive, Size, Unreadable, parse, read_json

HF_CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"

CONVERTED_BY_NAME = ("phi", "qwen2.5", "qwq", "olmo-2-", "qwen3", "gemma-2", "gemma-3")
"""Beginnings of names, in lower case, that LitGPT 0.5.13's conversion goes by."""

_WHOLE_HEADS, _OWN_KEYS = "n_head * head_size == n_embd", "n_query_groups == n_head"
_EVEN = "rope_n_elem % 2 == 0"
"""transformers rotates one dimension more than LitGPT where their number is odd."""
_PLAIN = {_EVEN: True} | dict(
    norm_qk=False, post_attention_norm=False, post_mlp_norm=False, shared_attention_norm=False, norm_1=True,
    norm_2=True, sliding_window_size=None, attention_logit_softcapping=None, final_logit_softcapping=None,
    rope_adjustments=None, rope_condense_ratio=1, rope_interleave=False, rope_indices=None, lm_head_bias=False,
    scale_embeddings=False,
)  # fmt: skip
_NEOX = dict(_PLAIN, norm_class_name="LayerNorm", mlp_class_name="GptNeoxMLP", bias=True) | {_WHOLE_HEADS: True}
_LLAMA = dict(
    _PLAIN, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", bias=False, attn_bias=False, parallel_residual=False,
    rotary_percentage=1.0,
)  # fmt: skip
_ROPE_ADJUSTMENTS = dict(
    factor="factor", low_freq_factor="low_freq_factor", high_freq_factor="high_freq_factor",
    original_max_position_embeddings="original_max_seq_len",
)  # fmt: skip
"""Llama 3's slower rotation: entries of config.json, and LitGPT's names."""
_SIZES = dict(
    hidden_size="n_embd", num_hidden_layers="n_layer", num_attention_heads="n_head",
    intermediate_size="intermediate_size", max_position_embeddings="block_size", vocab_size="padded_vocab_size",
)  # fmt: skip
"""What every config.json has, and LitGPT's names."""
_GELUS = dict(gelu="none", gelu_new="tanh", gelu_fast="tanh", gelu_pytorch_tanh="tanh")
"""Names of activations, and LitGPT's ``gelu_approximate``."""


@dataclass(frozen=True)
class Family:
    """A family of transformers' models."""

    model_type: str
    architecture: str
    """transformers' class."""
    wanted: Mapping[str, Any]
    """What a LitGPT config must say for that class to compute the same; some of it is an equation of its fields."""
    fields: Mapping[str, str]
    """Entries of config.json, beside those that all families share, and the fields of LitGPT's config they have.

    Others, such as biases and dropout, are the class's defaults."""
    convert: Callable[..., None]
    """LitGPT's own conversion of weights to transformers' names."""
    read: Callable[..., None]
    """LitGPT's own conversion of weights from them."""
    prefix: str
    """Put before a name that LitGPT would convert as another family's."""
    converted_by: tuple[str, ...] = ()
    """Beginnings of names by which LitGPT converts it; without any it goes by the config's fields."""
    renamed: tuple[str, str] = ("", "")
    """A part of LitGPT's names that LitGPT's conversion knows by another name, and that name."""

    def in_the_way(self, config: Config) -> list[str]:
        """What the config has that transformers' class has not, in words; empty where it can hold the model."""
        if set(config.rope_adjustments or ()) == {*_ROPE_ADJUSTMENTS.values()}:  # all can do it
            config = replace(config, rope_adjustments=None)
        has = vars(config) | {_OWN_KEYS: config.n_query_groups == config.n_head}
        has[_EVEN] = (config.rope_n_elem or 0) % 2 == 0
        has[_WHOLE_HEADS] = config.n_head * Sizes.of(config).head_size == config.n_embd
        return [f"{name} {has[name]!r}" for name, value in self.wanted.items() if has[name] != value]

    def named(self, weights: Mapping[str, Any], config: Config) -> dict[str, Any]:
        """A plain LitGPT checkpoint's weights by transformers' names."""
        found: dict[str, Any] = {}
        known = {name.replace(*self.renamed): weight for name, weight in weights.items()}
        self.convert(replace(config, name=litgpt_name(config)), found, known)
        return found

    def reader(self, config: Config) -> Callable[..., None]:
        """Adds the weights of one file after another, by transformers' names, to a dict of them by LitGPT's."""
        config = replace(config, name=self.prefix)  # whatever it is called
        whole_qkv = self.model_type == "gpt_neox"  # q, k and v of others may lie in several files
        return partial(self.read, config) if whole_qkv else partial(self.read, config, {})


_LLAMA_FIELDS = dict(head_dim="head_size", num_key_value_heads="n_query_groups", rms_norm_eps="norm_eps")
FAMILIES = (
    Family("gpt_neox", "GPTNeoXForCausalLM", _NEOX | {_OWN_KEYS: True},
           dict(layer_norm_eps="norm_eps", rotary_pct="rotary_percentage", rotary_emb_base="rope_base",
                use_parallel_residual="parallel_residual"),
           litgpt_convert.copy_weights_gpt_neox, hf_convert.copy_weights_gpt_neox, "pythia-"),
    Family("phi", "PhiForCausalLM", _NEOX | dict(shared_attention_norm=True, lm_head_bias=True, parallel_residual=True),
           dict(layer_norm_eps="norm_eps", partial_rotary_factor="rotary_percentage",
                num_key_value_heads="n_query_groups"),
           litgpt_convert.copy_weights_phi, hf_convert.copy_weights_phi, "phi-", ("phi",)),
    Family("phi3", "Phi3ForCausalLM", _LLAMA | {_WHOLE_HEADS: True},
           _LLAMA_FIELDS | dict(original_max_position_embeddings="block_size"),
           litgpt_convert.copy_weights_phi, hf_convert.copy_weights_phi, "Phi-3-", ("phi-3", "phi-4")),
    Family("llama", "LlamaForCausalLM", _LLAMA, _LLAMA_FIELDS,
           litgpt_convert.copy_weights_llama, hf_convert.copy_weights_hf_llama, "Llama-"),
    Family("qwen2", "Qwen2ForCausalLM", _LLAMA | dict(attn_bias=True), _LLAMA_FIELDS,
           litgpt_convert.copy_weights_qwen_2_5, hf_convert.copy_weights_qwen_2_5, "Qwen2.5-", ("qwen2.5", "qwq")),
    Family("qwen3", "Qwen3ForCausalLM", _LLAMA | dict(norm_qk=True, norm_qk_type="default"), _LLAMA_FIELDS,
           litgpt_convert.copy_weights_qwen_3, hf_convert.copy_weights_qwen_3, "Qwen3-", ("qwen3",)),
    Family("olmo2", "Olmo2ForCausalLM",
           _LLAMA | dict(norm_qk=True, norm_qk_type="olmo2", post_attention_norm=True, post_mlp_norm=True,
                         norm_1=False, norm_2=False) | {_WHOLE_HEADS: True},
           _LLAMA_FIELDS, litgpt_convert.copy_weights_olmo2, hf_convert.copy_weights_olmo2, "OLMo-2-", ("olmo-2-",),
           renamed=(".post_attention_norm.", ".norm_2.")),
)  # fmt: skip
"""In the order in which they are tried: a phi-3 has the fields of a Llama, and is known by its name."""


def find_family(config: Config) -> Family | None:
    """The family whose class in transformers computes the same; None where there is none."""
    for family in FAMILIES:
        known = family.model_type != "phi3" or config.name.lower().startswith(family.converted_by)
        if known and not family.in_the_way(config):
            return family
    return None


def known_family(config: Config, remedy: str = "") -> Family:
    """The family of a model.

    Raises:
        UserError: No class of transformers computes the same: names what keeps the model out of the nearest one.
    """
    if family := find_family(config):
        return family
    nearest = min((family.in_the_way(config) for family in FAMILIES), key=len)
    raise UserError(f"{config.name!r} has {', '.join(nearest)}, which no model of transformers known here has{remedy}")


def litgpt_name(config: Config) -> str:
    """The model's name, by which LitGPT's conversion finds its family: as it is, or with the family's prefix."""
    family, name = find_family(config), config.name.lower()
    if family is None:
        return config.name
    if family.converted_by:
        # LitGPT leaves the readout of a "Phi-4" out, as if it were the embedding.
        fits = name.startswith(family.converted_by) and not config.name.startswith("Phi-4")
        fits = fits and not (family.model_type == "phi" and name.startswith(("phi-3", "phi-4")))
    else:
        fits = not name.startswith(CONVERTED_BY_NAME)
    return (config.name if fits else f"{family.prefix}{config.name}").replace("falcon", "Falcon")  # anywhere in a name


def hf_config(config: Config, tokenizer: TokenizerFiles | None = None, dtype: str = "float32") -> dict[str, Any]:
    """transformers' config.json of a plain LitGPT checkpoint of weights of a dtype; raises as :func:`known_family`."""
    family = known_family(config)
    rope: dict[str, Any] = dict(rope_theta=config.rope_base)
    if adjusted := config.rope_adjustments:
        rope["rope_scaling"] = dict(
            rope_type="llama3", **{entry: adjusted[name] for entry, name in _ROPE_ADJUSTMENTS.items()}
        )
    activation = "gelu" if config.gelu_approximate == "none" else "gelu_pytorch_tanh"
    if config.mlp_class_name == "LLaMAMLP":
        activation = "silu"
    return dict(
        architectures=[family.architecture], model_type=family.model_type, tie_word_embeddings=False,
        pad_token_id=None, dtype=dtype, hidden_act=activation, **rope, **special_ids(tokenizer),
        **{entry: getattr(config, field) for entry, field in (_SIZES | {**family.fields}).items()},
    )  # fmt: skip


class HFModel(NamedTuple):
    """What a config.json says."""

    family: Family
    config: Config
    """The same model as LitGPT's."""
    tied: bool
    """Whether embedding and readout are one tensor. LitGPT's are always two."""


def read_hf_config(path: Path, name: str) -> HFModel:
    """Read the config.json of a model of transformers'.

    Args:
        path: The file; entries of a rotation stand in it as transformers 5 writes them, or as earlier ones did.
        name: Of the model; it gets its family's prefix where it needs one.

    Raises:
        UserError: The file is damaged, its family is not known here, or LitGPT has no such model.
    """
    content, where = read_json(path), repr(str(path))
    asked, known = content.get("model_type"), [family.model_type for family in FAMILIES]
    if asked not in known:
        raise UserError(
            f"{where} has model_type {one_line(repr(asked), 60)}, known are {', '.join(known)}: give one of these, or a"
            " LitGPT checkpoint, as litgpt download makes"
        )
    family = FAMILIES[known.index(asked)]
    eps = next(entry for entry, field in family.fields.items() if field == "norm_eps")
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    try:
        sizes = parse(dict[str, Size], {entry: content.get(entry) for entry in _SIZES})
        parse(dict[str, Positive], {eps: content.get(eps)})
        rope = parse(dict[str, Any], rope)
        kind = rope.get("rope_type") or rope.get("type") or "default"
        entries = {entry: rope.get(entry) for entry in _ROPE_ADJUSTMENTS} if kind == "llama3" else {}
        adjustments = parse(dict[str, Positive], entries)
        theta = parse(Positive | None, _first((rope, content), "rope_theta", "rotary_emb_base"))
        rotated = parse(Positive | None, _first((rope, content), "partial_rotary_factor", "rotary_pct"))
        window = parse(int | None, content.get("sliding_window") if content.get("use_sliding_window", True) else None)
    except Unreadable as error:
        raise UserError(f"{where} is damaged: {error.reason}") from error
    act, acts = str(content.get("hidden_act")), list(_GELUS)
    if family.wanted["mlp_class_name"] == "LLaMAMLP":
        acts = ["silu", "swish"]
    for entry, has, fits in (
        ("hidden_act", act, act in acts),
        ("rope_type", kind, kind in ("default", "llama3")),
        ("sliding_window", window, window is None or window >= sizes["max_position_embeddings"]),
    ):
        if not fits:
            raise UserError(f"{where} has {entry} {one_line(repr(has), 60)}: no {asked} known here has that")
    fields: dict[str, Any] = {field: value for field, value in family.wanted.items() if field.isidentifier()}
    fields |= {field: content[entry] for entry, field in family.fields.items() if content.get(entry) is not None}
    fields |= {field: sizes[entry] for entry, field in _SIZES.items()}
    fields |= dict(name=name, vocab_size=sizes["vocab_size"], gelu_approximate=_GELUS.get(act, "none"))
    if theta is not None:
        fields["rope_base"] = int(theta) if theta.is_integer() else theta
    if rotated is not None or asked == "phi":
        fields["rotary_percentage"] = rotated or 0.5  # PhiConfig's default; GPTNeoXConfig has LitGPT's
    if adjustments:
        fields["rope_adjustments"] = {_ROPE_ADJUSTMENTS[entry]: value for entry, value in adjustments.items()}
    config = checked_config(fields, where, "a model that LitGPT has")
    found = family.in_the_way(config)
    if Sizes.of(config).rope_n_elem % 2:  # the two libraries do different things then
        found.append(f"an odd number of rotated channels, {Sizes.of(config).rope_n_elem}")
    if found:
        raise UserError(f"{where} has {', '.join(found)}: no {asked} known here has that")
    return HFModel(family, replace(config, name=litgpt_name(config)), content.get("tie_word_embeddings") is True)


def _first(contents: Iterable[Mapping[str, Any]], *entries: str) -> Any:
    """The first of some entries that one of several mappings has."""
    found = (content[entry] for content in contents for entry in entries if content.get(entry) is not None)
    return next(found, None)


def special_ids(tokenizer: TokenizerFiles | None) -> dict[str, int | None]:
    """The ids that begin and end a text, by transformers' names."""
    return dict(bos_token_id=tokenizer and tokenizer.bos_id, eos_token_id=tokenizer and tokenizer.eos_id)


def write_hf_configs(folder: Path, config: Config, tokenizer: TokenizerFiles | None, dtype: str = "float32") -> None:
    """Write config.json and generation_config.json into a folder that is being filled; see :func:`hf_config`.

    Nothing is written where transformers has no family for the model.
    """
    if find_family(config) is None:
        return
    contents = {HF_CONFIG: hf_config(config, tokenizer, dtype), GENERATION_CONFIG: special_ids(tokenizer)}
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
