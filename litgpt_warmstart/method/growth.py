r"""Growth: shrink, zero-pad and perturb one tensor (eq. 1 of arXiv 2411.07340).

    source (2, 3)              initial target (4, 5)          grown target

    a b c                      n n n n n                      la+n lb+n lc+n n n
    d e f    -> shrink l ->    n n n n n    -> add where ->   ld+n le+n lf+n n n
                               n n n n n       the map says   n    n    n    n n
                               n n n n n                      n    n    n    n n

with l = lambda_shrink and n drawn from the target's muP initialization. The map is the identity along n_embd and the
MLP's width. Along attention's rows it depends on the alignment; for ``heads``, with fused rows q0 q1 k0 k1 v0 v1 of
heads of size 2 growing to 3 heads of size 3, each letter goes to its own head of its own block:

    source rows   q0q0 q1q1           k0k0 k1k1           v0v0 v1v1
    target rows   q0q0. q1q1. ...     k0k0. k1k1. ...     v0v0. v1v1. ...

Norm gains have mean 1, not 0, so they are shrunk towards 1, and new channels get 1.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from litgpt.config import Config

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.model import check_supported
from litgpt_warmstart.method.scales import Sizes

Alignment = Literal["heads", "blocks", "literal"]
Gains = Literal["shrunk", "added", "copied", "reset"]


@dataclass(frozen=True)
class Growth:
    """How the source's weights become the target's: what is asked for.

    Every command that grows has a flag for each field, and what is written of a run tells each: add an option here. Its
    default must be what was done before, for records that lack it; an older version refuses one that has it: raise
    ``run.record.FORMAT_VERSION``, and it says why.
    """

    shrink: float = 0.4
    """lambda_shrink in [0, 1]; 0 trains from scratch under muP, on the same batches"""
    alignment: Alignment = "heads"
    """Where the rows of attention go: ``heads`` keeps each head, ``blocks`` each of q, k and v, and ``literal`` pads
    the fused tensor as it stands, for comparison only"""
    perturb: float = 1.0
    """Multiplier of the standard deviation sigma_muP that is added; 0 adds nothing"""
    gains: Gains = "shrunk"
    """What becomes of norm gains: ``shrunk`` towards 1, ``added`` to 1 after shrinking (eq. (1) as it stands),
    ``copied``, or ``reset`` to 1"""

    def __post_init__(self) -> None:
        for field in fields(Growth):
            choices, value = get_args(field.type), getattr(self, field.name)
            if choices and value not in choices:
                raise UserError(f"--{field.name} {value!r} is none of {', '.join(choices)}")
        if not 0 <= self.shrink <= 1:
            raise UserError(f"--shrink must lie in [0, 1], got {self.shrink}")
        if not 0 <= self.perturb < math.inf:
            raise UserError(f"--perturb must not be negative, got {self.perturb}")
        if self.shrink == 0 and self.perturb == 0:
            raise UserError("--shrink 0 with --perturb 0 leaves no weights: change one of them")

    @property
    def options(self) -> dict[str, Any]:
        """The options by name, as plain values."""
        return {field.name: getattr(self, field.name) for field in fields(Growth)}

    @property
    def without_source(self) -> "Growth":
        """The same where nothing is left of the source: no rows of it to align, and no gain."""
        options: dict[str, Any] = self.options | dict(shrink=0.0, alignment=Growth.alignment, gains=Growth.gains)
        return Growth(**options)

    @property
    def from_scratch(self) -> bool:
        """Whether nothing of the source is left, and muP's own initialization is all there is."""
        return self.shrink == 0 and self.without_source == Growth(shrink=0.0)

    @property
    def label(self) -> str:
        """What tells it from other growths in a few words: shrink, and what is not as by default."""
        words = [f"shrink {self.shrink:g}"]
        for field in fields(Growth)[1:]:
            value = getattr(self, field.name)
            if value != field.default:
                words.append(f"{field.name} {value:g}" if isinstance(value, float) else f"{field.name} {value}")
        return ", ".join(words)

    def noise(self, shape: torch.Size, std: float, generator: torch.Generator) -> torch.Tensor:
        """What a matrix begins with, fp32, on the CPU, for muP's standard deviation; as by default from scratch."""
        return torch.empty(shape).normal_(0.0, self.perturb * std, generator=generator)

    def done(self, source: Config, target: Config, source_dir: Path, seed: int) -> "Grown":
        """What is to be recorded of it, with the alignment that is possible."""
        alignment, reason = resolve_alignment(source, target, self.alignment)
        options: dict[str, Any] = self.options | {"alignment": alignment, "asked_alignment": self.alignment}
        return Grown(**options, alignment_reason=reason, source_dir=str(source_dir), seed=seed)


@dataclass(frozen=True, kw_only=True)
class Grown(Growth):
    """What a record tells of the growth that made a run's first weights; ``alignment`` is the one that was used."""

    __pydantic_config__ = {"extra": "forbid"}

    source_dir: str
    """Checkpoint folder of the source."""
    asked_alignment: Alignment
    """The alignment asked for."""
    alignment_reason: str | None
    """Why the two differ."""
    seed: int
    """Of the perturbation."""

    @property
    def asked(self) -> Growth:
        """What was asked for."""
        asked: dict[str, Any] = self.options | {"alignment": self.asked_alignment}
        return Growth(**asked)

    @property
    def told(self) -> str:
        """The growth in a line, with the reason where its alignment is not what was asked for."""
        instead = f" instead of {self.asked_alignment} ({self.alignment_reason})" if self.alignment_reason else ""
        rest = replace(self, alignment="heads").label.partition(", ")
        return f"{rest[0]}, alignment {self.alignment}{instead}{rest[1]}{rest[2]}"


Axis = Literal["vocab", "n_embd", "intermediate", "qkv", "heads", "norm_q", "norm_k"]

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

# What source and target must share: depth, vocabulary and everything that decides which tensors a block has and what
# they compute. Rotary settings may differ; where they break rotary pairs, `heads` gives way to `blocks`.
_SHARED_FIELDS = (
    "n_layer", "padded_vocab_size", "mlp_class_name", "gelu_approximate", "norm_class_name", "norm_qk", "norm_qk_type",
    "norm_1", "norm_2", "post_attention_norm", "post_mlp_norm", "parallel_residual", "shared_attention_norm", "bias",
    "attn_bias", "lm_head_bias", "final_logit_softcapping", "attention_logit_softcapping", "sliding_window_size",
)  # fmt: skip


def axes(name: str) -> tuple[Axis, ...]:
    """What the axes of a parameter of a LitGPT state dict run over, e.g. ``("qkv", "n_embd")``.

    Raises:
        KeyError: No LitGPT GPT of a supported family has such a parameter.
    """
    module, _, kind = re.sub(r"^transformer\.h\.\d+\.", "", name).rpartition(".")
    if module not in _AXES or kind not in ("weight", "bias"):
        raise KeyError(f"{name} is no parameter of a dense LitGPT GPT")
    return _AXES[module] if kind == "weight" else _AXES[module][:1]


def is_gain(name: str) -> bool:
    """Whether a parameter is a norm's gain, whose neutral value is 1."""
    return name.endswith(".weight") and len(axes(name)) == 1


def check_growable(source: Config, target: Config) -> None:
    """Raise a UserError that names the first reason why ``source`` cannot grow into ``target``."""
    check_supported(source)
    check_supported(target)
    hints = {"n_layer": "growth widens and keeps the depth", "padded_vocab_size": "both need the same tokenizer"}
    for field in _SHARED_FIELDS:
        old, new = getattr(source, field), getattr(target, field)
        if old != new:
            hint = hints.get(field, "both need the same kind of block")
            raise UserError(f"base {source.name!r} has {field} {old}, target {target.name!r} has {new}: {hint}")
    for field in ("n_embd", "intermediate_size"):
        old, new = getattr(source, field), getattr(target, field)
        if old > new:
            raise UserError(
                f"base {source.name!r} is wider than the target {target.name!r} ({field} {old} > {new}): choose a wider"
                " target"
            )


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


def axis_map(axis: Axis, source: Config, target: Config, alignment: Alignment) -> torch.Tensor:
    """Where each position of a source axis goes in the target under a possible alignment.

    Returns:
        Target positions, int64, shape ``(axis_size(axis, source),)``, all different: :func:`grow_tensor` adds in place.
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
    return torch.arange(axis_size(axis, source))


def _rotary_map(source: Sizes, target: Sizes) -> torch.Tensor:
    """r(j) of q and k channels, shape (head_size,): LitGPT rotates channel j < n/2 together with j + n/2."""
    old, new, j = source.rope_n_elem, target.rope_n_elem, torch.arange(source.head_size)
    second_half = (j >= old // 2) & (j < old)
    return torch.where(second_half, j - old // 2 + new // 2, torch.where(j >= old, j - old + new, j))


def grow_tensor(
    name: str, source: torch.Tensor, initial: torch.Tensor, source_config: Config, target_config: Config, growth: Growth
) -> torch.Tensor:
    """Grow one parameter: ``initial + shrink * Pad0(source)``; a norm's gain by :func:`grown_gain`.

    Args:
        name: The parameter's name in a LitGPT state dict.
        source: Its value in the source, unfolded, of any floating type.
        initial: The target's initialization, fp32, in the target's shape; it is overwritten, and returned.
        source_config: The source's config.
        target_config: The target's config.
        growth: Its alignment is a possible one; shrink 0 leaves ``initial`` as it is.
    """
    if growth.shrink == 0:
        return initial
    index = tuple(axis_map(axis, source_config, target_config, growth.alignment) for axis in axes(name))
    if len(index) == 2:
        index = (index[0][:, None], index[1])
    source = source.to(initial.dtype)
    if is_gain(name):
        initial[index] = grown_gain(source, initial[index], growth)
    else:
        initial[index] += growth.shrink * source
    return initial


def grown_gain(source: torch.Tensor, initial: torch.Tensor, growth: Growth) -> torch.Tensor:
    """A norm's gain in the channels that the source has, shape (n,) throughout; a new channel keeps ``initial``, 1.

    ``shrunk`` is exact at 0 and 1: ``(1 - shrink) + shrink * gain``. ``added`` is eq. (1) with the ones that muP starts
    gains from in place of noise: ``1 + shrink * gain``.
    """
    if growth.gains == "copied":
        return source
    if growth.gains == "reset":
        return initial
    return (initial if growth.gains == "added" else (1 - growth.shrink) * initial) + growth.shrink * source


def grow(
    source: Mapping[str, torch.Tensor],
    initial: Iterator[tuple[str, torch.Tensor]],
    source_config: Config,
    target_config: Config,
    growth: Growth,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Grow a whole state dict, one tensor at a time, so that the target stands in memory once.

    Args:
        source: The source's unfolded weights by name, e.g. memory-mapped.
        initial: The target's initialization by name, with the noise of ``growth``; it is overwritten, and yielded with
            its names.
        source_config: The source's config.
        target_config: The target's config.
        growth: How; ``heads`` gives way to ``blocks`` where heads cannot be kept.

    Raises:
        UserError: The source cannot grow into the target, or lacks a tensor.
    """
    check_growable(source_config, target_config)
    alignment, _ = resolve_alignment(source_config, target_config, growth.alignment)
    growth = replace(growth, alignment=alignment)
    for name, tensor in initial:
        if name not in source:
            raise UserError(f"the base's weights lack {name!r}: its model_config.yaml describes another model")
        described = tuple(axis_size(axis, source_config) for axis in axes(name))
        if tuple(source[name].shape) != described:
            raise UserError(
                f"the base's {name} has shape {tuple(source[name].shape)}, its model_config.yaml says {described}: they"
                " belong to different models"
            )
        yield name, grow_tensor(name, source[name], tensor, source_config, target_config, growth)
