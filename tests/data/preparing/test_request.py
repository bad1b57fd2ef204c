"""What a preparation refuses, by name and in one line."""

import json
import os
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from litgpt_warmstart.data.preparing import request
from litgpt_warmstart.data.preparing.index import PreparedIndex
from litgpt_warmstart.data.preparing.request import check_prepared
from litgpt_warmstart.errors import UserError
from tests.data.conftest import contents, jsonl, prepare, stop_after


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


def test_another_tokenizer_under_the_same_path_is_refused(ask, tmp_path, stdlib_path):
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(stdlib_path, tokenizer)
    prepare(replace(ask, tokenizer=str(tokenizer)))
    prepare(ask)  # the same content elsewhere is the same tokenizer
    prepare(replace(ask, tokenizer=None))  # and nothing asked for is what is there
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    content["model"]["merges"].pop()
    (tokenizer / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="the tokenizer .* as it was, not .* as it is now"):
        prepare(replace(ask, tokenizer=str(tokenizer)))


def test_another_end_of_text_token_is_another_tokenizer(ask, tmp_path, stdlib_path):
    prepare(ask)
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(stdlib_path, tokenizer)
    (tokenizer / "tokenizer_config.json").write_text('{"eos_token": "!"}')
    with pytest.raises(UserError, match="the tokenizer .* as it was, not .* as it is now"):
        prepare(replace(ask, tokenizer=str(tokenizer)))


@pytest.mark.parametrize("thorough", [True, False])
def test_a_changed_source_file_is_named_and_a_removed_folder_is_not_missed(ask, thorough):
    index = prepare(ask)
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


def test_a_source_file_that_changes_while_it_is_prepared_is_named(ask, small):
    stop_after(6, ask)
    path = ask.text_dir / "b.jsonl"
    path.write_bytes(path.read_bytes().swapcase())
    with pytest.raises(UserError, match="b.jsonl' has sha256 .* it was changed or damaged"):
        prepare(ask)


def test_an_empty_split_is_told(ask, texts):
    folder = ask.text_dir.with_name("few")
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(jsonl(texts[:1]))
    with pytest.raises(UserError, match=r"val_fraction 0.08 of its 1 documents held out none"):
        prepare(replace(ask, text_dir=folder))
    (folder / "validation.jsonl").write_bytes(jsonl([""]))
    with pytest.raises(UserError, match="the val split of .* has no text"):
        prepare(replace(ask, text_dir=folder))


def test_a_folder_with_something_else_in_it_is_left_alone(ask):
    ask.data_path.mkdir(parents=True)
    (ask.data_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="exists and holds no prepared data"):
        prepare(ask)
    assert contents(ask.data_path) == {"thesis.tex": b"x"}


def test_a_column_of_text_files_is_refused(ask):
    with pytest.raises(UserError, match="column 'content' has no meaning for .txt files"):
        prepare(replace(ask, files="*.txt", column="content"))


def test_pieces_of_other_formats_and_of_next_to_nothing_are_refused(ask):
    with pytest.raises(UserError, match="piece_bytes is for .txt files"):
        prepare(replace(ask, piece_bytes=512))
    with pytest.raises(UserError, match="piece_bytes must be at least 64, got 8"):
        prepare(replace(ask, files="*.txt", piece_bytes=8))


def test_data_within_the_text_is_refused(ask):
    with pytest.raises(UserError, match="lies within text_dir: choose another"):
        prepare(replace(ask, data_path=ask.text_dir / "data"))


def test_a_damaged_chunk_is_found_by_its_size_or_by_its_content(ask):
    prepare(ask)
    path = ask.data_path / "train/chunk-0-0.bin"
    path.write_bytes(path.read_bytes()[:-2] + b"xx")
    prepare(ask)
    with pytest.raises(UserError, match="chunk-0-0.bin' is damaged"):
        prepare(ask, thorough=True)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match="chunk-0-0.bin' is missing or cut off"):
        prepare(ask)


def test_a_vocabulary_larger_than_the_type_asked_for_is_refused():
    with pytest.raises(UserError, match="128,256 tokens, more than uint16 holds: leave --dtype out"):
        request.token_dtype(128_256, "uint16")


def test_a_newer_format_is_refused(ask):
    prepare(ask)
    path = ask.data_path / "prepared.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 9, "new": 1}))
    with pytest.raises(UserError, match="format version 9, this litgpt-warmstart reads up to 2: upgrade it"):
        prepare(ask)
    path.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        PreparedIndex.load(ask.data_path)


def test_too_small_a_disk_is_told_before_anything_is_read(ask, monkeypatch):
    monkeypatch.setattr(request, "BYTES_PER_TOKEN", 1e-9)
    with pytest.raises(UserError, match=r"preparing takes about [\d.]+ GB on the disk of .* GB free: free space, or"):
        prepare(ask)
    assert not list(ask.data_path.parent.glob(".*"))


def test_data_of_the_first_landing_is_refused_with_the_command_that_prepares_it_again(ask):
    prepare(ask)
    path = ask.data_path / "prepared.json"
    content = json.loads(path.read_text())
    chunks = {split: [chunk["sha256"] for chunk in found] for split, found in content.pop("chunks").items()}
    path.write_text(json.dumps(content | {"format_version": 1, "tokens": {}, "chunks_sha256": chunks}))
    with pytest.raises(UserError, match="was prepared by litgpt-warmstart 0.1, in another format") as error:
        prepare(ask)
    words = shlex.split(str(error.value).partition("prepare it again with ")[2])
    assert words == ["litgpt", "warmstart_prepare_data", "--text_dir", str(ask.text_dir), "--files", "*",
                     "--tokenizer", ask.tokenizer, "--seed", "42", "--data_path", f"{ask.data_path}-2"]  # fmt: skip


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"format_version": "x"}', "[" * 10**5, "tokens", "chunks"])
def test_a_damaged_index_is_one_line(ask, damage):
    prepare(ask)
    path = ask.data_path / "prepared.json"
    content = json.loads(path.read_text())
    if damage in ("tokens", "chunks"):
        content["chunks"] = {"train": [{"name": "a", "tokens": "many", "sha256": ""}]} if damage == "tokens" else 5
        damage = json.dumps(content)
    path.write_text(damage)
    with pytest.raises(UserError, match="prepared.json' is damaged .*: prepare the data again") as error:
        PreparedIndex.load(ask.data_path)
    assert "\n" not in str(error.value)
