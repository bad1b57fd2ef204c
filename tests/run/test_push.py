"""The real client against a Hub of our own: what lies there after a push, and what is told where there is none."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import huggingface_hub.constants as constants
import pytest
import torch

from litgpt_warmstart.commands import warmstart_export
from tests.data.hub_server import Hub, Repository, serve

REPOSITORY = "me/tiny"
EXPORTED = {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
            "tokenizer_config.json"}  # fmt: skip


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    """A Hub without repositories where this user is ``me``, and an empty cache."""
    monkeypatch.setenv("HF_TOKEN", "mine")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_HUB_CACHE", "HF_TOKEN_PATH"):
        monkeypatch.setattr(constants, name, str(tmp_path / name))
    with serve(Hub(writers={"mine": "me"})) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield served


@pytest.fixture
def push(base, tmp_path, capsys) -> Callable[..., str]:
    """Export the base and push it; gives what is told, of which an error is a line."""

    def pushed(**changes: object) -> str:
        asked = dict(checkpoint_dir=base, out_dir=tmp_path / "hf", push_to_hub=REPOSITORY, overwrite=True)
        capsys.readouterr()
        try:
            warmstart_export.setup(**asked | changes)
        except SystemExit as error:
            assert error.code == 1
            told = capsys.readouterr().err
            assert len(told.splitlines()) == 1, told
            return told
        told, err = capsys.readouterr()
        assert err == ""
        return told

    return pushed


def test_what_was_pushed_is_loaded_from_there_with_its_logits(hub, push, base, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    told = push(license="Apache-2.0")
    assert f"Pushed to {hub.url}/{REPOSITORY}" in told and "licence" not in told
    files = hub.models[REPOSITORY].files
    assert files.keys() - {".gitattributes"} == EXPORTED and not hub.models[REPOSITORY].private
    assert all(files[name] == (tmp_path / "hf" / name).read_bytes() for name in EXPORTED)
    assert f'from_pretrained("{REPOSITORY}")' in files["README.md"].decode()
    tokens = torch.arange(20)[None]
    there, here = (AutoModelForCausalLM.from_pretrained(name).eval() for name in (REPOSITORY, tmp_path / "hf"))
    with torch.no_grad():
        assert torch.equal(there(tokens).logits, here(tokens).logits)
    assert AutoTokenizer.from_pretrained(REPOSITORY).model_max_length == 64


def test_an_earlier_export_is_replaced_and_what_it_alone_had_is_gone(hub, push, base):
    push(format="litgpt")
    hub.models[REPOSITORY].files["picture.png"] = b"mine"
    assert "lit_model.pth" in hub.models[REPOSITORY].files
    assert "its card names no licence (--license apache-2.0)" in push()
    assert hub.models[REPOSITORY].files.keys() - {".gitattributes"} == EXPORTED | {"picture.png"}


@pytest.mark.parametrize("files", [{"model.safetensors": b"x"}, {"README.md": b"# Mine"}])
def test_what_somebody_has_in_a_repository_stays(hub, push, tmp_path, files):
    hub.models[REPOSITORY] = Repository(dict(files))
    told = push()
    assert f"holds what this command has not written alone ({next(iter(files))}): choose another name" in told
    assert f"the export stays in '{tmp_path}/hf', to push it alone: hf upload USER/NAME {tmp_path}/hf" in told
    assert hub.models[REPOSITORY].files == files and {path.name for path in (tmp_path / "hf").iterdir()} > EXPORTED


def test_a_card_that_was_edited_on_the_hub_stays(hub, push):
    push()
    hub.models[REPOSITORY].files["README.md"] += b"and so on\n"
    before = dict(hub.models[REPOSITORY].files)
    assert "has not written alone" in push(license="mit")
    assert hub.models[REPOSITORY].files == before


def test_a_private_repository_is_made_and_a_public_one_is_not_taken_for_it(hub, push):
    push(private=True)
    assert hub.models[REPOSITORY].private
    push(private=True)
    hub.models["me/open"] = Repository({})
    assert "me/open exists and is public: make it private on the Hub, or leave --private out" in push(
        push_to_hub="me/open", private=True
    )
    assert hub.models["me/open"].files == {}


def test_what_is_typed_after_an_error_pushes_the_export_alone(hub, push, tmp_path):
    hub.broken.add("lfs")
    told = push()
    assert told.startswith(f"litgpt warmstart_export: error: cannot push to {REPOSITORY}: "), told
    hub.broken.clear()
    words = shlex.split(told.rpartition("to push it alone: ")[2])
    assert words == ["hf", "upload", REPOSITORY, str(tmp_path / "hf")]
    environment = dict(os.environ, HF_ENDPOINT=hub.url, HF_HUB_DISABLE_UPDATE_CHECK="1", HF_HUB_OFFLINE="0")
    hf = (sys.executable, "-m", "huggingface_hub.cli.hf")
    subprocess.run([*hf, *words[1:]], env=environment, check=True, timeout=120)
    assert hub.models[REPOSITORY].files.keys() > EXPORTED


def no_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")


def wrong_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "nobody's")


def no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")


def offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def moves(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.moves = True


def nothing(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    pass


@pytest.mark.parametrize(
    ("before", "asked", "told", "written"),
    [
        (no_token, {}, "no token is known: log in with hf auth login, or set HF_TOKEN", False),
        (offline, {}, "HF_HUB_OFFLINE is set: unset it", False),
        (nothing, dict(push_to_hub="true"), "'true' is no name of a repository: give USER/NAME", False),
        (nothing, dict(push_to_hub="a/b/c"), "'a/b/c' is no name of a repository", False),
        (nothing, dict(push_to_hub="https://huggingface.co/me/tiny"), "is no name of a repository", False),
        (nothing, dict(push_to_hub=" "), "--push_to_hub is empty", False),
        (nothing, dict(push_to_hub=None, private=True), "--private is for --push_to_hub", False),
        (nothing, dict(license="my own licence"), "'my own licence' is no identifier of a licence", False),
        (wrong_token, {}, f"does not let this token write to {REPOSITORY}: set HF_TOKEN to one that may", True),
        (nothing, dict(push_to_hub="they/tiny"), "does not let this token write to they/tiny", True),
        (no_network, {}, f"cannot reach http://127.0.0.1:1 to push to {REPOSITORY}: check the network", True),
        (moves, {}, f"{REPOSITORY} has changed while this was pushed", True),
        (nothing, dict(license="gpl-17"), '"license" must be one of [apache-2.0, mit', True),
    ],
)
def test_what_is_in_the_way_is_one_line_and_the_export_stays(
    hub, push, tmp_path, monkeypatch, before, asked, told, written
):
    before(hub, monkeypatch)
    line = push(**asked)
    assert told in line
    assert (f"the export stays in '{tmp_path}/hf'" in line) == written == (tmp_path / "hf/model.safetensors").is_file()
    assert all(repository.files.keys() <= {".gitattributes"} for repository in hub.models.values())


def test_a_folder_whose_name_needs_quotes_is_typed_with_them(hub, push, tmp_path):
    hub.broken.add("lfs")
    assert push(out_dir=tmp_path / "my export").endswith(f"hf upload {REPOSITORY} '{tmp_path}/my export'\n")
    shutil.rmtree(tmp_path / "my export")
