"""DataModules, ours and LitGPT's: how they are recorded, made again, and turned into batches."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.cli import instantiate_class
from litgpt.data import LitData, MicroLlama, OpenWebText, TextFiles, TinyLlama, TinyStories

from litgpt_warmstart.data import StdlibText
from litgpt_warmstart.data.loaders import SkippingLoader, class_path, init_args, next_batches
from litgpt_warmstart.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "data",
    [
        StdlibText(Path("a/b")),
        TextFiles(Path("a"), seed=3),
        LitData("a", split_names=("train", "val")),
        TinyLlama("a", use_starcoder=False),
        OpenWebText("a"),
        TinyStories(Path("a")),
        MicroLlama("a", seed=7),
    ],
    ids=lambda data: type(data).__name__,
)
def test_a_recorded_module_is_made_again_with_its_arguments(data):
    arguments = init_args(data)
    assert all(type(value) in (str, int, float, bool, list, type(None)) for value in arguments.values())
    again = instantiate_class((), {"class_path": class_path(data), "init_args": arguments})
    assert type(again) is type(data) and init_args(again) == arguments
    assert class_path(data).count(".") == 2  # the short path that --data shows


def test_targets_are_the_tokens_that_follow():
    stored = torch.arange(10, dtype=torch.int32).view(2, 5)
    input_ids, targets = next(next_batches([stored], CPU))
    assert input_ids.tolist() == [[0, 1, 2, 3], [5, 6, 7, 8]] and targets.tolist() == [[1, 2, 3, 4], [6, 7, 8, 9]]
    assert input_ids.dtype == targets.dtype == torch.int64 and targets.is_contiguous()


def test_batches_of_an_instruction_tuning_module_are_refused():
    with pytest.raises(UserError, match="pretraining"):
        next(next_batches([{"input_ids": torch.zeros(2, 5)}], CPU))


def test_a_loader_without_a_position_is_read_up_to_it():
    assert list(SkippingLoader([1, 2, 3, 4], 2)) == [3, 4]
