"""Which tokens are used up, and which a run takes next."""

from collections.abc import Iterable
from dataclasses import dataclass

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.run.record import DataUse


@dataclass(frozen=True)
class BlockRange:
    """The blocks first <= i < stop of the training split, for one run."""

    first: int
    stop: int
    block_size: int

    def start_token(self) -> int:
        """First stored token of the range."""
        return self.first * (self.block_size + 1)

    def stop_token(self, blocks_read: int) -> int:
        """One past the last stored token after ``blocks_read`` blocks of the range."""
        return (self.first + blocks_read) * (self.block_size + 1)


def first_free_block(seen: Iterable[DataUse], fingerprint: str, block_size: int) -> int:
    """The first block that begins after everything a lineage has seen of the same prepared data."""
    used = max((use.stop_token or 0 for use in seen if use.fingerprint == fingerprint), default=0)
    return -(-used // (block_size + 1))


def take_blocks(
    first: int, needed: int, available: int, block_size: int, blocks_per_step: int, tokens_per_param: float = 20.0
) -> BlockRange:
    """The range of ``needed`` blocks from ``first`` on.

    Args:
        first: First free block.
        needed: Blocks of the run.
        available: Blocks of the whole split.
        block_size: Tokens of a block that count.
        blocks_per_step: Sequences per optimizer step, for the largest budget that fits.
        tokens_per_param: Tokens per parameter, for the largest target that fits.

    Raises:
        UserError: The split has fewer blocks left; tells what is left and the largest budget that fits.
    """
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
    return BlockRange(first, first + needed, block_size)
