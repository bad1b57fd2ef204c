"""What the axes of each parameter run over, and where attention's rows go when they are padded."""

import re
from typing import Literal

import torch
from litgpt.config import Config
from litgpt.model import qkv_reassemble

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.scales import Sizes

Alignment = Literal["heads", "blocks", "literal", "interleaved"]
Axis = Literal["vocab", "n_embd", "intermediate", "qkv", "heads", "norm_q", "norm_k"]
Kind = Literal["embedding", "hidden", "readout", "gains"]

# Every parameter of LitGPT's dense GPT: name in its block (or in the model) -> what its weight's axes run over. A bias
# has the first of them.
_AXES: dict[str, tuple[Axis, ...]] = {
    "lm_head": ("vocab", "n_embd"),
    "transformer.wte": ("vocab", "n_embd"),
    "transformer.ln_f": ("n_embd",),
    "norm_1": ("n_embd",),
    "norm_2": ("n_embd",),
    "post_attention_norm": ("n_embd",),
    "post_mlp_norm": ("n_embd",),
    "attn.norm_q": ("norm_q",),
    "attn.norm_k": ("norm_k",),
    "attn.qkv": ("qkv", "n_embd"),
    "attn.proj": ("n_embd", "heads"),
    "mlp.fc": ("intermediate", "n_embd"),
    "mlp.fc_1": ("intermediate", "n_embd"),
    "mlp.fc_2": ("intermediate", "n_embd"),
    "mlp.proj": ("n_embd", "intermediate"),
}
_BLOCK = re.compile(r"^transformer\.h\.(\d+)\.")


def split(name: str) -> tuple[int | None, str]:
    """A parameter's block, None for one of the whole model, and its name in there."""
    found = _BLOCK.match(name)
    return (int(found[1]), name[found.end() :]) if found else (None, name)


def axes(name: str) -> tuple[Axis, ...]:
    """What the axes of a parameter of a LitGPT state dict run over, e.g. ``("qkv", "n_embd")``.

    Raises:
        KeyError: No LitGPT GPT of a supported family has such a parameter.
    """
    module, _, kind = split(name)[1].rpartition(".")
    if module not in _AXES or kind not in ("weight", "bias"):
        raise KeyError(f"{name} is no parameter of a dense LitGPT GPT")
    return _AXES[module] if kind == "weight" else _AXES[module][:1]


def is_gain(name: str) -> bool:
    """Whether a parameter is a norm's gain, whose neutral value is 1."""
    return name.endswith(".weight") and len(axes(name)) == 1


def kind_of(name: str) -> Kind:
    """The class of a parameter, of which each is shrunk as much as asked for; a norm's bias is a hidden one."""
    if is_gain(name):
        return "gains"
    return "readout" if name.startswith("lm_head.") else "embedding" if ".wte." in name else "hidden"


def axis_size(axis: Axis, config: Config) -> int:
    """Length of an axis in a model of this config."""
    sizes, per_head_norm = Sizes.of(config), config.norm_qk_type == "default"
    return {
        "vocab": sizes.padded_vocab_size,
        "n_embd": sizes.n_embd,
        "intermediate": sizes.intermediate_size,
        "qkv": sizes.q_rows + 2 * sizes.kv_rows,
        "heads": sizes.q_rows,
        "norm_q": sizes.head_size if per_head_norm else sizes.q_rows,
        "norm_k": sizes.head_size if per_head_norm else sizes.kv_rows,
    }[axis]


def shape_of(name: str, config: Config) -> tuple[int, ...]:
    """Shape of a parameter in a model of this config."""
    return tuple(axis_size(axis, config) for axis in axes(name))


def heads_reason(source: Config, target: Config) -> str | None:
    """Why attention heads cannot be kept one by one from source to target; None if they can."""
    old, new = Sizes.of(source), Sizes.of(target)
    for what, before, after in (
        ("head_size", old.head_size, new.head_size),
        ("query groups", old.n_query_groups, new.n_query_groups),
        ("queries per group", old.queries_per_group, new.queries_per_group),
        ("rotary channels", old.rope_n_elem, new.rope_n_elem),
    ):
        if after < before:
            return f"{what} {before} -> {after}"
    if source.rotary_percentage != target.rotary_percentage:
        return f"rotary_percentage {source.rotary_percentage} -> {target.rotary_percentage}"
    if source.rope_interleave or target.rope_interleave:
        return "interleaved rotary channels"
    if old.rope_n_elem % 2 or new.rope_n_elem % 2:
        return f"odd number of rotary channels {old.rope_n_elem} -> {new.rope_n_elem}"
    return None


def resolve_alignment(source: Config, target: Config, alignment: Alignment) -> tuple[Alignment, str | None]:
    """The alignment that is possible, and why it is not the one asked for (None if it is).

    Raises:
        UserError: Attention's rows do not fit into the target under the alignment.
    """
    reason = heads_reason(source, target) if alignment == "heads" else None
    alignment = "blocks" if reason else alignment
    rows: tuple[Axis, ...] = ("qkv", "heads", "norm_q", "norm_k") if source.norm_qk else ("qkv", "heads")
    for axis in rows:
        old, new = axis_size(axis, source), axis_size(axis, target)
        if alignment == "blocks" and axis == "qkv":
            old, new = Sizes.of(source).kv_rows, Sizes.of(target).kv_rows
        if old > new:
            raise UserError(
                f"attention of base {source.name!r} does not fit into target {target.name!r} ({axis} has {old} rows,"
                f" then {new}): choose a target with more or larger heads"
            )
    return alignment, reason


def axis_map(axis: Axis, source: Config, target: Config, alignment: Alignment) -> torch.Tensor:
    """Where each position of a source axis goes in the padded target under a possible alignment.

    Returns:
        Target positions, int64, shape ``(axis_size(axis, source),)``, all different.
    """
    old, new = Sizes.of(source), Sizes.of(target)
    rotary, plain = _rotary_map(old, new), torch.arange(old.head_size)
    if alignment == "heads":
        queries = torch.arange(new.q_rows).view(new.n_query_groups, new.queries_per_group, new.head_size)
        queries = queries[: old.n_query_groups, : old.queries_per_group]  # (groups, queries per group, channels)
        groups = torch.arange(new.kv_rows).view(new.n_query_groups, new.head_size)[: old.n_query_groups]
        if axis == "qkv":
            q, k, v = queries[..., rotary], new.q_rows + groups[:, rotary], new.q_rows + new.kv_rows + groups[:, plain]
            return torch.cat((q.flatten(), k.flatten(), v.flatten()))
        if axis == "heads":  # attn.proj reads the values' channels, which have no rotary pairs
            return queries[..., plain].flatten()
        if axis in ("norm_q", "norm_k"):
            if source.norm_qk_type == "default":
                return rotary
            return (queries if axis == "norm_q" else groups)[..., rotary].flatten()
    if axis == "qkv" and alignment == "blocks":
        kv = torch.arange(old.kv_rows)
        return torch.cat((torch.arange(old.q_rows), new.q_rows + kv, new.q_rows + new.kv_rows + kv))
    if axis == "qkv" and alignment == "interleaved":
        before, then = (qkv_reassemble(torch.arange(axis_size(axis, c)), c) for c in (source, target))
        return torch.argsort(torch.as_tensor(then))[torch.as_tensor(before)]
    return torch.arange(axis_size(axis, source))


def _rotary_map(source: Sizes, target: Sizes) -> torch.Tensor:
    """Channels of a head, shape (head_size,): LitGPT rotates channel j < n/2 together with j + n/2."""
    old, new, j = source.rope_n_elem, target.rope_n_elem, torch.arange(source.head_size)
    second_half = (j >= old // 2) & (j < old)
    return torch.where(second_half, j - old // 2 + new // 2, torch.where(j >= old, j - old + new, j))
