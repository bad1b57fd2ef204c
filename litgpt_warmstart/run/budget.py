"""Which base to grow into which target, and when, for one budget of compute: ``warmstart_plan --max_flops``."""

import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from litgpt.config import Config

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.flops import hoffmann_flops_per_token
from litgpt_warmstart.method.growth import Growth, check_growable
from litgpt_warmstart.method.laws import HOFFMANN
from litgpt_warmstart.method.limits import Limits, limits, tokens_spared
from litgpt_warmstart.method.model import parameter_count
from litgpt_warmstart.method.scales import SCALES, find_scale, resolve_config, short_name
from litgpt_warmstart.run.plan import ABOUT, RELIABLE_GROWTH

DELTAS = (0.8, 0.7, 0.6, 0.5)
"""When to grow, as shares of the target's tokens that the base has read by then."""
FEWEST_TOKENS_PER_PARAM = 1.0
"""Of the lineage, per parameter of the target; a budget for less is too small."""


@dataclass(frozen=True)
class Proposal:
    """A base, grown into a target, for a budget of compute."""

    base: str
    target: str
    growth: float
    """In parameters."""
    delta: float
    """The tokens that the base has read over all of the lineage's."""
    base_tokens: int
    target_tokens: int
    """Those that the target reads, after the base's."""
    tokens_per_param: float
    """Of the lineage, per parameter of the target."""
    loss_if_tokens: float
    """By Hoffmann et al.'s fit, if growth carries what the tokens taught."""
    loss_if_loss: float
    """If it carries the base's loss alone."""
    scratch_loss: float
    """The target's from scratch, for the same compute."""
    limits: Limits
    reliable: bool
    """Whether it grows by about twice at most."""

    @property
    def command(self) -> str:
        """What trains it, but for the budget; where the base's learning rate was not tuned, 5M's is carried to it."""
        scale = find_scale(self.base)
        tuned = "" if scale is None or scale.base_lr else f" --mup_base {SCALES[0].short_name}"
        return f"litgpt warmstart_successive --scales {self.base},{self.target} --grow_at {self.delta:g}{tuned}"


def propose(max_flops: float, growth: Growth, block_size: int | None, **vocabulary: int | None) -> list[Proposal]:
    """Pairs of Table 1's scales for a budget of Hoffmann FLOPs, base included; the best first.

    Of each pair delta is the largest of :data:`DELTAS` at which it does no worse than from scratch even if growth
    carries the loss alone, or the least one. Those that grow by about twice come first, then by the loss if growth
    carries the tokens.

    Raises:
        UserError: The budget is too small for any pair, or the growth fits none.
    """
    scales = [resolve_config(scale.name, **vocabulary) for scale in SCALES]
    found: list[Proposal] = []
    needed: list[tuple[float, str]] = []
    for pair in itertools.combinations(scales, 2):
        with suppress(UserError):
            check_growable(*pair, growth)
            growth.aligned(*pair)
            made = [_proposal(max_flops, *pair, delta, block_size) for delta in DELTAS]
            no_worse = (one for one in made if one.loss_if_loss <= one.scratch_loss)
            best = next(no_worse, made[-1])
            if best.tokens_per_param >= FEWEST_TOKENS_PER_PARAM:
                found.append(best)
            needed.append(
                (max_flops * FEWEST_TOKENS_PER_PARAM / best.tokens_per_param, f"{best.base} -> {best.target}")
            )
    if not needed:
        raise UserError(
            f"--max_flops proposes scales of Table 1, and no pair of them grows by --operator {growth.operator}: choose"
            " another operator"
        )
    if not found:
        least, name = min(needed)
        raise UserError(
            f"--max_flops {max_flops:g} is too small for any pair of scales: {name}, the smallest, takes {least:.2g}"
            f" for {FEWEST_TOKENS_PER_PARAM:g} token per parameter of the target: raise it"
        )
    return sorted(found, key=lambda one: (not one.reliable, one.loss_if_tokens))


def _proposal(max_flops: float, base: Config, target: Config, delta: float, block_size: int | None) -> Proposal:
    counts = parameter_count(base), parameter_count(target)
    per_token = [hoffmann_flops_per_token(config, block_size or config.block_size) for config in (base, target)]
    tokens = max_flops / (delta * per_token[0] + (1 - delta) * per_token[1])
    read = delta * tokens
    at_base_loss = tokens_spared(counts[0], read, counts[1]) + (1 - delta) * tokens
    factor = counts[1] / counts[0]
    return Proposal(
        base=short_name(base.name), target=short_name(target.name), growth=factor, delta=delta, base_tokens=int(read),
        target_tokens=int(tokens - read), tokens_per_param=tokens / counts[1],
        loss_if_tokens=HOFFMANN.loss(counts[1], tokens), loss_if_loss=HOFFMANN.loss(counts[1], at_base_loss),
        scratch_loss=HOFFMANN.loss(counts[1], max_flops / per_token[1]),
        limits=limits(counts, (read, tokens), (read * per_token[0], tokens * per_token[1])),
        reliable=factor <= ABOUT * RELIABLE_GROWTH,
    )  # fmt: skip


def told(max_flops: float, proposals: list[Proposal], typed: Sequence[str] = ()) -> tuple[str, dict[str, Any]]:
    """Proposals in lines, and as plain values; ``typed`` is what was said here that the command needs, too."""
    rows = [("base -> target", "growth", "grow at", "base tokens", "then", "per param", "saves", "loss", "scratch")]
    for one in proposals:
        name, mark = f"{one.base} -> {one.target}", "" if one.reliable else "*"
        saves = f"{one.limits.loss_with_base:.0%} to {one.limits.tokens_with_base:.0%}"
        loss = f"{one.loss_if_loss:.3f} to {one.loss_if_tokens:.3f}"
        counts = (f"{one.base_tokens:.3g}", f"{one.target_tokens:.3g}", f"{one.tokens_per_param:.3g}")
        rows.append(
            (name, f"{one.growth:.1f}x{mark}", f"{one.delta:g}", *counts, saves, loss, f"{one.scratch_loss:.3f}")
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"For {max_flops:.3g} Hoffmann FLOPs, the base's included, by scales of Table 1:",
        *("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows),
        "saves: of the target's own training, with the base counted; loss: by Hoffmann et al.'s fit, for comparing"
        " alone; both if growth carries the base's loss, and if it carries what its tokens taught",
    ]
    if not all(one.reliable for one in proposals):
        lines.append(f"* more than about {RELIABLE_GROWTH:g}x, which arXiv 2605.13405 finds the most reliable")
    also = f", with the same {' and '.join(typed)}" if typed else ""
    lines.append(f"Take the first{also}: {proposals[0].command} --max_flops {max_flops:g}")
    return "\n".join(lines), {"max_flops": max_flops, "proposals": [asdict(one) for one in proposals]}
