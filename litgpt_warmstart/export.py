"""A checkpoint for other tools: muP's attention scale folded into the queries, and transformers' names and config.

LitGPT reads muP's attention scale from model_config.yaml. transformers' models always divide scores by sqrt(head_size):
what ``litgpt convert_from_litgpt`` makes of a model whose heads were grown has other logits.
"""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from litgpt.config import Config
from litgpt.scripts.convert_lit_checkpoint import copy_weights_gpt_neox, copy_weights_llama
from litgpt.utils import save_config
from safetensors import SafetensorError
from safetensors.torch import save_file

from litgpt_warmstart import checkpoint, files
from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.model import check_supported

Format = Literal["transformers", "litgpt"]
TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "generation_config.json")

_PLAIN = dict(
    norm_qk=False, post_attention_norm=False, post_mlp_norm=False, shared_attention_norm=False, norm_1=True,
    norm_2=True, sliding_window_size=None, attention_logit_softcapping=None, final_logit_softcapping=None,
    rope_adjustments=None, rope_condense_ratio=1, rope_interleave=False, rope_indices=None, lm_head_bias=False,
    scale_embeddings=False,
)  # fmt: skip
GPT_NEOX = dict(_PLAIN, norm_class_name="LayerNorm", mlp_class_name="GptNeoxMLP", bias=True)
LLAMA = dict(
    _PLAIN, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", bias=False, attn_bias=False, parallel_residual=False,
    rotary_percentage=1.0,
)  # fmt: skip
"""What a LitGPT config must say for transformers' model of that name to compute the same."""


def fold_attention_scale(weights: Mapping[str, torch.Tensor], config: Config) -> tuple[dict[str, torch.Tensor], Config]:
    """Weights and config with the same logits whose scores are divided by sqrt(head_size).

    Rotary embedding is linear, so the factor goes into the rows of the queries, or into the gain and the bias of their
    norm.

    Args:
        weights: By LitGPT name, ``lit_model.pth``'s.
        config: With or without an ``attention_scores_scalar``.
    """
    scale = math.sqrt(config.head_size / (config.attention_scores_scalar or config.head_size))
    rows = config.n_head * config.head_size

    def fold(name: str, weight: torch.Tensor) -> torch.Tensor:
        if config.norm_qk:
            return weight * scale if ".attn.norm_q." in name else weight
        if not name.endswith((".attn.qkv.weight", ".attn.qkv.bias")):
            return weight
        return torch.cat((weight[:rows] * scale, weight[rows:]))  # q, then k and v

    folded = dict(weights) if scale == 1 else {name: fold(name, weight) for name, weight in weights.items()}
    return folded, replace(config, attention_scores_scalar=None)


def export(source: Path, out_dir: Path, format: Format) -> str:
    """Write a checkpoint folder for other tools, whole or not at all.

    Args:
        source: A LitGPT checkpoint folder, ours or stock.
        out_dir: The folder.
        format: ``transformers``: config.json, model.safetensors; ``litgpt``: a plain LitGPT checkpoint.

    Returns:
        transformers' class that loads it, or LitGPT's.

    Raises:
        UserError: transformers' two families of plain blocks cannot hold the model, or it has a part that warmstarting
            does not support.
    """
    header = checkpoint.read_header(source, "checkpoint")
    check_supported(header.config)
    weights, config = fold_attention_scale(checkpoint.stored_weights(header), header.config)
    described = transformers_config(config) if format == "transformers" else None
    with files.atomic_folder(out_dir, foreign_to_export) as partial:
        if header.tokenizer_dir:
            for name in TOKENIZER:  # not config.json, which would be another model's
                if (header.tokenizer_dir / name).is_file():
                    shutil.copy(header.tokenizer_dir / name, partial)
        if described is None:
            torch.save(weights, partial / checkpoint.WEIGHTS)
            save_config(config, partial)
            return "LitGPT"
        named: dict[str, torch.Tensor] = {}
        convert = copy_weights_gpt_neox if described["model_type"] == "gpt_neox" else copy_weights_llama
        convert(config, named, weights)
        described["dtype"] = str(weights["lm_head.weight"].dtype).removeprefix("torch.")
        whole = {name: weight.contiguous().clone() for name, weight in named.items()}  # views share storage
        try:
            save_file(whole, partial / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(one_line(error)) from error  # what a full disk is to atomic_folder
        (partial / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        # safetensors makes its file the owner's alone.
        shutil.copymode(partial / "config.json", partial / "model.safetensors")
    return described["architectures"][0]


def foreign_to_export(folder: Path) -> list[str]:
    """What in a folder is not of those that :func:`export` writes; without weights, all of it."""
    weights = (checkpoint.WEIGHTS, "model.safetensors")
    if not any((folder / name).is_file() for name in weights):
        return files.entries(folder)
    return files.others(folder, (*weights, checkpoint.CONFIG, "config.json", *TOKENIZER))


def transformers_config(config: Config) -> dict[str, Any]:
    """transformers' config.json of a model whose attention scale is the usual one.

    Raises:
        UserError: It is no GPT-NeoX and no Llama; names what is in the way.
    """
    shared = dict(
        hidden_size=config.n_embd, num_hidden_layers=config.n_layer, num_attention_heads=config.n_head,
        intermediate_size=config.intermediate_size, max_position_embeddings=config.block_size,
        vocab_size=config.padded_vocab_size, rope_theta=config.rope_base, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    if not (reasons := _in_the_way(config, GPT_NEOX)):
        if config.n_head * config.head_size != config.n_embd or config.n_query_groups != config.n_head:
            raise _cannot_hold(config, "heads that do not make up n_embd, or share keys")
        return dict(
            architectures=["GPTNeoXForCausalLM"], model_type="gpt_neox", **shared,
            hidden_act="gelu" if config.gelu_approximate == "none" else "gelu_pytorch_tanh",
            layer_norm_eps=config.norm_eps, rotary_pct=config.rotary_percentage, rotary_emb_base=config.rope_base,
            use_parallel_residual=config.parallel_residual, attention_bias=True,
        )  # fmt: skip
    if not (others := _in_the_way(config, LLAMA)):
        return dict(
            architectures=["LlamaForCausalLM"], model_type="llama", **shared, hidden_act="silu",
            head_dim=config.head_size, num_key_value_heads=config.n_query_groups, rms_norm_eps=config.norm_eps,
            attention_bias=False, mlp_bias=False,
        )  # fmt: skip
    raise _cannot_hold(config, ", ".join(min(reasons, others, key=len)))


def _in_the_way(config: Config, wanted: Mapping[str, Any]) -> list[str]:
    return [f"{name} {getattr(config, name)!r}" for name, value in wanted.items() if getattr(config, name) != value]


def _cannot_hold(config: Config, reason: str) -> UserError:
    return UserError(
        f"{config.name!r} has {reason}, which transformers' GPT-NeoX and Llama have not: pass --format litgpt, then use"
        " litgpt convert_from_litgpt on the result"
    )
