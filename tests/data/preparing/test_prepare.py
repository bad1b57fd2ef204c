"""Text to tokens: what comes out, whatever the workers, the order and the chunks."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from litgpt_warmstart.data.preparing import encode, request, write
from litgpt_warmstart.data.preparing import prepare as preparing
from litgpt_warmstart.data.preparing.read import SourceFile, split_of
from litgpt_warmstart.data.preparing.write import portions_of, share_of
from litgpt_warmstart.errors import UserError
from tests.data.conftest import contents, ids_of, jsonl, of, parquet, prepare, quiet, stored_documents


def test_every_document_is_stored_once_with_an_end_of_text_token(ask, texts, small):
    index, expected = prepare(ask), ids_of(ask, texts)
    train, val = stored_documents(ask.data_path, "train"), stored_documents(ask.data_path, "val")
    assert sorted(train) == sorted(expected[20:]) and sorted(val) == sorted(expected[:20])
    assert train != expected[20:] and val != expected[:20], "not shuffled"
    assert index.documents == {"train": 480, "val": 20}
    assert index.tokens["train"] == sum(map(len, train)) + 480
    assert len(index.chunks["train"]) > 5
    assert sum(file.rows for file in index.files) == 500
    assert json.loads((ask.data_path / "train/index.json").read_text())["chunks"][0]["filename"] == "chunk-0-0.bin"


def test_the_bytes_are_the_same_for_any_number_of_workers(ask, small):
    found = []
    for workers in (1, 2, 5):
        data_path = ask.data_path.with_name(f"with-{workers}")
        preparing.prepare(replace(ask, data_path=data_path, num_workers=workers), say=quiet)
        found.append(contents(data_path))
    prepare(replace(ask, data_path=ask.data_path.with_name("here")))
    assert found[0] == found[1] == found[2] == contents(ask.data_path.with_name("here"))
    assert {path.name for path in (ask.data_path.with_name("with-1")).iterdir()} == {
        "train", "val", "prepared.json", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    assert not list(ask.data_path.parent.glob(".*"))


def test_the_seed_decides_the_order_and_nothing_else(ask, small):
    orders = {}
    for seed in (42, 43):
        data_path = ask.data_path.with_name(f"seed-{seed}")
        prepare(replace(ask, data_path=data_path, seed=seed))
        orders[seed] = stored_documents(data_path, "train")
    assert orders[42] != orders[43] and sorted(orders[42]) == sorted(orders[43])


def test_the_documents_of_a_portion_are_shuffled_together(ask, texts):
    """Of the first and the last half of a file, and of several small ones, about as many are in each half."""
    files = {f"train-{number}.parquet": parquet(texts[100 * number : 100 * (number + 1)]) for number in range(4)}
    assert len(prepare(of(files | {"validation.jsonl": jsonl(texts[400:])}, ask)).chunks["train"]) == 1
    place = {ids: n for n, ids in enumerate(stored_documents(ask.data_path, "train"))}
    places = [place[ids] for ids in ids_of(ask, texts[:400])]
    assert 70 <= sum(p < 200 for p in places[:200]) <= 130  # 100 expected, standard deviation 7
    assert abs(np.corrcoef(range(400), places)[0, 1]) < 0.2


def test_the_first_validation_blocks_are_of_all_files(ask, texts, small):
    files = {f"validation-{number}.jsonl": jsonl(texts[100 * number : 100 * (number + 1)]) for number in range(4)}
    index = prepare(of(files | {"train.jsonl": jsonl(texts[:100])}, ask))
    assert [chunk.name for chunk in index.chunks["val"]] == ["shuffled.bin"]
    assert sorted(path.name for path in (ask.data_path / "val").iterdir()) == ["index.json", "shuffled.bin"]
    number_of = {ids: n for n, ids in enumerate(ids_of(ask, texts[:400]))}
    order = [number_of[ids] for ids in stored_documents(ask.data_path, "val")]
    assert sorted(order) == list(range(400))
    assert all(11 <= sum(n // 100 == file for n in order[:100]) <= 39 for file in range(4))  # 25 expected


def test_small_files_go_together_and_large_ones_in_parts(monkeypatch):
    monkeypatch.setattr(write, "PORTION_BYTES", 100)
    sizes = {"a.txt": 30, "b.txt": 60, "c.txt": 290, "d.txt": 40, "e.jsonl.gz": 900, "f.txt": 0, "val.txt": 5}
    found = list(portions_of([SourceFile(name, split_of(name), size) for name, size in sizes.items()]))
    assert [portion.number for portion in found] == list(range(len(found)))
    assert [[(part.name[0], part.number, part.count) for part in portion.parts] for portion in found] == [
        [("a", 0, 1), ("b", 0, 1)], [("c", 0, 3)], [("c", 1, 3)], [("c", 2, 3)], [("d", 0, 1)],
        [("e", 0, 1)], [("f", 0, 1)], [("v", 0, 1)],
    ]  # fmt: skip


def test_without_validation_files_documents_are_held_out_by_their_text_whatever_the_seed(ask, texts, small):
    (ask.text_dir / "validation.parquet").unlink()
    held = {}
    for seed in (1, 2):
        data_path = ask.data_path.with_name(f"held-{seed}")
        index = prepare(replace(ask, data_path=data_path, seed=seed, val_fraction=0.1))
        held[seed] = sorted(stored_documents(data_path, "val"))
        assert sum(index.documents.values()) == 480
        with pytest.raises(UserError, match="val_fraction 0.1, not 0.2"):
            prepare(replace(ask, data_path=data_path, val_fraction=0.2))
    assert held[1] == held[2]
    assert len(held[1]) == sum(share_of(text) < 0.1 for text in texts[20:])
    assert 25 <= len(held[1]) <= 75


def test_of_a_short_text_enough_is_held_out_to_validate(ask, texts, capsys):
    short = of({"a.jsonl": jsonl(texts)}, ask)
    index = prepare(short, say=print)
    fraction = index.source.val_fraction
    assert 0.01 < fraction <= 0.08 and (index.tokens["val"] >= 20_000 or fraction == 0.08)
    assert index.documents["val"] == sum(share_of(text) < fraction for text in texts)
    assert "are held out, too few to validate: beginning anew with val_fraction 0.02" in capsys.readouterr().out
    prepare(short)
    asked = prepare(replace(short, data_path=ask.data_path.with_name("asked"), val_fraction=0.01))
    assert asked.source.val_fraction == 0.01, "what is asked for is done"


@pytest.mark.parametrize("number", [2, 3, 20])
def test_of_few_documents_one_is_held_out(ask, texts, number, capsys):
    few = [text for text in dict.fromkeys(texts) if share_of(text) > 0.08][:number]
    short = of({"a.jsonl": jsonl(few)}, ask)
    index = prepare(short, say=print)
    assert index.documents == {"train": number - 1, "val": 1}
    assert index.source.val_fraction == pytest.approx(min(map(share_of, few)))
    assert capsys.readouterr().out.count("beginning anew") == 1
    with pytest.raises(
        UserError, match="the val split .* no text: .*, a larger val_fraction or a file named validation"
    ):
        prepare(replace(short, data_path=ask.data_path.with_name("asked"), val_fraction=0.08))


@pytest.mark.parametrize("shares", [(0.05, 0.055), (0.005, 0.006), (0.026, 0.031, 0.055), (0.3, 0.3001, 0.9)])
def test_where_all_of_few_documents_would_be_held_out_or_two_for_one_it_is_one(ask, shares):
    numbered = sorted((share_of(text), text) for text in map(str, range(50_000)))
    few = [next(text for own, text in numbered if own > share) for share in shares]
    assert prepare(of({"a.jsonl": jsonl(few)}, ask)).documents == {"train": len(few) - 1, "val": 1}


def test_where_there_is_no_second_document_nothing_is_begun_anew(ask, capsys):
    with pytest.raises(UserError, match="the val split of .* has no text: give it documents or a file named val"):
        prepare(of({"a.jsonl": jsonl(["the same"] * 3)}, ask), say=print)
    assert "anew" not in capsys.readouterr().out


def test_small_pieces_of_long_text_files_are_documents_that_are_shuffled(ask, tmp_path):
    long = {f"{n}.txt": "".join(f"{n} {line}\n" for line in range(2000)).encode() for n in range(2)}
    asked, counts = of(long, ask), {}
    for piece_bytes in (2048, 256):
        pieces = replace(asked, piece_bytes=piece_bytes, data_path=tmp_path / f"pieces-{piece_bytes}")
        counts[piece_bytes] = sum(prepare(pieces).documents.values())
    assert 12 <= counts[2048] <= 20 and 8 * counts[2048] * 0.8 < counts[256] < 8 * counts[2048] * 1.3
    firsts = [ids[0] for ids in stored_documents(pieces.data_path, "train")[:20]]
    assert len(set(firsts)) == 2 and firsts != sorted(firsts)
    with pytest.raises(UserError, match="piece_bytes 2048, not 256"):
        prepare(replace(pieces, data_path=tmp_path / "pieces-2048"))


def test_rows_without_text_are_counted_but_not_stored(ask, texts):
    files = {"train": [texts[0], None, "", " \n", texts[1]], "validation": texts[2:4]}
    index = prepare(of({f"{name}.parquet": parquet(rows) for name, rows in files.items()}, ask))
    assert index.documents == {"train": 2, "val": 2} and [file.rows for file in index.files] == [5, 2]


def test_where_tiktoken_is_wrong_on_a_file_all_is_encoded_anew(ask, small, monkeypatch, capsys):
    expected = prepare(replace(ask, data_path=ask.data_path.with_name("expected"), encoder="tokenizers"))
    monkeypatch.setattr(encode, "GPT2_SPLIT", encode.GPT2_SPLIT.replace(r"\p{L}++", r"(?:ret|\p{L}++)"))
    encode.encoder_of.cache_clear()
    with pytest.raises(UserError, match="tiktoken does not give the tokenizer's ids on .*: leave --encoder out"):
        prepare(replace(ask, encoder="tiktoken"))
    index = prepare(ask, say=print)
    assert "beginning anew with tokenizers" in capsys.readouterr().out
    assert index.encoder == "tokenizers" and index.fingerprint == expected.fingerprint


def test_a_link_to_another_disk_is_followed(ask, tmp_path):
    (tmp_path / "big disk").mkdir()
    ask.data_path.parent.mkdir()
    ask.data_path.symlink_to(tmp_path / "big disk")
    prepare(ask)
    assert ask.data_path.is_symlink() and (tmp_path / "big disk/prepared.json").is_file()


def test_files_left_out_are_told(ask, capsys):
    prepare(replace(ask, files=None), say=print)
    assert "Reading the .parquet files and leaving out 99 others such as" in capsys.readouterr().out


def test_a_relative_source_is_the_same_from_anywhere(ask, monkeypatch, tmp_path):
    monkeypatch.chdir(ask.text_dir.parent)
    prepare(replace(ask, text_dir=Path(ask.text_dir.name)))
    (tmp_path / "elsewhere" / ask.text_dir.name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    prepare(ask)
    prepare(replace(ask, text_dir=None))


def test_an_empty_training_file_is_no_obstacle_and_only_empty_ones_are_told(ask, texts):
    empties = of({"train-0.parquet": parquet([]), "validation.parquet": parquet(texts[:5])}, ask)
    with pytest.raises(UserError, match="the train split of .* has no text: give it documents"):
        prepare(empties)
    (empties.text_dir / "train-1.parquet").write_bytes(parquet(texts[5:]))
    assert prepare(empties).documents == {"train": 495, "val": 5}


def test_tokens_take_the_smallest_type_that_holds_them():
    assert [request.token_dtype(size) for size in (50_257, 65_536, 65_537)] == ["uint16", "uint16", "int32"]
    assert request.token_dtype(50_257, "int32") == "int32"
    with pytest.raises(UserError, match="128,256 tokens, more than uint16 holds: leave --dtype out"):
        request.token_dtype(128_256, "uint16")
