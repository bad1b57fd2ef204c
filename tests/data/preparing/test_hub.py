"""The real client against a Hub of our own: what is fetched, from where, and what is told when it cannot be."""

import socket
from dataclasses import replace
from pathlib import Path
from threading import Event

import huggingface_hub.constants
import pytest

from litgpt_warmstart.data.prepared_text import SlimPajama6B
from litgpt_warmstart.data.preparing import hub as hub_client
from litgpt_warmstart.data.preparing import request
from litgpt_warmstart.data.preparing.request import Preparation
from litgpt_warmstart.errors import UserError
from tests.data.conftest import contents, parquet, prepare
from tests.data.hub_server import Repository


def away(monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
    """Leave nothing but the cache: by the user's own wish, or because nobody answers."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, "http://127.0.0.1:1")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")


@pytest.fixture
def slimpajama(tmp_path: Path) -> Preparation:
    return Preparation(tmp_path / "data", repo_id=request.SLIMPAJAMA_6B, revision=request.SLIMPAJAMA_6B_COMMIT)


def test_slimpajama_is_fetched_at_its_commit_and_prepared_by_split(hub, slimpajama, texts):
    index = prepare(slimpajama)
    assert index.documents == {"train": 450, "val": 25, "test": 25}
    assert index.source.commit == request.SLIMPAJAMA_6B_COMMIT
    assert {file.name: file.rows for file in index.files} == {
        name: 25 if "train" not in name else 150
        for name in hub.datasets[request.SLIMPAJAMA_6B].files
        if "data/" in name
    }
    downloads = [path for method, path, _ in hub.requests if method == "GET" and path.endswith(".parquet")]
    assert len(downloads) == 5 and all(f"/resolve/{request.SLIMPAJAMA_6B_COMMIT}/" in path for path in downloads)
    assert "README.md" not in str(hub.requests)
    assert (slimpajama.data_path / "test/index.json").is_file()


def test_an_interrupted_download_goes_on_where_it_broke_off(hub, slimpajama, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 500)  # what the client writes at once
    name = "data/train-00001-of-00003-0123456789abcdef.parquet"
    hub.cut_after[name] = 1000
    prepare(slimpajama)
    ranges = [asked for method, path, asked in hub.requests if method == "GET" and path.endswith(name)]
    assert ranges == [None, "bytes=1000-"]


def test_ctrl_c_ends_downloads_at_their_next_piece_and_the_rest_is_fetched_later(hub, slimpajama, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 500)
    download = hub_client.download

    class Interrupt(Event):
        pieces = 0

        def is_set(self) -> bool:
            self.pieces += 1
            if self.pieces > 10:
                raise KeyboardInterrupt
            return super().is_set()

    def interrupted(repo_id, name, commit, stop):
        return download(repo_id, name, commit, Interrupt() if "train-00000" in name else stop)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(hub_client, "download", interrupted)
        prepare(slimpajama)
    assert list(Path(huggingface_hub.constants.HF_HUB_CACHE).rglob("*.incomplete"))
    assert prepare(slimpajama).documents["train"] == 450
    assert any(asked for _, _, asked in hub.requests)


def test_a_file_that_is_not_what_the_hub_says_is_refused(hub, slimpajama):
    prepare(slimpajama)
    cached = Path(huggingface_hub.constants.HF_HUB_CACHE)
    blob = next(path for path in cached.rglob("blobs/*") if path.read_bytes()[:4] == b"PAR1")
    blob.write_bytes(blob.read_bytes()[:-8] + b"\0\0\0\0PAR1")
    with pytest.raises(
        UserError,  # reading and hashing go side by side: either may notice first
        match="is not as the Hub has it: remove it from the Hub's cache|is damaged",
    ):
        prepare(replace(slimpajama, data_path=slimpajama.data_path.with_name("again")))


def test_what_is_prepared_needs_no_network(hub, slimpajama, monkeypatch):
    prepare(slimpajama)
    count = len(hub.requests)
    SlimPajama6B(slimpajama.data_path).prepare_data()
    assert len(hub.requests) == count
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    prepare(slimpajama, thorough=True)


def test_offline_the_cache_is_enough(hub, slimpajama, monkeypatch):
    prepare(slimpajama)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    again = replace(slimpajama, data_path=slimpajama.data_path.with_name("again"))
    prepare(again)
    assert contents(again.data_path) == contents(slimpajama.data_path)
    with pytest.raises(UserError, match="is not in the Hub's cache, and HF_HUB_OFFLINE is set: unset it"):
        prepare(replace(again, data_path=again.data_path.with_name("other"), repo_id="some/other"))


def test_offline_a_part_of_the_cache_is_not_taken_for_the_whole(hub, slimpajama, monkeypatch):
    prepare(slimpajama)
    next(Path(huggingface_hub.constants.HF_HUB_CACHE).rglob("snapshots/*/data/train-00001*")).unlink()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"cache has 2 of the 3 files data/train-\* of dataset .*HF_HUB_OFFLINE is set"):
        prepare(replace(slimpajama, data_path=slimpajama.data_path.with_name("again")))


def test_a_tokenizers_second_file_that_cannot_be_reached_is_no_tokenizer_without_one(hub, monkeypatch):
    hub.broken.add("tokenizer_config.json")
    with pytest.raises(UserError, match="tokenizer 'openai-community/gpt2'"):
        hub_client.tokenizer_files(request.TOKENIZER)


@pytest.mark.parametrize("cached", [["config.json"], ["config.json", "tokenizer.json"]])
@pytest.mark.parametrize("offline", [True, False])
def test_a_part_of_a_tokenizer_in_the_cache_is_not_taken_for_the_whole(hub, monkeypatch, cached, offline):
    hub.models[request.TOKENIZER].files["config.json"] = b"{}"
    for name in cached:
        huggingface_hub.hf_hub_download(request.TOKENIZER, name)
    away(monkeypatch, offline)
    told = "is not in the Hub's cache, and HF_HUB_OFFLINE is set: unset it" if offline else "cannot reach .*: check the"
    with pytest.raises(UserError, match=told):
        hub_client.tokenizer_files(request.TOKENIZER)


@pytest.mark.parametrize("offline", [True, False])
def test_a_tokenizer_in_the_cache_is_enough_with_what_the_hub_has_said_that_it_lacks(hub, monkeypatch, offline):
    del hub.models[request.TOKENIZER].files["tokenizer_config.json"]
    before = hub_client.tokenizer_files(request.TOKENIZER)
    away(monkeypatch, offline)
    assert hub_client.tokenizer_files(request.TOKENIZER) == before


def test_a_branch_is_followed_to_a_commit_once_and_kept(hub, slimpajama, texts):
    main = replace(slimpajama, revision="main")
    index = prepare(main)
    assert (index.source.revision, index.source.commit) == ("main", request.SLIMPAJAMA_6B_COMMIT)
    prepare(slimpajama, thorough=True)  # the commit asked for by its name
    prepare(replace(slimpajama, revision="b5f90f4"), thorough=True)
    with pytest.raises(UserError, match="revision 'main', not '1234567'"):
        prepare(replace(slimpajama, revision="1234567"))

    moved, name = hub.datasets[request.SLIMPAJAMA_6B], "data/train-00000-of-00003-0123456789abcdef.parquet"
    moved.commit = "1" * 40
    prepare(main, thorough=True)  # other commit, same files
    moved.files[name] = parquet(texts)
    with pytest.raises(UserError, match=f"from '{request.SLIMPAJAMA_6B}' before '{name}' changed: choose another"):
        prepare(main, thorough=True)
    prepare(main)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (dict(repo_id="nobody/nothing"), "dataset 'nobody/nothing' at revision .* does not exist on http.*HF_TOKEN"),
        (dict(repo_id="not a name"), "dataset 'not a name' at revision .* does not exist"),
        (dict(revision="no-such-branch"), "at revision 'no-such-branch' does not exist"),
        (dict(tokenizer="nobody/nothing"), "tokenizer 'nobody/nothing' does not exist"),
        (dict(tokenizer="./nowhere"), "the tokenizer folder './nowhere' does not exist"),
        (dict(column="content"), "has no column 'content', only meta, text: pass --column"),
        (dict(files="*.csv"), r"has no .parquet, .jsonl or .txt files that match --files '\*.csv'"),
    ],
)
def test_what_is_not_there_is_told(hub, slimpajama, change, told):
    with pytest.raises(UserError, match=told) as error:
        prepare(replace(slimpajama, **change))
    assert "\n" not in str(error.value)
    assert not slimpajama.data_path.exists()


def test_permission_is_asked_for_and_a_token_gives_it(hub, slimpajama, monkeypatch):
    repository = hub.datasets[request.SLIMPAJAMA_6B]
    repository.gated, repository.token = True, "hf_secret"
    with pytest.raises(UserError, match="no permission for dataset .*: accept its terms on the Hub and set HF_TOKEN"):
        prepare(slimpajama)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert prepare(slimpajama).documents["train"] == 450


def test_without_a_network_one_line_says_so(slimpajama, monkeypatch, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=rf"cannot reach http://127.0.0.1:{port} for dataset .*: check the network"):
        prepare(slimpajama)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"config.json": b"{}"}, "has no tokenizer.json"),
        ({"tokenizer.json": b'{"model": {"vocab": {"a": 0}}}'}, "names no end-of-text token: add eos_token"),
        (
            {"tokenizer.json": b'{"model": {"vocab": {"a": 0}}}', "tokenizer_config.json": b'{"eos_token": "<end>"}'},
            "is damaged: its vocabulary lacks its eos_token '<end>'",
        ),
        ({"tokenizer.json": b"{"}, "is damaged"),
    ],
)
def test_an_unusable_tokenizer_is_told(hub, files, told):
    hub.models["some/model"] = Repository(files)
    with pytest.raises(UserError, match=told):
        hub_client.tokenizer_files("some/model")
