"""What a preparation refuses, by name and in one line."""

import errno
import json
import os
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from litgpt_warmstart import files
from litgpt_warmstart.data.preparing import request
from litgpt_warmstart.data.preparing.read import folder_files
from litgpt_warmstart.data.preparing.write import portions_of
from litgpt_warmstart.errors import UserError
from tests.data.conftest import contents, jsonl, of, prepare, stop_after


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (dict(seed=7), "seed 42, not 7"),
        (dict(val_fraction=0.5), None),  # the source has a validation split: no difference
        (dict(column="content"), "column 'text', not 'content'"),
        (dict(dtype="int32"), "dtype 'uint16', not 'int32'"),
        (dict(files="*.txt"), "files '*', not '*.txt'"),
        (dict(repo_id="owner/other", text_dir=None), "not 'owner/other'"),
        (dict(text_dir=Path("elsewhere")), "elsewhere'"),
    ],
)
def test_prepared_and_begun_data_is_refused_where_something_else_is_asked_for(ask, small, change, told):
    stop_after(2, ask)
    if told is None:
        prepare(replace(ask, **change))
        return
    with pytest.raises(UserError, match="the preparation begun in") as begun:
        prepare(replace(ask, **change))
    prepare(ask)
    with pytest.raises(UserError, match="was prepared from") as finished:
        prepare(replace(ask, **change))
    assert told in str(begun.value) and told in str(finished.value)


def another_merge(tokenizer: Path) -> None:
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    content["model"]["merges"].pop()
    (tokenizer / "tokenizer.json").write_text(json.dumps(content))


def another_end(tokenizer: Path) -> None:
    (tokenizer / "tokenizer_config.json").write_text('{"eos_token": "!"}')


@pytest.mark.parametrize("change", [another_merge, another_end])
def test_another_tokenizer_under_the_same_path_is_refused(ask, tmp_path, stdlib_path, change):
    tokenizer = Path(shutil.copytree(stdlib_path, tmp_path / "tokenizer"))
    prepare(replace(ask, tokenizer=str(tokenizer)))
    prepare(ask)  # the same content elsewhere is the same tokenizer
    prepare(replace(ask, tokenizer=None))  # and nothing asked for is what is there
    change(tokenizer)
    with pytest.raises(UserError, match="the tokenizer .* as it was, not .* as it is now"):
        prepare(replace(ask, tokenizer=str(tokenizer)))


@pytest.mark.parametrize("thorough", [True, False])
def test_a_changed_source_file_is_named_and_a_removed_folder_is_not_missed(ask, thorough):
    prepare(ask)
    path = ask.text_dir / "b.jsonl"
    content = path.read_bytes()

    def refused(name: str) -> None:
        with pytest.raises(UserError, match=f"before '{name}' changed: choose another"):
            prepare(ask, thorough)

    path.write_bytes(content.swapcase())  # same size, newer
    refused("b.jsonl")
    os.utime(path, (0, 0))  # as if it had always been so: only a thorough check sees it
    refused("b.jsonl") if thorough else prepare(ask)
    path.write_bytes(content)
    prepare(ask, thorough)
    (ask.text_dir / "more.txt").write_text("more")
    refused("more.txt")
    (ask.text_dir / "more.txt").unlink()
    path.unlink()
    refused("b.jsonl")
    shutil.rmtree(ask.text_dir)
    prepare(ask, thorough)


def test_a_source_file_that_changes_while_it_is_prepared_is_named(ask, small):
    portions = list(portions_of(folder_files(ask.text_dir, "*")))
    stop_after(next(n for n, portion in enumerate(portions, 1) if portion.parts[0].name == "b.jsonl"), ask)
    path = ask.text_dir / "b.jsonl"
    path.write_bytes(path.read_bytes().replace(b"self", b"none"))
    with pytest.raises(UserError, match="'b.jsonl' has changed while it was prepared: remove"):
        prepare(ask)


def test_an_empty_split_is_told(ask, texts):
    few = of({"train.jsonl": jsonl(texts[:1])}, ask)
    with pytest.raises(
        UserError, match="the val split of .* has no text: give it documents or a file named validation"
    ):
        prepare(few)
    (few.text_dir / "validation.jsonl").write_bytes(jsonl([""]))
    with pytest.raises(UserError, match="the val split of .* has no text: give it documents$"):
        prepare(few)


def test_a_folder_with_something_else_in_it_is_left_alone(ask):
    ask.data_path.mkdir(parents=True)
    (ask.data_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="exists and holds no prepared data"):
        prepare(ask)
    assert contents(ask.data_path) == {"thesis.tex": b"x"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (dict(files="*.txt", column="content"), "column 'content' has no meaning for .txt files"),
        (dict(piece_bytes=512), "piece_bytes is for .txt files"),
        (dict(files="*.txt", piece_bytes=8), "piece_bytes must be at least 64, got 8"),
        (dict(data_path="TEXT/data"), "lies within text_dir: choose another"),
    ],
)
def test_what_no_preparation_can_be_is_refused(ask, change, told):
    if "data_path" in change:
        change = {"data_path": ask.text_dir / "data"}
    with pytest.raises(UserError, match=told):
        prepare(replace(ask, **change))


def test_a_damaged_chunk_is_found_by_its_size_or_by_its_content(ask):
    prepare(ask)
    path = ask.data_path / "train/chunk-0-0.bin"
    path.write_bytes(path.read_bytes()[:-2] + b"xx")
    prepare(ask)
    with pytest.raises(UserError, match="chunk-0-0.bin' is not as it was prepared"):
        prepare(ask, thorough=True)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match="chunk-0-0.bin' is missing or cut off"):
        prepare(ask)


def test_data_that_was_found_good_is_compared_again_when_it_is_prepared_again(ask, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prepare(ask)
    prepare(ask, thorough=True)
    path = ask.data_path / "train/chunk-0-0.bin"
    stat, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    files._sha256.cache_clear()  # as another process has it
    with pytest.raises(UserError, match="chunk-0-0.bin' is not as it was prepared"):
        prepare(ask, thorough=True)


def test_too_small_a_disk_is_told_before_anything_is_read(ask, monkeypatch):
    monkeypatch.setattr(request, "BYTES_PER_TOKEN", 1e-9)
    with pytest.raises(UserError, match=r"the tokens take about [\d.]+ GB of the disk of .* GB free: free space, or"):
        prepare(ask)
    assert not list(ask.data_path.parent.glob(".*"))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("[]", "is damaged"),
        ("{}", "is damaged"),
        ("[" * 10**5, "is damaged"),
        ({"chunks": {"train": [{"name": "a", "tokens": "many", "sha256": ""}]}}, "is damaged"),
        ({"format_version": 9, "new": 1}, "format version 9, this litgpt-warmstart reads up to 2: upgrade it"),
    ],
)
def test_a_damaged_index_or_one_of_another_format_is_one_line(ask, damage, told):
    prepare(ask)
    path = ask.data_path / "prepared.json"
    path.write_text(damage if isinstance(damage, str) else json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(UserError, match=told) as error:
        prepare(ask)
    assert "\n" not in str(error.value)


def test_an_index_that_cannot_be_read_is_no_reason_to_remove_what_is_prepared(ask, monkeypatch):
    prepare(ask)

    def fails(path: Path, **settings: str) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(Path, "read_text", fails)
    with pytest.raises(UserError, match="prepared.json' cannot be read .Input/output error.: check path") as error:
        prepare(ask)
    assert "remove" not in str(error.value)


@pytest.mark.parametrize("place", ["fingerprint", "name of a chunk", "split"])
def test_nothing_that_prepared_json_says_leads_to_a_file_elsewhere(ask, tmp_path, monkeypatch, place):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    index = prepare(ask)
    (tmp_path / "mine.json").write_text("mine")
    chunks = dict(index.chunks)
    if place == "name of a chunk":
        chunks["val"] = (replace(chunks["val"][0], name=f"../val/{chunks['val'][0].name}"),)
    elif place == "split":
        chunks["../mine/val"] = chunks["val"]
    fingerprint = "../../../mine" if place == "fingerprint" else index.fingerprint
    replace(index, chunks=chunks, fingerprint=fingerprint).save(ask.data_path / "prepared.json")
    with pytest.raises(UserError, match="prepared.json' is damaged"):
        prepare(ask, thorough=True)
    assert (tmp_path / "mine.json").read_text() == "mine"


def test_data_of_the_first_landing_is_refused_with_the_command_that_prepares_it_again(ask):
    prepare(ask)
    path = ask.data_path / "prepared.json"
    content = json.loads(path.read_text())
    chunks = {split: [chunk["sha256"] for chunk in found] for split, found in content.pop("chunks").items()}
    content["source"] |= {"executor": "ray", "x; rm -r ~": ""}  # somebody else's file may hold anything
    path.write_text(json.dumps(content | {"format_version": 1, "tokens": {}, "chunks_sha256": chunks}))
    with pytest.raises(UserError, match="was prepared by litgpt-warmstart 0.1, in another format") as error:
        prepare(ask)
    words = shlex.split(str(error.value).partition("prepare it again with ")[2])
    assert words == ["litgpt", "warmstart_prepare_data", "--text_dir", str(ask.text_dir), "--files", "*",
                     "--tokenizer", ask.tokenizer, "--seed", "42", "--data_path", f"{ask.data_path}-2"]  # fmt: skip
