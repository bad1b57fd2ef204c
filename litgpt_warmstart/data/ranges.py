"""No token twice: in which order a lineage reads prepared tokens, what it has used up, and what a run takes next.

order of reading   0  1  2  3  4  5  6  7  8  9  …        its block i is the stored block BlockOrder(…)[i]
a base             |-----------|
its warmstart                  |-----------------|        and so does the run that it is compared with
"""

from collections.abc import Iterable
from dataclasses import dataclass

from litgpt_warmstart.data.order import BlockOrder
from litgpt_warmstart.data.use import DataUse
from litgpt_warmstart.errors import UserError

ORDER_SEED = 0
"""Of the order in which data is read for the first time, where nothing else is asked for.

It is not the run's --seed: runs that are compared, as a warmstart with the one from scratch or one seed with another,
read the same batches in the same order, so that what they differ in is what was meant to differ."""


@dataclass(frozen=True)
class BlockRange:
    """The blocks at the places first <= i < stop of an order, for one run."""

    order: BlockOrder
    first: int
    stop: int
    block_size: int
    """Tokens of a block that count; it stores one more."""

    @property
    def start_token(self) -> int:
        """Where the range begins in the order, in stored tokens."""
        return self.first * (self.block_size + 1)

    def stop_token(self, blocks_read: int) -> int:
        """One past the last stored token after ``blocks_read`` blocks of the range."""
        return (self.first + blocks_read) * (self.block_size + 1)


def lineage_seed(seen: Iterable[DataUse], fingerprint: str, block_size: int, asked: int | None) -> int:
    """The seed of the order in which a lineage reads prepared data: what it has begun with, what is asked for, or 0.

    Another order, or blocks of another length, would read some tokens twice, and is refused.
    """
    for use in seen:
        if use.fingerprint != fingerprint:
            continue
        if use.order_seed is None:
            raise UserError(
                "version 0.1 has read this data for the base as it is stored, and no order goes on from there: prepare"
                " it again in another folder"
            )
        if use.block_size != block_size:
            raise UserError(
                f"the base has read this data in blocks of {use.block_size:,} tokens, and blocks of {block_size:,}"
                f" would repeat some: pass --train.max_seq_length {use.block_size}, or other data"
            )
        if asked not in (None, use.order_seed):
            raise UserError(
                f"the base has read this data with --data.order_seed {use.order_seed}, and {asked} would repeat some of"
                " it: leave --data.order_seed out, or take other data"
            )
        asked = use.order_seed
    return ORDER_SEED if asked is None else asked


def first_unread(seen: Iterable[DataUse], fingerprint: str, block_size: int) -> int:
    """The first place in the order after everything that a lineage has read of the same prepared data."""
    used = max((use.stop_token or 0 for use in seen if use.fingerprint == fingerprint), default=0)
    return -(-used // (block_size + 1))


def take_blocks(
    order: BlockOrder, first: int, needed: int, block_size: int, blocks_per_step: int, tokens_per_param: float = 20.0
) -> BlockRange:
    """The range of ``needed`` blocks from ``first`` on.

    Where fewer are left, a UserError tells the largest budget, in whole steps, and the largest target that fit.
    """
    available = len(order)
    left = max(0, available - first)
    if needed > left:
        fits = left // blocks_per_step * blocks_per_step * block_size
        remedy = "take other data or a smaller batch"
        if fits:
            remedy = (
                f"pass --train.max_tokens {fits} or less, or a target of at most {int(fits / tokens_per_param):,}"
                f" parameters at {tokens_per_param:g} tokens each"
            )
        raise UserError(
            f"the data is too short: {needed * block_size:,} tokens asked, {left * block_size:,} left of"
            f" {available * block_size:,} after what the base has seen: {remedy}"
        )
    return BlockRange(order, first, first + needed, block_size)
