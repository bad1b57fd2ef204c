r"""The operators: what stands in the place of Pad0 in eq. (1) of arXiv 2411.07340.

Each says where an entry of the target's tensor comes from. One more is an entry of :data:`OPERATORS`.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from litgpt.config import Config

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.growth.axis_maps import Alignment, Axis, axes, axis_map, axis_size, split
from litgpt_warmstart.method.scales import Sizes

NEW = -1
"""The origin of an entry that holds no base weight."""


@dataclass(frozen=True)
class Placement:
    """Which entry of the source's tensor each entry of the target's holds."""

    origins: tuple[torch.Tensor, ...]
    """For each of its axes, int64 in the target's size: positions in the source, or :data:`NEW`."""
    factors: tuple[torch.Tensor, ...] = ()
    """For each axis, in the target's size: what the source's entries are multiplied with; nothing leaves them alone."""

    @property
    def held(self) -> tuple[torch.Tensor, ...]:
        """An index of the target's entries that hold one of the source's."""
        first, *last = (torch.nonzero(origin != NEW).flatten() for origin in self.origins)
        return (first[:, None], *last) if last else (first,)

    def taken(self, source: torch.Tensor) -> torch.Tensor:
        """What those entries hold, in the shape that ``held`` gives."""
        found = source
        for axis, origin in enumerate(self.origins):
            positions = origin[origin != NEW]
            if not torch.equal(positions, torch.arange(found.shape[axis])):  # else all are, and nothing is copied
                found = found.index_select(axis, positions)
        for place, (factor, origin) in enumerate(zip(self.factors, self.origins, strict=False)):
            factor = factor[origin != NEW].to(source.dtype)
            found = found * (factor[:, None] if place < found.dim() - 1 else factor)
        return found


class Operator:
    """How a source's tensors become a target's."""

    pads = True
    """Whether wider tensors have entries that hold no base weight, whose rows of attention go by ``--alignment``."""
    deepens = False
    plain = False
    """Whether weights are those of a plain LitGPT checkpoint, which has muP's multipliers folded in, so that the target
    computes what the source does under its own multipliers; else they are as trained."""

    def check(self, source: Config, target: Config) -> None:
        """Raise a UserError that says why the operator does not fit the pair."""

    def block(self, position: int, source: Config, target: Config) -> int:
        """The source's block that the target's at a position comes from."""
        return position

    def source_name(self, name: str, source: Config, target: Config) -> str:
        """The source's parameter that one of the target's comes from."""
        position, inner = split(name)
        return name if position is None else f"transformer.h.{self.block(position, source, target)}.{inner}"

    def is_blank(self, name: str, source: Config, target: Config) -> bool:
        """Whether a parameter of the target is 0 before the first step, whatever the source has."""
        return False

    def placement(self, name: str, source: Config, target: Config, alignment: Alignment, seed: int) -> Placement:
        """Where each entry of a parameter, with its name in the target, comes from."""
        found = []
        for axis in axes(name):
            origin = torch.full((axis_size(axis, target),), NEW)
            places = axis_map(axis, source, target, alignment)
            origin[places] = torch.arange(len(places))
            found.append(origin)
        return Placement(tuple(found))

    def noise(self, name: str, drawn: torch.Tensor, placement: Placement) -> torch.Tensor:
        """What of the perturbation, drawn in the target's shape, is added; it may be overwritten."""
        return drawn


class Pad(Operator):
    """The base in a corner, the rest new: eq. (1) of arXiv 2411.07340, the default. The function is not preserved.

        a b      a b . .
        c d  ->  c d . .
                 . . . .
                 . . . .

    Along attention's rows the corner is a corner of each head, see ``--alignment``.
    """


class Copying(Operator):
    """Wider by copies of units: channels of the residual stream and of the MLP, and whole heads.

    What copies of a unit say to the next layer is divided by their number. Norms see every channel of the residual
    stream equally often, and compute what they did, where its copies are as many of each.
    """

    pads = False
    plain = True
    PRESERVED = ("norm_eps", "rope_base", "rope_condense_ratio", "rope_adjustments", "rope_interleave",
                 "rope_local_base_freq", "rope_indices", "sliding_window_indices", "rope_n_elem")  # fmt: skip
    """What a copied head or a norm computes with."""

    def units(self, what: str, old: int, new: int, draws: torch.Generator) -> torch.Tensor:
        """The unit of ``old`` ones that each of ``new`` copies, int64; the first ``old`` copy themselves."""
        raise NotImplementedError

    def check(self, source: Config, target: Config) -> None:
        for field in self.PRESERVED:
            before, after = getattr(source, field), getattr(target, field)
            if before != after:
                raise self.misfit(f"{field} {before} is {after} in the target", "pad, or a target with the same")
        old, new = Sizes.of(source), Sizes.of(target)
        for what, before, after in _unit_counts(old, new):
            if after < before:
                raise self.misfit(f"{what} {before} would become {after}", "pad, or a target with as many")
        if new.head_size > old.head_size and (source.norm_qk or old.head_size == old.rope_n_elem):
            grown = f"head_size {old.head_size} would become {new.head_size}"
            why = "a norm of its own" if source.norm_qk else "rotary channels alone"
            raise self.misfit(f"{grown}, and a head has {why}", "a target with more heads of the same size, or pad")

    def misfit(self, reason: str, remedy: str) -> UserError:
        """A UserError for a pair that the operator does not fit."""
        return UserError(f"--operator {name_of(self)} does not fit: {reason}: take {remedy}")

    def placement(self, name: str, source: Config, target: Config, alignment: Alignment, seed: int) -> Placement:
        block, _ = split(name)
        old, new = Sizes.of(source), Sizes.of(target)

        def units(what: str, before: int, after: int, block: int | None = block) -> torch.Tensor:
            digest = hashlib.sha256(f"{seed}:{what}:{block}".encode()).digest()
            draws = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            return self.units(what, before, after, draws)

        groups = units("groups", old.n_query_groups, new.n_query_groups)
        queries = units("queries", old.queries_per_group, new.queries_per_group)
        rotated, n = torch.arange(old.rope_n_elem), old.rope_n_elem
        channels = torch.arange(new.head_size) % old.head_size  # of values, which are not rotated
        rest = torch.arange(new.head_size - n) % max(old.head_size - n, 1) + n
        q_channels = torch.cat((rotated, rest))  # of queries and keys
        heads = groups[:, None] * old.queries_per_group + queries  # (groups, queries per group)
        q = (heads[..., None] * old.head_size + q_channels).flatten()
        k = (groups[:, None] * old.head_size + q_channels).flatten()
        v = (groups[:, None] * old.head_size + channels).flatten()

        def origin(axis: Axis) -> torch.Tensor:
            if axis == "n_embd":  # one map for the whole residual stream
                return units(axis, old.n_embd, new.n_embd, None)
            if axis == "intermediate":
                return units(axis, old.intermediate_size, new.intermediate_size)
            if axis == "qkv":
                return torch.cat((q, old.q_rows + k, old.q_rows + old.kv_rows + v))
            if axis == "heads":
                return (heads[..., None] * old.head_size + channels).flatten()
            if axis in ("norm_q", "norm_k"):
                return q_channels if source.norm_qk_type == "default" else q if axis == "norm_q" else k
            return torch.arange(axis_size(axis, source))

        origins = tuple(map(origin, axes(name)))
        factors = [torch.ones(len(origin)) for origin in origins]
        if reads_last_axis(name):
            factors[-1] = 1 / _copies(origins[-1])
        if axes(name)[0] == "qkv" and new.head_size > old.head_size:  # scores are sums over a head's channels
            factors[0][: new.q_rows] = (math.sqrt(new.head_size / old.head_size) / _copies(q_channels)).repeat(
                new.n_head
            )
        return Placement(origins, tuple(factors))


class Tile(Copying):
    """The base again and again: HyperCloning (arXiv 2409.12903). The function is preserved, for integer factors.

        a b      a/2 b/2 a/2 b/2          +x +y -x -y
        c d  ->  c/2 d/2 c/2 d/2    and   +z +u -z -u    with noise in pairs
                 a/2 b/2 a/2 b/2          +v +w -v -w    that cancel
                 c/2 d/2 c/2 d/2          +s +t -s -t

    The noise of what reads equal inputs sums to 0 over them, so that the function is preserved with it; where there are
    no equal inputs, as in the embedding, it has none. Under muP the readout's multiplier does the division.
    """

    def units(self, what: str, old: int, new: int, draws: torch.Generator) -> torch.Tensor:
        return torch.arange(new) % old

    def check(self, source: Config, target: Config) -> None:
        super().check(source, target)
        for what, before, after in _unit_counts(Sizes.of(source), Sizes.of(target)):
            if after % before and what != "head_size":
                raise self.misfit(f"{what} {after} is no multiple of the base's {before}", "fpi, or pad")

    def noise(self, name: str, drawn: torch.Tensor, placement: Placement) -> torch.Tensor:
        if not reads_last_axis(name):
            return drawn.zero_()
        origin = placement.origins[-1]
        copies = _copies(origin)
        sums = drawn.new_zeros(len(drawn), int(origin.max()) + 1).index_add_(1, origin, drawn)
        drawn -= sums[:, origin] / copies
        return drawn * torch.where(copies > 1, copies / (copies - 1).clamp(min=1), 0.0).sqrt()  # as large as drawn


class Net2Net(Copying):
    """New units copy random ones: Net2Net (arXiv 1511.05641). The function is preserved if n_embd grows by an integer.

        a b      a/2 b a/2     columns 1 2 1 of copies, each divided by their number,
        c d  ->  c/2 d c/2     and rows 1 2 2 of copies as they are
                 c/2 d c/2

    MLP channels and heads are drawn with replacement, each block's anew. The residual stream, which Net2Net's networks
    had not, has as many copies of each channel as of any other, or one more: norms look at all of it.
    """

    def units(self, what: str, old: int, new: int, draws: torch.Generator) -> torch.Tensor:
        if what == "n_embd":
            return _in_rounds(old, new, draws)
        return torch.cat((torch.arange(old), torch.randint(old, (new - old,), generator=draws)))


class Fpi(Copying):
    """New units copy random ones, all equally often: bert2BERT's FPI (arXiv 2110.07143). The function is preserved if
    n_embd grows by an integer, nearly so if not, since norms then count some channels once more than others.

        a b      a/3 b/2 b/2 a/3 a/3     columns 1 2 2 1 1 of copies, each divided by their number,
        c d  ->  c/3 d/2 d/2 c/3 c/3     and rows as they are
                 c/3 d/2 d/2 c/3 c/3

    Of any sizes: everything is drawn in rounds that take each unit once, where bert2BERT draws with replacement.
    """

    def units(self, what: str, old: int, new: int, draws: torch.Generator) -> torch.Tensor:
        return _in_rounds(old, new, draws)


class Stack(Pad):
    """The base's blocks again, on top: G_stack of arXiv 2405.15319. The function is not preserved.

        1 2  ->  1 2 1 2

    Widths, where they grow too, are padded. Attention and MLP of block t are those of block t mod n_layer.
    """

    deepens = True

    def block(self, position: int, source: Config, target: Config) -> int:
        return position % source.n_layer

    def check(self, source: Config, target: Config) -> None:
        operator = f"--operator {name_of(self)}"
        if source.n_layer >= target.n_layer:
            raise UserError(
                f"{operator} grows the depth, and base {source.name!r} has n_layer {source.n_layer}, target"
                f" {target.name!r} {target.n_layer}: take --operator pad, or a deeper target"
            )
        for field in ("sliding_window_indices", "rope_indices"):
            if getattr(source, field) or getattr(target, field):
                raise UserError(f"{operator} takes blocks that are alike, and {field} tells some apart: choose another")


class Interpose(Stack):
    """Each block followed by its copies (arXiv 2510.08008). The function is not preserved.

        1 2  ->  1 1 2 2

    Widths, where they grow too, are padded. Where the factor is no integer, copies are spread evenly.
    """

    def block(self, position: int, source: Config, target: Config) -> int:
        return position * source.n_layer // target.n_layer


class Blank(Interpose):
    """Each block followed by copies that add nothing yet, since their output projections are 0 (as in LLaMA Pro, arXiv
    2401.02415). The function is preserved; not where widths grow too, which are padded.

        1 2  ->  1 1' 2 2'     with attn.proj and mlp.proj of 1' and 2' at 0, noise or not
    """

    plain = True
    ENDS = ("attn.proj.", "mlp.proj.", "post_attention_norm.bias", "post_mlp_norm.bias")

    def is_blank(self, name: str, source: Config, target: Config) -> bool:
        position, inner = split(name)
        if position is None or not inner.startswith(self.ENDS):
            return False
        before = self.block(position - 1, source, target) if position else None
        return before == self.block(position, source, target)


OPERATORS: Mapping[str, Operator] = {
    "pad": Pad(),
    "tile": Tile(),
    "net2net": Net2Net(),
    "fpi": Fpi(),
    "stack": Stack(),
    "interpose": Interpose(),
    "blank": Blank(),
}
if TYPE_CHECKING:
    OperatorName = str
else:
    OperatorName = Literal[*OPERATORS]  # for jsonargparse and pydantic: the table says the names once


def name_of(operator: Operator) -> str:
    """What an operator is called."""
    return next(name for name, known in OPERATORS.items() if known is operator)


def reads_last_axis(name: str) -> bool:
    """Whether a parameter is a matrix that multiplies its input, along its last axis; an embedding is looked up in."""
    return len(axes(name)) == 2 and ".wte." not in name


def _unit_counts(old: Sizes, new: Sizes) -> list[tuple[str, int, int]]:
    """What is copied, and how many of it there are before and after."""
    names = ("n_embd", "intermediate_size", "n_query_groups", "queries_per_group", "head_size")
    return [(name, getattr(old, name), getattr(new, name)) for name in names]


def _copies(origin: torch.Tensor) -> torch.Tensor:
    """How many positions have the same origin as each, in fp32."""
    return torch.bincount(origin)[origin].float()


def _in_rounds(old: int, new: int, draws: torch.Generator) -> torch.Tensor:
    """``new`` of ``old`` units: all in order, then all in random orders."""
    rounds = [torch.randperm(old, generator=draws) for _ in range(new // old)]
    return torch.cat((torch.arange(old), *rounds))[:new]
