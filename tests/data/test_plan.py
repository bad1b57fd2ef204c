"""No token twice: in which order a lineage reads, which blocks it has used up, and what is left."""

import errno
import os
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from litgpt.data import DataModule

from litgpt_warmstart.data import PreparedText
from litgpt_warmstart.data.blocks import ORDER_SEED, BlockOrder
from litgpt_warmstart.data.plan import DataPlan, plan_blocks, prepare_data
from litgpt_warmstart.data.use import DataUse, Reading
from litgpt_warmstart.errors import UserError


class Blocks(PreparedText):
    """A number of blocks of any length, of which none is read."""

    fingerprint, vocab_size, padded_vocab_size, tokenizer_json = "a", 9, 9, None
    number = 100

    def num_blocks(self, split: str, block_size: int) -> int:
        return self.number


class Broken(DataModule):
    """One of LitGPT's kind, whose preparation has filled a folder and fails."""

    def __init__(self, out_path_train: Path) -> None:
        super().__init__()
        self.out_path_train = out_path_train

    def connect(self, **sizes: object) -> None:
        """Nothing to connect."""

    def prepare_data(self) -> None:
        raise ValueError("no index.json")


def reading(data: DataModule, **more: Any) -> Reading:
    return Reading(data, 9, 1, 1, 1, num_classes=9, seed=1, **more)


def planned(
    max_steps: int, *seen: DataUse, block_size: int = 9, order_seed: int | None = None, batch: int = 1
) -> DataPlan:
    data = Blocks(order_seed=order_seed)
    return plan_blocks(Reading(data, block_size, 1, batch, max_steps, num_classes=9, seed=1, seen=seen))


def use(start: int, stop: int, fingerprint: str | None = "a", seed: int | None = 3, block_size: int = 9) -> DataUse:
    return DataUse("x", {}, 0, fingerprint, start, stop, seed, block_size)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(1, 20), st.integers(0, 5))
def test_over_a_lineage_no_block_is_read_twice_however_it_is_cut_into_runs(lengths, block_size, seed):
    plans, seen = [], []
    for length in lengths:
        plan = planned(length, *seen, block_size=block_size, order_seed=None if seen else seed)
        plans.append(plan)
        seen.append(plan.use(length))
    order = BlockOrder(100, seed)
    assert list(chain(*(plan.blocks for plan in plans))) == [order[place] for place in range(sum(lengths))]
    assert [used.start_token for used in seen][1:] == [used.stop_token for used in seen][:-1]


def test_the_order_is_the_lineages_else_what_is_asked_for_else_the_same_for_all():
    other_data = use(0, 10, "b", 1, 5)
    for seed, plan in (
        (ORDER_SEED, planned(1)),
        (7, planned(1, order_seed=7)),
        (7, planned(1, other_data, order_seed=7)),
        (3, planned(1, use(0, 10))),
        (3, planned(1, use(0, 10), order_seed=3)),
    ):
        assert plan.blocks.order.seed == seed


@pytest.mark.parametrize(
    ("seen", "block_size", "asked", "told"),
    [
        (use(0, 10), 9, 4, "with --data.order_seed 3, and 4 would repeat some of it: leave"),
        (use(0, 10), 9, 0, "with --data.order_seed 3, and 0 would"),
        (use(0, 10), 8, None, "in blocks of 9 tokens, and blocks of 8 would repeat some: pass --train"),
        (use(0, 10, seed=None), 9, None, "version 0.1 has read this data for the base as it is stored"),
    ],
)
def test_another_order_or_length_over_data_that_was_read_is_refused(seen, block_size, asked, told):
    with pytest.raises(UserError, match=told):
        planned(1, use(0, 10, "b"), seen, block_size=block_size, order_seed=asked)


def test_the_whole_lineage_counts_and_other_data_does_not():
    assert planned(1, use(0, 500), use(500, 700), use(0, 9999, "b"), use(0, 9999, None)).blocks.first == 70


def test_a_budget_larger_than_what_is_left_names_both_and_the_largest_that_fits():
    seen = use(0, 70 * 1001, block_size=1000)
    with pytest.raises(UserError) as error:
        planned(5, seen, block_size=1000, batch=8)
    assert "40,000 tokens asked, 30,000 left of 100,000" in str(error.value)
    assert "--train.max_tokens 24000 or less, or a target of at most 1,200 parameters at 20" in str(error.value)
    blocks = planned(3, seen, block_size=1000, batch=8).blocks
    assert (blocks.first, blocks.stop) == (70, 94)
    with pytest.raises(UserError, match=r"tokens asked, 0 left of 900 after .*: take other data"):
        planned(1, use(0, 10**6))


@pytest.mark.parametrize(
    ("name", "told"), [("chunk-0-0.bin", "a preparation broke off there: delete"), ("mine.txt", "")]
)
def test_only_a_folder_of_chunks_alone_is_named_as_one_to_delete(tmp_path, name, told):
    (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match="--data Broken: no index.json") as error:
        prepare_data(reading(Broken(tmp_path)))
    assert told in str(error.value) and ("delete" in str(error.value)) == bool(told)


def test_a_tokenizer_that_cannot_be_read_is_not_called_damaged(tmp_path, stdlib_path, monkeypatch):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    shutil.copy(stdlib_path / "tokenizer.json", folder)

    def fails(path: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(UserError, match="the tokenizer in .* cannot be read .Input/output error.: check its files"):
        DataPlan(reading(Blocks(), tokenizer_dir=folder)).tokenizer  # noqa: B018
