"""What a preparation refuses, by name and in one line."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from litgpt_warmstart.data.preparing import plan
from litgpt_warmstart.data.preparing.plan import check_prepared
from litgpt_warmstart.data.preparing.preparation import prepare
from litgpt_warmstart.data.preparing.prepared_index import PreparedIndex
from litgpt_warmstart.errors import UserError
from tests.data.conftest import contents, jsonl, quiet, stop_before_chunks


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


def test_a_column_of_text_files_is_refused(ask):
    with pytest.raises(UserError, match="column 'content' has no meaning for .txt files"):
        prepare(replace(ask, files="*.txt", column="content"), say=quiet)


def test_pieces_of_other_formats_and_of_next_to_nothing_are_refused(ask):
    with pytest.raises(UserError, match="piece_bytes is for .txt files"):
        prepare(replace(ask, piece_bytes=512), say=quiet)
    with pytest.raises(UserError, match="piece_bytes must be at least 64, got 8"):
        prepare(replace(ask, files="*.txt", piece_bytes=8), say=quiet)


def test_data_within_the_text_is_refused(ask):
    with pytest.raises(UserError, match="lies within text_dir: choose another"):
        prepare(replace(ask, data_path=ask.text_dir / "data"), say=quiet)


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
