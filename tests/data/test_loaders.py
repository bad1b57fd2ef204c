"""DataModules, ours and LitGPT's: how they are recorded, made again, and turned into batches."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from litgpt.data import LitData, MicroLlama, OpenWebText, TextFiles, TinyLlama, TinyStories

from litgpt_warmstart.data import StdlibText
from litgpt_warmstart.data.blocks import BlockOrder, BlockRange
from litgpt_warmstart.data.loaders import next_batches
from litgpt_warmstart.data.plan import DataPlan
from litgpt_warmstart.data.recorded import recorded_data
from litgpt_warmstart.data.use import DataUse, Reading, class_path, init_args
from litgpt_warmstart.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "data",
    [
        StdlibText(Path("a")),
        TextFiles(Path("a"), seed=3),
        LitData("a", split_names=("train", "val")),
        TinyLlama("a", use_starcoder=False),
        OpenWebText("a"),
        TinyStories(Path("a")),
        MicroLlama("a/", seed=7),
    ],
    ids=lambda data: type(data).__name__,
)
def test_a_recorded_module_is_made_again_with_its_arguments_where_its_data_is_prepared(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"is not prepared here.*--data {type(data).__name__}"):
        recorded_data(DataUse(class_path(data), init_args(data), tokens=0))
    for name in ("", "train", "val", "slimpajama/train", "slimpajama/val"):
        (tmp_path / "a" / name).mkdir(parents=True, exist_ok=True)
        config = dict(item_loader="TokensLoader", data_format=["no_header_tensor:16"], data_spec=None)
        (tmp_path / "a" / name / "index.json").write_text(json.dumps({"chunks": [], "config": config}))
    (tmp_path / "a/prepared.json").touch()
    (tmp_path / "a/TinyStories_all_data").mkdir()
    for number in range(2):
        (tmp_path / f"a/TinyStories_all_data/{number}.json").touch()
    arguments = init_args(data)
    assert all(type(value) in (str, int, float, bool, list, type(None)) for value in arguments.values())
    again = recorded_data(DataUse(class_path(data), arguments, tokens=0))
    number = {} if "num_workers" not in arguments else {"num_workers": min(arguments["num_workers"], os.cpu_count())}
    assert type(again) is type(data) and init_args(again) == arguments | number  # no more processes than cores
    assert class_path(data).count(".") == 2  # the short path that --data shows


@pytest.mark.parametrize(
    ("path", "arguments", "told"),
    [
        ("subprocess.Popen", {"args": "true"}, "name it with --data"),
        ("litgpt.data.base.Any", {}, "name it with --data"),
        ("litgpt.data.Alpaca", {"prompt_style": {"class_path": "os.path"}}, "name it with --data"),
        ("litgpt_warmstart.data.StdlibText", {"no_such": 1}, "cannot be set up again, no_such is 1"),
        ("litgpt.data.TextFiles", {"train_data_path": {"class_path": "os.path"}}, "cannot be set up again"),
        ("litgpt.data.TinyLlama", {"data_path": "a", "seed": "1"}, "cannot be set up again, seed is '1'"),
    ],
)
def test_a_record_makes_nothing_but_a_datamodule_of_litgpt_or_ours(path, arguments, told):
    with pytest.raises(UserError, match=told):
        recorded_data(DataUse(path, arguments, tokens=0))


def test_targets_are_the_tokens_that_follow():
    stored = torch.arange(10, dtype=torch.int32).view(2, 5)
    input_ids, targets = next(next_batches([stored], CPU))
    assert input_ids.tolist() == [[0, 1, 2, 3], [5, 6, 7, 8]] and targets.tolist() == [[1, 2, 3, 4], [6, 7, 8, 9]]
    assert input_ids.dtype == targets.dtype == torch.int64 and targets.is_contiguous()


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        ({"input_ids": torch.zeros(2, 5)}, "take one for pretraining"),
        (torch.zeros(2, 5), "take one for pretraining"),
        (torch.zeros(2, 6, dtype=torch.int64), "sequences of 6 tokens, and not 5"),
        (torch.zeros(3, 5, dtype=torch.int64), "gives 3 sequences at once, and not the micro-batch of 2"),
        (torch.tensor([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]), "has the token id 9, the model 9 classes"),
        (torch.tensor([[0, 1, 2, 3, 4], [5, 6, 7, 8, -1]], dtype=torch.int16), "has the token id -1, the model 9"),
    ],
)
def test_batches_that_a_model_cannot_be_trained_on_are_refused(batch, told):
    with pytest.raises(UserError, match=told):
        list(DataPlan(reading_of([batch])).train_loader(0, None))


def reading_of(batches: list) -> Reading:
    """What is read of a DataModule that gives these batches."""
    data = SimpleNamespace(train_dataloader=lambda: batches)
    return Reading(data, block_size=4, micro_batch_size=2, global_batch_size=2, max_steps=9, num_classes=9, seed=1)


def test_a_loader_without_a_position_is_read_up_to_it_and_one_that_is_too_short_is_told():
    batches = [torch.full((2, 5), number) for number in range(4)]
    plan = DataPlan(reading_of([*batches[:1], torch.zeros(1, 5, dtype=torch.int64), *batches[1:]]))  # one is not whole
    state = plan.train_loader(0, None).state()
    assert [int(batch[0, 0]) for batch in plan.train_loader(2, state)] == [2, 3]
    with pytest.raises(UserError, match="has 4 micro-batches, and the run has read 6"):
        list(plan.train_loader(6, state))
    with pytest.raises(UserError, match="version 0.1 did not keep the order in which this run read"):
        plan.train_loader(2, None)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_plan_hands_each_process_its_share_from_the_next_block_on(stdlib_path, num_processes):
    data = StdlibText(stdlib_path)
    order = BlockOrder(data.num_blocks("train", 16), 0)
    plan = DataPlan(Reading(data, 16, 2, 8, 3, 4096, seed=1), BlockRange(order, 10, 34, 16))
    loaders = [plan.train_loader(1, None, rank, num_processes) for rank in range(num_processes)]
    read = [batch[0].tolist() for group in zip(*loaders, strict=True) for batch in group]
    blocks = [order[place] for place in range(18, 34, 2)]
    assert read == [data.tokens("train")[block * 17 : (block + 1) * 17].tolist() for block in blocks]


def test_reading_ahead_gives_the_same_batches_and_is_one_ahead():
    asked = []

    def loader(number: int):
        for index in range(number):
            asked.append(index)
            yield torch.full((2, 4), index, dtype=torch.uint16)

    for number in (0, 1, 3):
        plain = [(int(x[0, 0]), tuple(x.shape), tuple(y.shape)) for x, y in next_batches(loader(number), CPU)]
        ahead = [(int(x[0, 0]), tuple(x.shape), tuple(y.shape)) for x, y in next_batches(loader(number), CPU, True)]
        assert ahead == plain == [(index, (2, 3), (2, 3)) for index in range(number)]
    asked.clear()
    next(next_batches(loader(3), CPU, ahead=True))
    assert asked == [0, 1]
