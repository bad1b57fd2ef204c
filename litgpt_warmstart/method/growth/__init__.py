r"""Growth: shrink, put where it goes, and perturb one tensor (eq. 1 of arXiv 2411.07340).

    source (2, 3)              initial target (4, 5)          grown target

    a b c                      n n n n n                      la+n lb+n lc+n n n
    d e f    -> shrink l ->    n n n n n    -> add where ->   ld+n le+n lf+n n n
                               n n n n n       the map says   n    n    n    n n
                               n n n n n                      n    n    n    n n

with l = lambda_shrink and n drawn from the target's muP initialization. Where an entry goes the operator says, see
:mod:`~litgpt_warmstart.method.growth.operators`. For ``pad``, the paper's, the map is the identity along n_embd and the
MLP's width. Along attention's rows it depends on the alignment; for ``heads``, with fused rows q0 q1 k0 k1 v0 v1 of
heads of size 2 growing to 3 heads of size 3, each letter goes to its own head of its own block:

    source rows   q0q0 q1q1           k0k0 k1k1           v0v0 v1v1
    target rows   q0q0. q1q1. ...     k0k0. k1k1. ...     v0v0. v1v1. ...

Norm gains have mean 1, not 0, so they are shrunk towards 1, and new channels get 1.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
from litgpt.config import Config

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.folding import Folding
from litgpt_warmstart.method.growth.axis_maps import Alignment, Kind, is_gain, kind_of, resolve_alignment, shape_of
from litgpt_warmstart.method.growth.operators import OPERATORS, OperatorName
from litgpt_warmstart.method.model import check_supported

Moments = Literal["fresh", "carried"]
Gains = Literal["shrunk", "added", "copied", "reset"]
Preset = Literal["paper", "quiet"]
KINDS = get_args(Kind)
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"perturb_where": "all", "shrink": {}},
    "quiet": {"perturb_where": "new", "shrink": {"embedding": 1.0}},
}
"""What each says of options that are not typed; a single number of ``--shrink`` leaves its classes alone."""


@dataclass(frozen=True)
class Growth:
    """How the source's weights become the target's: what is asked for.

    Every command that grows has a flag for each field, and what is written of a run tells each: add an option here. Its
    default must be what was done before, for records that lack it; an older version refuses one that has it: raise
    ``run.record.FORMAT_VERSION``, and it says why.
    """

    shrink: float | dict[str, float] = field(default=0.4, hash=False)
    """lambda_shrink in [0, 1], of everything or by class, such as ``{embedding: 1, hidden: 0.4}``, of embedding,
    hidden, readout and gains; 0 trains from scratch under muP, on the same batches"""
    alignment: Alignment = "heads"
    """Where the rows of attention go that are padded: ``heads`` keeps each head, ``blocks`` each of q, k and v,
    ``literal`` pads the fused tensor as it stands, for comparison only, and ``interleaved`` as it stood in LitGPT 0.3,
    by head: the paper's own way"""
    perturb: float = 1.0
    """Multiplier of the standard deviation sigma_muP that is added; 0 adds nothing"""
    gains: Gains = "shrunk"
    """What becomes of norm gains: ``shrunk`` towards 1, ``added`` to 1 after shrinking (eq. (1) as it stands),
    ``copied``, or ``reset`` to 1"""
    operator: OperatorName = "pad"
    """What stands for Pad0 in eq. (1): wider by ``pad``, ``tile``, ``net2net`` or ``fpi``, deeper by ``stack``,
    ``interpose`` or ``blank``. All but pad, stack and interpose preserve the function, with shrink 1 and perturb 0"""
    perturb_where: Literal["all", "new", None] = None
    """Which entries are perturbed: ``all``, or ``new``, those that hold no base weight. Default: what ``--growth``
    says"""
    growth: Preset = "paper"
    """A preset, which what is typed beside it goes before: ``paper`` perturbs every entry; ``quiet`` those alone that
    hold no base weight, and a single ``--shrink`` is not the embedding's, which stays as it is"""
    moments: Moments = "fresh"
    """The optimizer's moments at the first step: ``fresh``, or ``carried`` from the base, whose folder must have its
    training state: placed as the weights are, scaled as muP scales gradients (arXiv 2602.10545), new entries 0"""

    def __post_init__(self) -> None:
        for option in fields(Growth):
            choices = get_args(option.type) if get_origin(option.type) is Literal else ()
            if choices and (value := getattr(self, option.name)) not in choices:
                raise UserError(f"--{option.name} {value!r} is none of {', '.join(filter(None, choices))}")
        if self.shrink == {}:
            raise UserError(f"--shrink is an empty mapping: give a number, or one for some of {', '.join(KINDS)}")
        for kind, shrink in self.shrink.items() if isinstance(self.shrink, dict) else [("", self.shrink)]:
            if kind not in ("", *KINDS):
                raise UserError(f"--shrink has no class {kind!r}: choose from {', '.join(KINDS)}")
            of = f" of {kind}" * bool(kind)
            if isinstance(shrink, bool) or not isinstance(shrink, int | float):
                raise UserError(f"--shrink {shrink!r}{of}: give a number")
            if not 0 <= shrink <= 1:
                raise UserError(f"--shrink must lie in [0, 1], got {shrink}{of}")
        if not 0 <= self.perturb < math.inf:
            raise UserError(f"--perturb must not be negative, got {self.perturb}")
        self._apply_preset()
        for kind in ("embedding", "hidden"):  # a readout may begin at 0, gains begin at 1
            if self.shrink_of(kind) == 0 and self.perturb == 0:
                of = f" of {kind}" if isinstance(self.shrink, dict) else ""
                raise UserError(f"--shrink 0{of} with --perturb 0 leaves no weights: change one of them")
        if not OPERATORS[self.operator].pads:
            own = f"--operator {self.operator}"
            if self.alignment != Growth.alignment:
                raise UserError(
                    f"--alignment {self.alignment} is for operators that pad; {own} copies whole heads: leave it out"
                )
            if self.perturb_where == "new":
                told = "--growth quiet" if self.growth == "quiet" else "--perturb_where new"
                raise UserError(f"{told} would perturb nothing: every entry of {own} holds a base weight: leave it out")

    def _apply_preset(self) -> None:
        """Fill in what a preset says, and tell of it alone where it is followed: one growth is written one way."""
        preset = PRESETS[self.growth]
        shrink, rest = (self.shrink, 0.4) if isinstance(self.shrink, dict) else ({}, self.shrink)
        told = dict.fromkeys(KINDS, rest) | (preset["shrink"] if self.shrink != 0 else {}) | shrink
        shares = {kind: float(share) for kind, share in told.items()}
        if self.gains in ("copied", "reset"):
            if shrink.get("gains", shares["hidden"]) != shares["hidden"]:
                raise UserError(f"--shrink of gains is nothing to --gains {self.gains}: leave one of them out")
            shares["gains"] = shares["hidden"]
        where = self.perturb_where or preset["perturb_where"]
        quiet = where == "new" and shares.items() >= PRESETS["quiet"]["shrink"].items()
        object.__setattr__(self, "shrink", shares if len(set(shares.values())) > 1 else shares["hidden"])
        object.__setattr__(self, "perturb_where", where)
        object.__setattr__(self, "growth", "quiet" if quiet else "paper")

    def shrink_of(self, kind: Kind) -> float:
        """lambda_shrink of a class of parameters."""
        return self.shrink[kind] if isinstance(self.shrink, dict) else self.shrink

    @property
    def options(self) -> dict[str, Any]:
        """The options by name, as plain values."""
        return {option.name: getattr(self, option.name) for option in fields(Growth)}

    @property
    def without_source(self) -> "Growth":
        """The same where nothing is left of the source: nothing to place, to align or to spare, and no gain."""
        nothing = Growth(shrink=0.0)
        of_source = ("shrink", "alignment", "gains", "operator", "perturb_where", "growth", "moments")
        return Growth(**self.options | {name: getattr(nothing, name) for name in of_source})

    @property
    def from_scratch(self) -> bool:
        """Whether nothing of the source is left, and muP's own initialization is all there is."""
        return self.shrink == 0 and self.without_source == Growth(shrink=0.0)

    @property
    def carries_moments(self) -> bool:
        """Whether the optimizer begins with the base's moments; there is nothing to carry where nothing is left."""
        return self.moments == "carried" and self.shrink != 0

    @property
    def label(self) -> str:
        """What tells it from other growths in a few words: shrink, and what is not as by default."""
        return ", ".join(self._words)

    @property
    def differences(self) -> dict[str, Any]:
        """What is not as by default, by name, but for shrink itself; what a preset says that alone tells."""
        hidden, preset, default = self.shrink_of("hidden"), PRESETS[self.growth], Growth()
        shares = {kind: self.shrink_of(kind) for kind in KINDS}
        told = {
            f"shrink of {kind}": share for kind, share in shares.items() if share != preset["shrink"].get(kind, hidden)
        }
        usual = default.options | {"shrink": self.shrink, "perturb_where": preset["perturb_where"]}
        return told | {name: value for name, value in self.options.items() if value != usual[name]}

    @property
    def _words(self) -> list[str]:
        said = {name: f"{value:g}" if isinstance(value, float) else value for name, value in self.differences.items()}
        return [f"shrink {self.shrink_of('hidden'):g}", *(f"{name} {value}" for name, value in said.items())]

    def noise(self, shape: torch.Size, std: float, generator: torch.Generator) -> torch.Tensor:
        """What a matrix begins with, fp32, on the CPU, for muP's standard deviation; as by default from scratch."""
        return torch.empty(shape).normal_(0.0, self.perturb * std, generator=generator)

    def aligned(self, source: Config, target: Config) -> tuple[Alignment, str | None]:
        """The alignment that is possible, and why it is not the one asked for; see :func:`resolve_alignment`."""
        if not OPERATORS[self.operator].pads:
            return self.alignment, None
        return resolve_alignment(source, target, self.alignment)

    def done(self, source: Config, target: Config, source_dir: Path, seed: int) -> "Grown":
        """What is to be recorded of it, with the alignment that is possible."""
        alignment, reason = self.aligned(source, target)
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
        first, *rest = replace(self, alignment="heads")._words
        if OPERATORS[self.operator].pads:
            instead = f" instead of {self.asked_alignment} ({self.alignment_reason})" if self.alignment_reason else ""
            rest = [f"alignment {self.alignment}{instead}", *rest]
        return ", ".join([first, *rest])


ENTRIES = 2**18
"""Of a tensor that grow at a time, about: an index takes eight bytes for each, beside a tensor that may be large."""

# What source and target must share: vocabulary and everything that decides which tensors a block has and what they
# compute. Rotary settings may differ; where they break rotary pairs, `heads` gives way to `blocks`.
_SHARED_FIELDS = (
    "padded_vocab_size", "mlp_class_name", "gelu_approximate", "norm_class_name", "norm_qk", "norm_qk_type",
    "norm_1", "norm_2", "post_attention_norm", "post_mlp_norm", "parallel_residual", "shared_attention_norm", "bias",
    "attn_bias", "lm_head_bias", "final_logit_softcapping", "attention_logit_softcapping", "sliding_window_size",
)  # fmt: skip


def check_growable(source: Config, target: Config, growth: Growth = Growth()) -> None:
    """Raise a UserError that names the first reason why ``source`` cannot grow into ``target``."""
    check_supported(source)
    check_supported(target)
    for name in _SHARED_FIELDS:
        old, new = getattr(source, name), getattr(target, name)
        if old != new:
            hint = "both need the same " + ("tokenizer" if name == "padded_vocab_size" else "kind of block")
            raise UserError(f"base {source.name!r} has {name} {old}, target {target.name!r} has {new}: {hint}")
    for name in ("n_embd", "intermediate_size"):
        old, new = getattr(source, name), getattr(target, name)
        if old > new:
            raise UserError(
                f"base {source.name!r} is wider than the target {target.name!r} ({name} {old} > {new}): choose a wider"
                " target"
            )
    operator = OPERATORS[growth.operator]
    if source.n_layer != target.n_layer and not operator.deepens:
        deepening = ", ".join(name for name, other in OPERATORS.items() if other.deepens)
        raise UserError(
            f"base {source.name!r} has n_layer {source.n_layer}, target {target.name!r} has {target.n_layer}:"
            f" --operator {growth.operator} keeps the depth; those that grow it are {deepening}"
        )
    operator.check(source, target)


def grow_tensor(
    name: str,
    source: torch.Tensor,
    initial: torch.Tensor,
    source_config: Config,
    target_config: Config,
    growth: Growth,
    folding: Folding | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """Grow one parameter: ``initial + shrink * operator(source)``; a norm's gain by :func:`grown_gain`.

    Args:
        name: The parameter's name in the target's LitGPT state dict.
        source: Its value in the source, unfolded, or folded where there is a ``folding``; of any floating type.
        initial: The target's initialization, fp32, in the target's shape; it is overwritten, and returned.
        source_config: The source's config.
        target_config: The target's config.
        growth: Its alignment is a possible one; shrink 0 leaves ``initial`` as it is.
        folding: The target's, that what the operator gives is taken out of.
        seed: Of what the operator draws.
    """
    shrink, operator = growth.shrink_of(kind_of(name)), OPERATORS[growth.operator]
    if shrink == 0:
        return initial
    if operator.is_blank(name, source_config, target_config):
        return initial.zero_()
    placement = operator.placement(name, source_config, target_config, growth.alignment, seed)
    index, taken = placement.held, placement.taken(source.to(initial.dtype))
    rows, divisor = folding.part(name) if folding else (slice(0), 1.0)
    if divisor != 1:
        factor = torch.ones(len(initial))
        factor[rows] = divisor
        taken = taken * factor[index[0]]
    if is_gain(name):
        initial[index] = grown_gain(taken, initial[index], growth)
        return initial
    initial = operator.noise(name, initial, placement)
    count = max(1, ENTRIES // taken[0].numel())
    for start in range(0, len(taken), count):
        part = slice(start, start + count)
        where, grown = (index[0][part], *index[1:]), shrink * taken[part]
        initial[where] = grown if growth.perturb_where == "new" else initial[where] + grown
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
    shrink = growth.shrink_of("gains")
    return (initial if growth.gains == "added" else (1 - shrink) * initial) + shrink * source


def grow(
    source: Mapping[str, torch.Tensor],
    initial: Iterator[tuple[str, torch.Tensor]],
    source_config: Config,
    target_config: Config,
    growth: Growth,
    foldings: tuple[Folding, Folding] | None = None,
    seed: int = 0,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Grow a whole state dict, one tensor at a time, so that the target stands in memory once.

    Args:
        source: The source's unfolded weights by name, e.g. memory-mapped.
        initial: The target's initialization by name, with the noise of ``growth``; it is overwritten, and yielded with
            its names.
        source_config: The source's config.
        target_config: The target's config.
        growth: How; ``heads`` gives way to ``blocks`` where heads cannot be kept.
        foldings: What the two models compute beside LitGPT's, which operators that preserve the function account for.
            Default: what their configs tell.
        seed: Of what the operator draws.

    Raises:
        UserError: The source cannot grow into the target, or lacks a tensor.
    """
    check_growable(source_config, target_config, growth)
    alignment, _ = growth.aligned(source_config, target_config)
    growth, operator = replace(growth, alignment=alignment), OPERATORS[growth.operator]
    before, then = foldings or (Folding(source_config), Folding(target_config))
    for name, tensor in initial:
        origin = operator.source_name(name, source_config, target_config)
        if origin not in source:
            raise UserError(f"the base's weights lack {origin!r}: its model_config.yaml describes another model")
        weight, described = source[origin], shape_of(origin, source_config)
        if tuple(weight.shape) != described:
            raise UserError(
                f"the base's {origin} has shape {tuple(weight.shape)}, its model_config.yaml says {described}: they"
                " belong to different models"
            )
        if operator.plain:
            weight = before.fold(origin, weight)
        folding = then if operator.plain else None
        yield name, grow_tensor(name, weight, tensor, source_config, target_config, growth, folding, seed)
        del tensor  # before the next one is made: there may be no room for two
