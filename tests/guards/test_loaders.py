"""What a run reads: the same after breaking off, the same at each micro-batch, and only what its model can learn."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.guards.conftest import MAIN, contents, shell, training, write_model

MINE = '''
import os, random, time, torch
from litgpt.data import DataModule
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

def sequences(number, first):
    return torch.randint(0, 500, (number, 65), generator=torch.Generator().manual_seed(first))

class Blocks(Dataset):
    def __init__(self, stored, noisy=False, broken=False, seconds=0.0):
        self.stored, self.noisy, self.broken, self.seconds = stored, noisy, broken, seconds
    def __len__(self):
        return len(self.stored)
    def __getitem__(self, i):
        time.sleep(self.seconds)
        if self.broken:
            raise ValueError("the file cannot be decoded")
        if self.noisy:  # of the process's own random numbers
            return (self.stored[i] + torch.randint(0, 3, (65,)) + random.randrange(3))
        return self.stored[i]

class Stream(IterableDataset):
    def __init__(self, stored):
        self.stored = stored
    def __iter__(self):
        worker = get_worker_info()
        rows = self.stored[worker.id :: worker.num_workers] if worker else self.stored
        yield from (rows[i] for i in torch.randperm(len(rows)))

def started(worker_id):
    open(f"{os.environ['STARTED']}/{worker_id}", "w")

class Mine(DataModule):
    """A user's own, which shuffles."""
    def __init__(self, kind: str = "blocks", num_workers: int = 0, noisy: bool = False, odd_id: int = 1,
                 broken: bool = False, slow: str = "", told: bool = False):
        super().__init__()
        self.kind, self.num_workers, self.noisy, self.odd_id, self.broken, self.slow, self.told = (
            kind, num_workers, noisy, odd_id, broken, slow, told)
    def connect(self, tokenizer=None, batch_size=1, max_seq_length=None):
        self.batch_size = batch_size
    def setup(self, stage=""):
        self.train, self.val = sequences(100, 1), sequences(43, 2)
        self.train[50, 3] = self.odd_id
    def loader(self, split, stored):
        workers, seconds = self.num_workers * (self.slow in ("", split)), 0.1 * (self.slow == split)
        if self.kind == "stream":
            data, order = Stream(stored), {}
        else:
            data, order = Blocks(stored, self.noisy, self.broken, seconds), {"shuffle": True}
        init = started if self.told else None
        return DataLoader(data, self.batch_size, drop_last=True, num_workers=workers, worker_init_fn=init, **order)
    def train_dataloader(self):
        return self.loader("train", self.train)
    def val_dataloader(self):
        return self.loader("val", self.val)
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Options that train on a DataModule in a user's own file."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "my_own_data.py").write_text(MINE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))

    def options(**changes: object) -> list[object]:
        return ["--data", "my_own_data.Mine", *(w for name, v in changes.items() for w in (f"--data.{name}", v))]

    return options


@pytest.fixture(scope="session")
def texts_to_prepare(texts, tmp_path_factory):
    """Makes a folder of short .txt files that nothing is prepared of."""

    def make(number: int = 20) -> Path:
        folder = tmp_path_factory.mktemp("textfiles")
        for path in sorted(texts.iterdir())[:number]:
            (folder / path.name).write_text(path.read_text()[:5500])
        return folder

    return make


@pytest.fixture(scope="session")
def litdata_cache(tmp_path_factory):
    """Environment that keeps litdata's preparation, which empties its cache, off the temporary folder's ``data``."""
    folder = tmp_path_factory.mktemp("litdata")
    names = ("DATA_OPTIMIZER_CACHE_FOLDER", "DATA_OPTIMIZER_DATA_CACHE_FOLDER")
    return {name: str(folder / name) for name in names}


@pytest.fixture(scope="session")
def text_files(texts_to_prepare, models, data, litdata_cache, tmp_path_factory):
    """Options that train on LitGPT's TextFiles, which is prepared."""
    tokenizer = with_begin(data, tmp_path_factory.mktemp("tokenizer") / "begin")
    folder = texts_to_prepare()
    options = ["--data", "TextFiles", "--data.train_data_path", folder, "--tokenizer_dir", tokenizer]
    words = scratch(models, tmp_path_factory.mktemp("first") / "out", *options, "--data.num_workers", 0, steps=1)
    told = shell(*words, **litdata_cache)
    assert told.status == 0, told.err
    return options


def with_begin(data: Path, folder: Path) -> Path:
    """The tokenizer of the prepared text, and its end of text as the begin of text too, which TextFiles wants."""
    folder.mkdir()
    shutil.copy(data / "tokenizer.json", folder)
    end = json.loads((data / "tokenizer.json").read_text())["added_tokens"][0]["content"]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def column(out_dir: Path, name: str) -> list[str]:
    with (out_dir / "metrics.csv").open() as file:
        return [row[name] for row in csv.DictReader(file) if row[name]]


def scratch(models, out_dir, *more, **sizes):
    return ("warmstart_scratch", *training(models[16], out_dir, "--lr", 0.02, *more, **sizes))


# --- the same after breaking off ----------------------------------------------------------------------------------


def check_resumed(command, models, tmp_path, options) -> None:
    """Train 8 steps, and go on from a checkpoint at 3: weights, losses and random numbers are the same."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    more = ("--train.save_interval", 3, "--eval.interval", 2, *options)
    told = command(*scratch(models, whole, *more, steps=8))
    assert told.status == 0, told.err
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "final")
    shutil.rmtree(resumed / "step-00000006")
    told = command(*scratch(models, resumed, *more, "--resume", "true", steps=8))
    assert told.status == 0 and "at step 3" in told.out, told.err
    for name in ("loss", "val_loss"):
        assert column(resumed, name) == column(whole, name)
    ends = [torch.load(out / "final/lit_model.pth", weights_only=True) for out in (whole, resumed)]
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][n], ends[1][n]) for n in ends[0])
    drawn = [torch.load(out / "final/training_state.pth", weights_only=True)["rng"]["cpu"] for out in (whole, resumed)]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("kind", ["blocks", "stream"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_shuffling_module_of_a_users_goes_on_with_what_is_left(command, models, mine, tmp_path, kind, num_workers):
    check_resumed(command, models, tmp_path, mine(kind=kind, num_workers=num_workers, noisy="true"))


def test_textfiles_goes_on_with_what_is_left(command, models, text_files, tmp_path):
    check_resumed(command, models, tmp_path, [*text_files, "--data.num_workers", 2])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_prepared_text_goes_on_with_what_is_left(command, models, from_text, tmp_path, num_workers):
    check_resumed(command, models, tmp_path, [*from_text, "--data.num_workers", num_workers])


def test_a_mix_of_litdatas_datasets_goes_on_with_what_is_left(command, models, data, tmp_path):
    mix = tmp_path / "mix"
    for name, split in (("slimpajama/train", "train"), ("slimpajama/val", "val"), ("starcoder", "val")):
        shutil.copytree(data / split, mix / name)
    options = ["--data", "TinyLlama", "--data.data_path", mix, "--data.num_workers", 2]
    check_resumed(command, models, tmp_path, options)


def test_a_stream_is_not_gone_on_with_by_other_workers_whose_order_would_be_another(command, models, mine, tmp_path):
    words = scratch(models, tmp_path / "out", "--train.save_interval", 3)
    assert command(*words, *mine(kind="stream", num_workers=2)).status == 0
    shutil.rmtree(tmp_path / "out/final")
    told = command(*words, *mine(kind="stream", num_workers=1), "--resume", "true")
    assert told.status == 1 and len(told.error_lines) == 1 and "pass --data.num_workers 2 to go on" in told.err


# --- validation ---------------------------------------------------------------------------------------------------


def check_validation(command, models, tmp_path, options, max_iters) -> None:
    losses = {}
    for micro_batch in (1, 2, 4):
        out_dir = tmp_path / f"micro-{micro_batch}"
        more = (
            "--train.micro_batch_size",
            micro_batch,
            "--eval.max_iters",
            max_iters,
            "--eval.initial_validation",
            "true",
        )
        told = command(*scratch(models, out_dir, "--lr", 1e-9, "--eval.interval", 1, *more, *options, steps=2))
        assert told.status == 0, told.err
        losses[micro_batch] = [float(value) for value in column(out_dir, "val_loss")]
        assert losses[micro_batch] == pytest.approx([losses[1][0]] * 3, abs=2e-6)  # and the same at each validation


@pytest.mark.parametrize("max_iters", [5, 100])
@pytest.mark.parametrize(("kind", "num_workers"), [("blocks", 0), ("blocks", 2), ("stream", 2)])
def test_a_users_validation_is_the_same_at_each_micro_batch(
    command, models, mine, tmp_path, kind, num_workers, max_iters
):
    check_validation(command, models, tmp_path, mine(kind=kind, num_workers=num_workers), max_iters)


@pytest.mark.parametrize("max_iters", [5, 100])
def test_validation_on_textfiles_is_the_same_at_each_micro_batch(command, models, text_files, tmp_path, max_iters):
    check_validation(command, models, tmp_path, [*text_files, "--data.num_workers", 2], max_iters)


def test_a_validation_split_shorter_than_a_micro_batch_is_read(command, models, mine, tmp_path):
    more = ("--train.micro_batch_size", 64, "--eval.max_iters", 100)
    told = command(*scratch(models, tmp_path / "out", *mine(), *more, batch=64, steps=1))
    assert told.status == 0 and len(column(tmp_path / "out", "val_loss")) == 2, told.err


# --- token ids ----------------------------------------------------------------------------------------------------


def test_ids_above_the_classes_are_one_line_before_anything_is_written(command, data, tmp_path):
    small = write_model(tmp_path / "model", 16, 2, vocab_size=128, padded_vocab_size=128)
    options = ["--data", "LitData", "--data.data_path", data, "--data.split_names", "[train,val]"]
    told = command("warmstart_scratch", *training(small, tmp_path / "out", "--lr", 0.02, *options))
    assert told.status == 1 and len(told.error_lines) == 1, told.err
    assert "--data LitData has the token id " in told.err and "the model 128 classes" in told.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("odd_id", [512, -1])
def test_an_odd_id_in_the_middle_of_the_data_is_one_line(command, models, mine, tmp_path, odd_id):
    told = command(*scratch(models, tmp_path / "out", *mine(odd_id=odd_id), steps=12))
    assert told.status == 1 and len(told.error_lines) == 1, told.err
    assert f"--data Mine has the token id {odd_id}, the model 512 classes" in told.err


def trained_tokenizer(texts: Path, folder: Path, config: dict) -> Path:
    """512 byte-level tokens, and the end of text, an added token, as the 513th."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([path.read_text() for path in sorted(texts.iterdir())], trainer)
    tokenizer.add_special_tokens([AddedToken("<|eot|>", special=True)])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|eot|>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_added_tokens_are_counted_and_nothing_is_written(command, models, texts, texts_to_prepare, tmp_path):
    tokenizer, folder = trained_tokenizer(texts, tmp_path / "added", {"bos_token": "<|eot|>"}), texts_to_prepare(2)
    before = contents(folder)
    options = ["--data", "TextFiles", "--data.train_data_path", folder, "--tokenizer_dir", tokenizer]
    told = command(*scratch(models, tmp_path / "out", *options))
    assert told.status == 1 and len(told.error_lines) == 1, told.err
    assert "has 513 tokens, the model 512 classes" in told.err
    assert contents(folder) == before and not (tmp_path / "out").exists()


# --- tokenizers ---------------------------------------------------------------------------------------------------


@pytest.fixture
def own_base(base, tmp_path):
    """A copy of the base, to be spoilt."""
    return Path(shutil.copytree(base, tmp_path / "base"))


def test_a_tokenizer_saved_again_by_transformers_is_the_same(command, own_base, models, from_text, tmp_path):
    from transformers import PreTrainedTokenizerFast

    path = own_base / "tokenizer.json"
    before = path.read_bytes()
    PreTrainedTokenizerFast(tokenizer_file=str(path)).save_pretrained(tmp_path / "again")
    shutil.copy(tmp_path / "again/tokenizer.json", path)
    assert path.read_bytes() != before
    told = command("warmstart", *training(models[48], tmp_path / "out", "--base", own_base, *from_text))
    assert told.status == 0, told.err


def swap_ids(content: dict) -> None:
    names = list(content["model"]["vocab"])[300:302]
    ids = content["model"]["vocab"]
    ids[names[0]], ids[names[1]] = ids[names[1]], ids[names[0]]


@pytest.mark.parametrize(
    "change",
    [swap_ids, lambda content: content["model"]["merges"].pop()],
    ids=["two ids swapped", "a merge gone"],
)
def test_a_tokenizer_that_gives_other_ids_is_another(command, own_base, models, from_text, tmp_path, change):
    path = own_base / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    told = command("warmstart", *training(models[48], tmp_path / "out", "--base", own_base, *from_text))
    assert told.status == 1 and len(told.error_lines) == 1, told.err
    assert "gives other ids than" in told.err or "another tokenizer" in told.err, told.err
    assert not (tmp_path / "out").exists()


def test_a_damaged_tokenizer_is_one_line(command, own_base, models, from_text, tmp_path):
    path = own_base / "tokenizer.json"
    whole, draw = path.read_bytes(), random.Random(1)
    flipped = [bytearray(whole) for _ in range(8)]
    for content in flipped:
        content[draw.randrange(len(whole))] ^= 0x80
    for content in (b"", b"[]", b"{}", b"tokenizer", whole[:1000], *flipped):
        path.write_bytes(content)
        told = command("warmstart", *training(models[48], tmp_path / "out", "--base", own_base, *from_text))
        assert told.status == 1 and len(told.error_lines) == 1 and str(own_base) in told.err, told.err
        assert not (tmp_path / "out").exists()


# --- breaking off -------------------------------------------------------------------------------------------------


def wait_for_rows(out_dir: Path, rows: int, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        path = out_dir / "metrics.csv"
        if path.exists() and path.read_text().count("\n") > rows:
            return
        time.sleep(0.01)
    raise AssertionError("no step was taken")


@pytest.mark.parametrize("harm", ["removed", "cut off"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_chunk_that_goes_in_mid_run_is_one_line_that_names_it(command, models, data, tmp_path, harm, num_workers):
    own = Path(shutil.copytree(data, tmp_path / "text"))
    (chunk,) = (own / "train").glob("chunk-*.bin")
    out_dir = tmp_path / "out"

    def spoil() -> None:
        wait_for_rows(out_dir, 3)
        chunk.unlink() if harm == "removed" else os.truncate(chunk, 100)

    thread = threading.Thread(target=spoil)
    thread.start()
    options = ["--data", "PreparedText", "--data.data_path", own, "--data.num_workers", num_workers]
    told = command(*scratch(models, out_dir, *options, steps=150))
    thread.join()
    assert told.status == 1 and len(told.error_lines) == 1, told.err
    assert chunk.name in told.err and "prepare the data again" in told.err and "Traceback" not in told.err


def test_the_cause_of_a_workers_error_is_told(command, models, mine, tmp_path):
    told = command(*scratch(models, tmp_path / "out", *mine(num_workers=2, broken="true")))
    assert told.status == 1 and not (tmp_path / "out").exists()
    (line,) = told.error_lines
    assert line.endswith("--data Mine: ValueError: the file cannot be decoded")
    assert shell(*scratch(models, tmp_path / "out", *mine(num_workers=2, broken="true"))).err == told.err  # and it ends


def test_the_cause_of_a_preparations_error_is_told(
    command, texts, texts_to_prepare, litdata_cache, tmp_path, monkeypatch
):
    for name, value in litdata_cache.items():
        monkeypatch.setenv(name, value)
    tokenizer = trained_tokenizer(texts, tmp_path / "no_bos", {"bos_token": None})
    larger = write_model(tmp_path / "model", 16, 2, vocab_size=513, padded_vocab_size=640)
    options = ["--data", "TextFiles", "--data.train_data_path", texts_to_prepare(2), "--tokenizer_dir", tokenizer]
    words = training(larger, tmp_path / "out", "--lr", 0.02, *options)
    told = command("warmstart_scratch", *words)
    assert told.status == 1 and not (tmp_path / "out").exists()
    (line,) = (line for line in told.error_lines if "error: " in line)  # litdata draws its progress on it
    assert "error: --data TextFiles" in line and "NotImplementedError" in line and "Traceback" not in told.err, told.err


# --- workers ------------------------------------------------------------------------------------------------------


def children(process: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="/proc tells of workers on Linux alone")
@pytest.mark.parametrize("split", ["train", "val"])
def test_workers_leave_signals_to_the_run_and_end_with_it(models, mine, tmp_path, monkeypatch, split):
    (tmp_path / "started").mkdir()
    monkeypatch.setenv("STARTED", str(tmp_path / "started"))
    out_dir = tmp_path / "out"
    words = scratch(models, out_dir, "--resume", "auto", "--train.save_interval", 1)
    options = mine(num_workers=2, slow=split, told="true")
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen([*MAIN, *map(str, (*words, *options))], stdout=log, stderr=log)
    end = time.monotonic() + 60
    while len(workers := children(run.pid)) < 2 or not (out_dir / ".lock").exists():
        assert run.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
        time.sleep(0.005)
    time.sleep(0.1)  # they have begun
    for worker in workers:
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGTERM, signal.SIGINT):
            os.kill(worker, number)
    run.send_signal(signal.SIGSTOP)
    time.sleep(1.2)  # now they have read ahead and wait, and would notice nothing for seconds
    assert all(map(alive, workers))
    run.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    run.wait()
    while any(map(alive, workers)) and time.monotonic() < killed + 1:
        time.sleep(0.001)
    print(f"the workers were gone after {time.monotonic() - killed:.3f} s")
    assert not any(map(alive, workers))
    told = shell(*words, *options)
    assert told.status == 0, told.err
    assert sorted(os.listdir(tmp_path / "started")) == ["0", "1"]  # the module's own worker_init_fn is still called
