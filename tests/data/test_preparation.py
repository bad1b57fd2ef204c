"""Every document once, in an order that the seed decides, in the same bytes however the work was done."""

import gzip
import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from litgpt_warmstart.data import encoding, first_pass, plan, preparation, sources
from litgpt_warmstart.data.encoding import DocumentEncoder
from litgpt_warmstart.data.plan import Preparation, check_prepared
from litgpt_warmstart.data.preparation import prepare
from litgpt_warmstart.data.prepared_index import PreparedIndex
from litgpt_warmstart.data.segments import Segment, held_out
from litgpt_warmstart.errors import UserError
from tests.data.conftest import contents, jsonl, parquet, stored_documents, write_folder

ROOT = Path(preparation.__file__).parents[2]


def quiet(line: str) -> None:
    """Says nothing."""


def test_every_document_is_stored_once_with_an_end_of_text_token(ask, texts, stdlib_path, small):
    index = prepare(ask, say=quiet)
    tokenizer = Tokenizer.from_file(str(stdlib_path / "tokenizer.json"))
    expected = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    train, val = stored_documents(ask.data_path, "train"), stored_documents(ask.data_path, "val")
    assert sorted(train) == sorted(expected[20:]) and sorted(val) == sorted(expected[:20])
    assert train != expected[20:] and val != expected[:20], "not shuffled"
    assert index.documents == {"train": 480, "val": 20}
    assert index.tokens["train"] == sum(map(len, train)) + 480
    assert len(index.chunks_sha256["train"]) > 5
    assert sum(file.rows for file in index.files) == 500
    assert json.loads((ask.data_path / "train/index.json").read_text())["chunks"][0]["filename"] == "chunk-0-0.bin"


def test_the_bytes_are_the_same_for_any_number_of_workers(ask, small):
    found = []
    for workers in (1, 2, 5):
        data_path = ask.data_path.with_name(f"with-{workers}")
        prepare(replace(ask, data_path=data_path, num_workers=workers), say=quiet)
        found.append(contents(data_path))
    assert found[0] == found[1] == found[2]
    assert {path.name for path in (ask.data_path.with_name("with-1")).iterdir()} == {
        "train", "val", "prepared.json", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    assert not list(ask.data_path.parent.glob(".*"))


def test_the_seed_decides_the_order_and_nothing_else(ask, small):
    orders = {}
    for seed in (42, 43):
        data_path = ask.data_path.with_name(f"seed-{seed}")
        prepare(replace(ask, data_path=data_path, seed=seed), say=quiet)
        orders[seed] = stored_documents(data_path, "train")
    assert orders[42] != orders[43] and sorted(orders[42]) == sorted(orders[43])


def test_the_order_does_not_depend_on_the_size_of_chunks(ask, small, monkeypatch):
    prepare(replace(ask, data_path=ask.data_path.with_name("small")), say=quiet)
    monkeypatch.setattr(preparation, "CHUNK_TOKENS", 2**24)
    prepare(replace(ask, data_path=ask.data_path.with_name("large")), say=quiet)
    small_order, large_order = (stored_documents(ask.data_path.with_name(n), "train") for n in ("small", "large"))
    assert small_order == large_order


def test_the_shuffle_moves_documents_over_the_whole_split(ask, texts, small, stdlib_path):
    """Of the first and the last half of a single file, about as many end up in each half of the order."""
    folder = ask.text_dir.with_name("one")
    folder.mkdir()
    (folder / "train.parquet").write_bytes(parquet(texts[:400]))
    (folder / "validation.jsonl").write_bytes(jsonl(texts[400:]))
    prepare(replace(ask, text_dir=folder), say=quiet)
    place = {tuple(ids): n for n, ids in enumerate(stored_documents(ask.data_path, "train"))}
    tokenizer = Tokenizer.from_file(str(stdlib_path / "tokenizer.json"))
    places = [place[tuple(encoding.ids)] for encoding in tokenizer.encode_batch(texts[:400])]
    assert 70 <= sum(p < 200 for p in places[:200]) <= 130  # 100 expected, standard deviation 7
    assert abs(np.corrcoef(range(400), places)[0, 1]) < 0.2


def test_without_validation_files_documents_are_held_out_by_their_text_whatever_the_seed(ask, texts, small):
    (ask.text_dir / "validation.parquet").unlink()
    held = {}
    for seed in (1, 2):
        data_path = ask.data_path.with_name(f"held-{seed}")
        index = prepare(replace(ask, data_path=data_path, seed=seed, val_fraction=0.1), say=quiet)
        held[seed] = sorted(stored_documents(data_path, "val"))
        assert sum(index.documents.values()) == 480
        with pytest.raises(UserError, match="val_fraction 0.1, not 0.2"):
            prepare(replace(ask, data_path=data_path, val_fraction=0.2), say=quiet)
    assert held[1] == held[2]
    assert len(held[1]) == sum(held_out(text.encode(), 0.1) for text in texts[20:])
    assert 25 <= len(held[1]) <= 75


def test_of_a_short_text_enough_is_held_out_to_validate(ask, texts, capsys):
    folder = ask.text_dir.with_name("short")
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(jsonl(texts))
    short = replace(ask, text_dir=folder)
    index = prepare(short)
    assert 0.01 < index.source.val_fraction <= 0.08 and index.documents["val"] == sum(
        held_out(text.encode(), index.source.val_fraction) for text in texts
    )
    assert index.tokens["val"] >= 20_000 or index.source.val_fraction == 0.08
    assert "are held out, too few to validate: beginning anew with val_fraction 0.02" in capsys.readouterr().out
    prepare(short, say=quiet)
    asked = prepare(replace(short, data_path=ask.data_path.with_name("asked"), val_fraction=0.01), say=quiet)
    assert asked.source.val_fraction == 0.01, "what is asked for is done"


def test_rows_without_text_are_counted_but_not_stored(ask, texts):
    folder = ask.text_dir.with_name("gaps")
    folder.mkdir()
    (folder / "train.parquet").write_bytes(parquet([texts[0], None, "", " \n", texts[1]]))
    (folder / "validation.parquet").write_bytes(parquet(texts[2:4]))
    index = prepare(replace(ask, text_dir=folder), say=quiet)
    assert index.documents == {"train": 2, "val": 2} and [file.rows for file in index.files] == [5, 2]


KILLS = """
import json, os, random, shutil, signal, sys, time
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {root!r})
from litgpt_warmstart.data import preparation, segments, sources
from litgpt_warmstart.data.plan import Preparation
import litdata.streaming.writer  # so that no child has to
sources.PART_BYTES, sources.BATCH_BYTES, segments.SEGMENT_BYTES = 30_000, 10_000, 20_000
preparation.CHUNK_TOKENS = 50_000
data, text_dir = Path({data!r}), Path({text_dir!r})
ask = Preparation(data / "mine", text_dir=text_dir, files="*", tokenizer={tokenizer!r}, num_workers=2)

def start(ask):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            preparation.prepare(ask, say=str)
            status = 0
        finally:
            os._exit(status)
    return child

started = time.perf_counter()
assert os.waitpid(start(replace(ask, data_path=data / "undisturbed")), 0)[1] == 0
seconds = time.perf_counter() - started
rng, killed, done, early = random.Random(0), 0, [], 0
while killed < 10:
    child = start(ask)
    time.sleep(rng.uniform(0.02, 0.5) * seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        killed += 1
        early += ask.data_path.exists()
        done.append(len(list(data.glob(".mine.partial/*/*.done"))) + len(list(data.glob(".mine.partial/train/*.bin"))))
    else:  # it came to its end: begin anew
        assert status == 0
        shutil.rmtree(ask.data_path)
if not ask.data_path.exists():
    assert os.waitpid(start(ask), 0)[1] == 0
print(json.dumps(dict(early=early, done=done)))
"""


@pytest.mark.slow
def test_killed_at_ten_moments_it_goes_on_and_ends_with_the_same_bytes(ask, stdlib_path):
    data = ask.data_path.parent
    script = KILLS.format(root=str(ROOT), data=str(data), text_dir=str(ask.text_dir), tokenizer=str(stdlib_path))
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout.splitlines()[-1])
    assert said["early"] == 0, "a half-prepared folder looked finished"
    assert len(said["done"]) == 10 and len(set(said["done"])) > 3, "killed at the same moment each time"
    assert contents(ask.data_path) == contents(data / "undisturbed")


def test_what_was_done_is_not_done_again(ask, small, monkeypatch):
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(preparation, "write_chunk", fail)
        with pytest.raises(UserError, match="No space left on device; free space and give the same command to go on"):
            prepare(ask, say=quiet)
    monkeypatch.setattr(first_pass, "encode_part", fail)
    prepare(ask, say=quiet)


def test_an_interrupted_part_keeps_its_finished_segments(ask, small, monkeypatch):
    """The two large compressed files are one part each, of many segments."""
    folder = ask.data_path.with_name(f".{ask.data_path.name}.partial")
    calls = 0
    advance = first_pass.Progress.advance

    def interrupt(self, *counts: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 60:
            raise KeyboardInterrupt
        advance(self, *counts)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(first_pass.Progress, "advance", interrupt)
        prepare(replace(ask, num_workers=1), say=quiet)
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("segments/*.segment")}
    assert len(before) > 5
    prepare(replace(ask, data_path=ask.data_path.with_name("undisturbed")), say=quiet)
    with monkeypatch.context() as patch:  # stop before the segments are removed
        patch.setattr(preparation, "write_split", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(ask, say=quiet)
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("segments/*.segment")}
    assert before.items() <= after.items()
    prepare(ask, say=quiet)
    assert contents(ask.data_path) == contents(ask.data_path.with_name("undisturbed"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (dict(seed=7), "seed 42, not 7"),
        (dict(val_fraction=0.5), None),  # the source has a validation split: no difference
        (dict(column="content"), "column 'text', not 'content'"),
        (dict(dtype="int32"), "dtype 'uint16', not 'int32'"),
        (dict(files="*.txt"), "files '*', not '*.txt'"),
        (dict(repo_id="owner/other", text_dir=None), "not 'owner/other'"),
        (dict(text_dir=Path("elsewhere")), "not 'elsewhere'"),
    ],
)
def test_prepared_and_begun_data_is_refused_where_something_else_is_asked_for(ask, change, told):
    stop_before_chunks(ask)
    if told is None:
        prepare(replace(ask, **change), say=quiet)
        return
    with pytest.raises(UserError, match="the preparation begun in") as begun:
        prepare(replace(ask, **change), say=quiet)
    prepare(ask, say=quiet)
    with pytest.raises(UserError, match="was prepared from") as finished:
        prepare(replace(ask, **change), say=quiet)
    assert told in str(begun.value) and told in str(finished.value)


def test_another_tokenizer_under_the_same_path_is_refused(ask, tmp_path, stdlib_path):
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(stdlib_path, tokenizer)
    prepare(replace(ask, tokenizer=str(tokenizer)), say=quiet)
    prepare(ask, say=quiet)  # the same content elsewhere is the same tokenizer
    prepare(replace(ask, tokenizer=None), say=quiet)  # and nothing asked for is what is there
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    content["model"]["merges"].pop()
    (tokenizer / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="the tokenizer .* as it was, not .* as it is now"):
        prepare(replace(ask, tokenizer=str(tokenizer)), say=quiet)


def test_another_end_of_text_token_is_another_tokenizer(ask, tmp_path, stdlib_path):
    prepare(ask, say=quiet)
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(stdlib_path, tokenizer)
    (tokenizer / "tokenizer_config.json").write_text('{"eos_token": "!"}')
    with pytest.raises(UserError, match="the tokenizer .* as it was, not .* as it is now"):
        prepare(replace(ask, tokenizer=str(tokenizer)), say=quiet)


@pytest.mark.parametrize("thorough", [True, False])
def test_a_changed_source_file_is_named_and_a_removed_folder_is_not_missed(ask, thorough):
    index = prepare(ask, say=quiet)
    path = ask.text_dir / "b.jsonl"
    content = path.read_bytes()
    path.write_bytes(content.swapcase())  # same size, newer
    with pytest.raises(UserError, match=r"'b.jsonl' as it was before it changed"):
        check_prepared(index, ask, thorough)
    path.write_bytes(content)
    check_prepared(index, ask, thorough)
    path.write_bytes(content.swapcase())
    os.utime(path, (0, 0))  # as if it had always been so: only a thorough check sees it
    if thorough:
        with pytest.raises(UserError, match=r"'b.jsonl' as it was before it changed"):
            check_prepared(index, ask, thorough)
    path.write_bytes(content)
    (ask.text_dir / "more.txt").write_text("more")
    with pytest.raises(UserError, match=r"before 'more.txt' came"):
        check_prepared(index, ask, thorough)
    shutil.rmtree(ask.text_dir)
    check_prepared(index, ask, thorough)


def test_a_source_file_that_changes_while_it_is_prepared_is_named(ask):
    stop_before_chunks(ask)
    path = ask.text_dir / "b.jsonl"
    path.write_bytes(path.read_bytes().swapcase())
    with pytest.raises(UserError, match="b.jsonl' has sha256 .* it was changed or damaged"):
        prepare(ask, say=quiet)


def test_an_empty_split_is_told(ask, texts):
    folder = ask.text_dir.with_name("few")
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(jsonl(texts[:1]))
    with pytest.raises(UserError, match=r"val_fraction 0.08 of its 1 documents held out none"):
        prepare(replace(ask, text_dir=folder), say=quiet)
    (folder / "validation.jsonl").write_bytes(jsonl([""]))
    with pytest.raises(UserError, match="the val split of .* has no text"):
        prepare(replace(ask, text_dir=folder), say=quiet)


def test_a_folder_with_something_else_in_it_is_left_alone(ask):
    ask.data_path.mkdir(parents=True)
    (ask.data_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="exists and holds no prepared data"):
        prepare(ask, say=quiet)
    assert contents(ask.data_path) == {"thesis.tex": b"x"}


def stop_before_chunks(ask: Preparation) -> Path:
    """Do the first pass of a preparation; gives its folder."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(preparation, "write_split", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        prepare(ask, say=quiet)
    return ask.data_path.with_name(f".{ask.data_path.name}.partial")


@pytest.mark.parametrize("constant", ["BATCH_BYTES", "PART_BYTES", "PIECE_BYTES"])
def test_a_resume_after_a_constant_changed_is_refused_or_loses_and_repeats_nothing(ask, small, monkeypatch, constant):
    """As after an upgrade: segments of other text are not taken for this one's."""
    folder = stop_before_chunks(ask)
    for marker in folder.glob("segments/*.done"):
        marker.unlink()
    monkeypatch.setattr(sources, constant, 7_000)
    if constant == "BATCH_BYTES":
        with pytest.raises(UserError, match="is of another text: remove its folder to begin anew"):
            prepare(ask, say=quiet)
        return
    prepare(ask, say=quiet)
    prepare(replace(ask, data_path=ask.data_path.with_name("undisturbed")), say=quiet)
    assert sorted(stored_documents(ask.data_path, "train")) == sorted(
        stored_documents(ask.data_path.with_name("undisturbed"), "train")
    )


def test_chunks_of_another_size_are_not_taken_for_this_ones(ask, small, monkeypatch):
    write, written = preparation.write_chunk, []

    def write_two(path: Path, tokens: np.ndarray) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(write(path, tokens))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(preparation, "write_chunk", write_two)
        prepare(replace(ask, num_workers=1), say=quiet)
    monkeypatch.setattr(preparation, "CHUNK_TOKENS", 20_000)
    with pytest.raises(UserError, match="train' has .* tokens, not .*: remove it and go on"):
        prepare(ask, say=quiet)


def test_many_segments_need_few_open_files(ask, small):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40, hard))
    try:
        prepare(ask, say=quiet)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_each_segment_of_a_part_has_keys_of_its_own(ask, texts, small):
    """Documents of equal places in two segments would otherwise follow each other."""
    folder = ask.text_dir.with_name("one")
    folder.mkdir()
    (folder / "train.jsonl.gz").write_bytes(gzip.compress(jsonl(texts)))
    paths = sorted(stop_before_chunks(replace(ask, text_dir=folder, val_fraction=0.1)).glob("segments/*.segment"))
    keys = np.concatenate([s.table(0, s.bounds[-1])["key"] for s in (Segment(p, np.dtype("uint16")) for p in paths)])
    assert len(paths) > 5 and len(set(keys.tolist())) == len(keys) == 500


def test_where_tiktoken_is_wrong_on_a_file_all_is_encoded_anew(ask, small, monkeypatch, capsys):
    wrong = encoding.GPT2_SPLIT.replace(r"\p{L}++", r"(?:ret|\p{L}++)")
    expected = prepare(replace(ask, data_path=ask.data_path.with_name("expected"), encoder="tokenizers"), say=quiet)
    monkeypatch.setattr(encoding, "GPT2_SPLIT", wrong)
    monkeypatch.setattr(DocumentEncoder, "choose", quiet_choice)
    with pytest.raises(UserError, match="tiktoken does not give the tokenizer's ids on .*: leave --encoder out"):
        prepare(replace(ask, encoder="tiktoken"), say=quiet)
    index = prepare(ask)
    assert "beginning anew with tokenizers" in capsys.readouterr().out
    assert index.encoder == "tokenizers" and index.fingerprint == expected.fingerprint


def quiet_choice(self, texts: list[str]) -> None:
    """Sees nothing wrong."""


def test_another_encoder_than_the_begun_one_begins_anew(ask, small):
    times = {path.name: path.stat().st_mtime_ns for path in stop_before_chunks(ask).glob("segments/*.segment")}
    again = stop_before_chunks(replace(ask, encoder="tokenizers")).glob("segments/*.segment")
    assert all(path.stat().st_mtime_ns > times[path.name] for path in again)
    assert prepare(ask, say=quiet).encoder == "tokenizers"


def test_a_link_to_another_disk_is_followed(ask, tmp_path):
    (tmp_path / "big disk").mkdir()
    ask.data_path.parent.mkdir()
    ask.data_path.symlink_to(tmp_path / "big disk")
    prepare(ask, say=quiet)
    assert ask.data_path.is_symlink() and (tmp_path / "big disk/prepared.json").is_file()


def test_ctrl_c_says_how_to_go_on(ask, monkeypatch, capsys):
    monkeypatch.setattr(preparation, "write_split", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare(ask)
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith("The same command goes on; what is done is in ")
    assert ".jsonl, .parquet, .txt files: train 100, val 1; vocabulary 4,096, encoding with tiktoken" in said[0]


def test_files_left_out_are_told(ask, texts, capsys):
    prepare(replace(ask, files=None))
    assert "Reading the .parquet files and leaving out 99 others such as" in capsys.readouterr().out


def test_a_column_of_text_files_is_refused(ask):
    with pytest.raises(UserError, match="column 'content' has no meaning for .txt files"):
        prepare(replace(ask, files="*.txt", column="content"), say=quiet)


def test_data_within_the_text_is_refused(ask):
    with pytest.raises(UserError, match="lies within text_dir: choose another"):
        prepare(replace(ask, data_path=ask.text_dir / "data"), say=quiet)


def test_a_relative_source_is_the_same_from_anywhere(ask, monkeypatch, tmp_path):
    monkeypatch.chdir(ask.text_dir.parent)
    prepare(replace(ask, text_dir=Path(ask.text_dir.name)), say=quiet)
    (tmp_path / "elsewhere" / ask.text_dir.name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    prepare(ask, say=quiet)
    prepare(replace(ask, text_dir=None), say=quiet)


def test_a_damaged_chunk_is_found_by_its_size_or_by_its_content(ask):
    prepare(ask, say=quiet)
    path = ask.data_path / "train/chunk-0-0.bin"
    path.write_bytes(path.read_bytes()[:-2] + b"xx")
    prepare(ask, say=quiet)
    with pytest.raises(UserError, match="chunk-0-0.bin' is damaged"):
        prepare(ask, thorough=True, say=quiet)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match="chunk-0-0.bin' is missing or cut off"):
        prepare(ask, say=quiet)


def test_an_empty_training_file_is_no_obstacle_and_only_empty_ones_are_told(ask, texts):
    folder = ask.text_dir.with_name("empties")
    folder.mkdir()
    pq.ParquetWriter(folder / "train-0.parquet", pa.schema({"text": pa.string()})).close()
    (folder / "validation.parquet").write_bytes(parquet(texts[:5]))
    empties = replace(ask, text_dir=folder)
    with pytest.raises(UserError, match="the training files of .* are empty"):
        prepare(empties, say=quiet)
    (folder / "train-1.parquet").write_bytes(parquet(texts[5:]))
    assert prepare(empties, say=quiet).documents == {"train": 495, "val": 5}


def test_two_processes_do_not_prepare_the_same_folder_at_once(ask, monkeypatch):
    folder = ask.data_path.with_name(f".{ask.data_path.name}.partial")

    def second(*args: object) -> None:
        with pytest.raises(UserError, match="another process is preparing"):
            prepare(ask, say=quiet)
        assert folder.is_dir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(preparation, "_fill", second)
        prepare(ask, say=quiet)


@pytest.mark.parametrize(
    ("vocab_size", "asked", "expected"),
    [(50_257, None, "uint16"), (65_536, None, "uint16"), (65_537, None, "int32"), (50_257, "int32", "int32")],
)
def test_tokens_take_the_smallest_type_that_holds_them(vocab_size, asked, expected):
    assert plan.token_dtype(vocab_size, asked) == expected


def test_a_vocabulary_larger_than_the_type_asked_for_is_refused():
    with pytest.raises(UserError, match="128,256 tokens, more than uint16 holds: leave --dtype out"):
        plan.token_dtype(128_256, "uint16")


def test_a_newer_format_is_refused(ask):
    prepare(ask, say=quiet)
    path = ask.data_path / "prepared.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 9, "new": 1}))
    with pytest.raises(UserError, match="format version 9, this litgpt-warmstart reads up to 1: upgrade it"):
        prepare(ask, say=quiet)
    path.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        PreparedIndex.load(ask.data_path)


def test_too_small_a_disk_is_told_before_anything_is_read(ask, monkeypatch):
    monkeypatch.setattr(plan, "BYTES_PER_TOKEN", 1e-9)
    with pytest.raises(UserError, match=r"preparing takes about [\d.]+ GB on the disk of .* GB free: free space, or"):
        prepare(ask, say=quiet)
    assert not list(ask.data_path.parent.glob(".*"))


FULL_DISK = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from litgpt_warmstart.data import plan, preparation, segments, sources
from litgpt_warmstart.data.plan import Preparation
from litgpt_warmstart.errors import UserError
plan.BYTES_PER_TOKEN = 1e9  # an estimate far too low, to run into it
sources.PART_BYTES, sources.BATCH_BYTES, segments.SEGMENT_BYTES = 30_000, 10_000, 20_000
preparation.CHUNK_TOKENS = 50_000
disk, text_dir = Path({disk!r}), Path({text_dir!r})
ask = Preparation(disk / "mine", text_dir=text_dir, files="*", tokenizer={tokenizer!r}, num_workers=2)
ballast = disk / "ballast"
ballast.write_bytes(bytes({ballast}))
try:
    preparation.prepare(ask, say=str)
except UserError as error:
    print("told:", error)
print("prepared:", ask.data_path.exists())
print("segments:", len(list(disk.glob(".mine.partial/segments/*.done"))))
ballast.unlink()
print("fingerprint:", preparation.prepare(ask, say=str).fingerprint)
"""


@pytest.mark.slow
def test_on_a_full_disk_it_stops_with_one_line_and_goes_on_once_there_is_space(ask, small, tmp_path, stdlib_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    script = FULL_DISK.format(root=str(ROOT), disk=str(disk), text_dir=str(ask.text_dir), tokenizer=str(stdlib_path),
                              ballast=int(3.6 * 2**20))  # fmt: skip
    mount = f"mount -t tmpfs -o size=5m tmpfs '{disk}' && exec '{sys.executable}' -c \"$0\""
    # A mount of its own needs a namespace of its own; without one of these, there is no small disk to try it on.
    unshare = next(
        (u for u in (["unshare", "-m"], ["unshare", "-rm"]) if _works([*u, "sh", "-c", mount, "pass"])), None
    )
    if unshare is None:
        pytest.skip("cannot mount a small disk here")
    ran = subprocess.run([*unshare, "sh", "-c", mount, script], capture_output=True, text=True, timeout=120)
    said = dict(line.split(": ", 1) for line in ran.stdout.splitlines())
    assert "No space left on device; free space and give the same command to go on" in said["told"], ran
    assert said["prepared"] == "False" and int(said["segments"]) > 0
    assert said["fingerprint"] == prepare(ask, say=quiet).fingerprint


def _works(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def test_a_written_folder_is_the_same_for_the_same_text(tmp_path, texts):
    """What the tests above rely on."""
    assert contents(write_folder(tmp_path / "a", texts)).keys() == contents(write_folder(tmp_path / "b", texts)).keys()
