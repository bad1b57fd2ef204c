"""What is fetched from the Hugging Face Hub, by its own client; its errors told in one line.

The client honours HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and HF_HOME, keeps files in its cache, and resumes downloads.
"""

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import httpx
from huggingface_hub import (
    _CACHED_NO_EXIST,
    HfApi,
    constants,
    errors,
    hf_hub_download,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.utils import logging
from huggingface_hub.utils.tqdm import tqdm

from litgpt_warmstart.data.preparing.read import SourceFile, split_of
from litgpt_warmstart.errors import NotYet, UserError, check_may_make, one_line

RETRY_AFTER = (0.2, 2.0, 10.0)
"""Seconds after which a download that broke off is tried again."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


@contextmanager
def told(what: str, otherwise: str = "") -> Iterator[None]:
    """Turn the client's errors into a UserError that names ``what`` and the remedy, and keep it silent otherwise.

    ``otherwise`` is what can be done without a network, too.
    """
    check_may_make(f"{what} is looked up on the Hub")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except (errors.HfHubHTTPError, errors.HFValidationError, httpx.TransportError, OSError, RuntimeError) as error:
        # A RuntimeError is how huggingface_hub 1.3 ends when a second try after a failed connection fails too.
        if isinstance(error, RuntimeError) and "client has been closed" not in str(error):
            raise
        raise UserError(_in_words(error, what, otherwise)) from error
    finally:
        logging.set_verbosity(verbosity)


def _in_words(error: Exception, what: str, otherwise: str) -> str:
    """What is wrong with ``what``, and the remedy; the client's errors inherit from one another."""
    match error:
        case errors.GatedRepoError():
            return f"no permission for {what}: accept its terms on the Hub and set HF_TOKEN to a token that may read it"
        case errors.RepositoryNotFoundError() | errors.RevisionNotFoundError() | errors.HFValidationError():
            return f"{what} does not exist on {constants.ENDPOINT}, or is private: check the name, or set HF_TOKEN"
        case errors.HfHubHTTPError():
            return f"{what}: {one_line(error, 160)}: see to HF_TOKEN or the Hub; the same command goes on"
        case OSError() if not isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
            return f"{what}: {one_line(error, 160)}; free space or set HF_HOME to another disk"
    if constants.HF_HUB_OFFLINE:
        return f"{what} is not in the Hub's cache, and HF_HUB_OFFLINE is set: unset it{otherwise}"
    return (
        f"cannot reach {constants.ENDPOINT} for {what}: check the network or, if a folder is meant, its path{otherwise}"
    )


def dataset_files(repo_id: str, revision: str) -> tuple[str, list[SourceFile]]:
    """A dataset repository's commit, which ``revision`` stands for, and its files."""
    with told(f"dataset {repo_id!r} at revision {revision!r}"):
        if constants.HF_HUB_OFFLINE:
            return _cached_files(repo_id, revision)
        info = HfApi().dataset_info(repo_id, revision=revision, files_metadata=True)
    files = [
        SourceFile(file.rfilename, split_of(file.rfilename), file.size or 0, file.lfs.sha256 if file.lfs else None)
        for file in info.siblings or ()
    ]
    return info.sha or revision, files


def _cached_files(repo_id: str, revision: str) -> tuple[str, list[SourceFile]]:
    folder = Path(str(snapshot_download(repo_id, repo_type="dataset", revision=revision, local_files_only=True)))
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    # The cache may have a part of the repository, and only numbered names tell.
    numbered = filter(None, (re.match(r"(.*)-\d+-of-(\d+)", name) for name in paths))
    for (stem, of), count in Counter(found.groups() for found in numbered).items():
        if count != int(of):
            raise UserError(
                f"the Hub's cache has {count} of the {int(of)} files {stem}-* of dataset {repo_id!r}, and"
                " HF_HUB_OFFLINE is set: unset it"
            )
    return folder.name, [SourceFile(name, split_of(name), path.stat().st_size) for name, path in paths.items()]


def _bar(stop: Event, disable: bool | None = True) -> type[tqdm]:
    """What stands in for the client's progress bar: it ends a download once ``stop`` is set.

    It shows nothing, or where ``disable`` is None something on a terminal.
    """

    class Bar(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings | {"disable": disable})

        def update(self, n: float | None = 1) -> bool | None:
            if stop.is_set():
                raise InterruptedError
            return super().update(n)

    return Bar


def download(repo_id: str, name: str, commit: str, stop: Event) -> Path:
    """A file of a dataset repository, in the client's cache; a connection that breaks is taken up where it broke."""
    with told(f"{name!r} of dataset {repo_id!r}"):
        fetch = partial(hf_hub_download, repo_id, name, repo_type="dataset", revision=commit, tqdm_class=_bar(stop))
        for seconds in RETRY_AFTER:
            with suppress(httpx.ReadError, httpx.RemoteProtocolError):
                return Path(fetch())
            time.sleep(seconds)
        return Path(fetch())


def tokenizer_files(tokenizer: str) -> dict[str, bytes]:
    """Name -> content of the files of a tokenizer in a folder or a model repository, enough for LitGPT's Tokenizer."""
    folder = Path(tokenizer)
    if folder.is_dir():
        paths = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    elif tokenizer.startswith((".", "/", "~")) or tokenizer.count("/") > 1:
        raise NotYet(f"the tokenizer folder {tokenizer!r} does not exist")
    else:
        with told(f"tokenizer {tokenizer!r}"):
            paths = [path for name in TOKENIZER_FILES if (path := _model_file(tokenizer, name))]
    found = {path.name: path.read_bytes() for path in paths}
    if "tokenizer.json" not in found:
        raise UserError(f"--tokenizer {tokenizer!r} has no tokenizer.json: give a folder or repository that has one")
    try:
        config = json.loads(found.get("tokenizer_config.json", b"{}"))
        generation = json.loads(found.get("generation_config.json", b"{}"))
        eos = _end_of_text(json.loads(found["tokenizer.json"]), config, generation)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--tokenizer {tokenizer!r} is damaged: {one_line(error)}") from error
    if eos is None:
        raise UserError(
            f"--tokenizer {tokenizer!r} names no end-of-text token: add eos_token to its tokenizer_config.json"
        )
    # GPT-2's own file has neither, and LitGPT's Tokenizer needs tokenizer_class.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config, "eos_token": eos}
    found["tokenizer_config.json"] = json.dumps(config, indent=2, ensure_ascii=False).encode()
    return found


def _model_file(repo_id: str, name: str) -> Path | None:
    """A file of a model repository, in the client's cache; None where the repository has none.

    One by one, as of a snapshot the client gives what its cache has of it where it cannot reach the Hub.
    """
    try:
        return Path(hf_hub_download(repo_id, name, tqdm_class=_bar(Event())))
    except (errors.LocalEntryNotFoundError, httpx.TransportError, RuntimeError):  # nobody answers, see told
        cached = try_to_load_from_cache(repo_id, name)
        if isinstance(cached, str):
            return Path(cached)
        # Few repositories have the last of the files, and few programs ask for it.
        if cached is _CACHED_NO_EXIST or (constants.HF_HUB_OFFLINE and name == TOKENIZER_FILES[-1]):
            return None
        raise
    except errors.EntryNotFoundError:
        return None


def model_config(repo_id: str, what: str) -> Path:
    """The config.json of a model repository, in the client's cache; raises as :func:`model_files`."""
    with told(what, _elsewhere(repo_id)):
        path = _model_file(repo_id, "config.json")
    if path is None:
        raise UserError(f"{what} has no config.json on the Hub: give a model of transformers'")
    return path


def model_files(repo_id: str, what: str) -> Path:
    """A folder of the client's cache with a model repository's JSON, tokenizer and safetensors.

    Raises:
        UserError: The repository cannot be reached, does not exist, or may not be read; ``what`` is its name there.
    """
    wanted = ["*.json", "tokenizer*", "*.safetensors"]
    unwanted = ["*/*", "consolidated*"]  # other formats of the same weights
    with told(what, _elsewhere(repo_id)):
        bar = _bar(Event(), disable=None)
        folder = snapshot_download(repo_id, allow_patterns=wanted, ignore_patterns=unwanted, tqdm_class=bar)
        return Path(str(folder))


def _elsewhere(repo_id: str) -> str:
    return f"; or run `litgpt download {repo_id}` where there is a network, and copy checkpoints/{repo_id} here"


def tokenizer_digest(files: dict[str, bytes]) -> str:
    """sha256 of what decides the tokens: tokenizer.json and the end-of-text token."""
    eos = json.loads(files["tokenizer_config.json"])["eos_token"]
    return hashlib.sha256(files["tokenizer.json"] + b"\0" + eos.encode()).hexdigest()


def _end_of_text(tokenizer: dict, config: dict, generation: dict) -> str | None:
    """The end-of-text token that a tokenizer's files name, or a well-known one of its vocabulary."""
    added = {token["id"]: token["content"] for token in tokenizer.get("added_tokens", ())}
    named, number = config.get("eos_token"), generation.get("eos_token_id")
    usual = [token for token in ("<|endoftext|>", "<|end_of_text|>", "</s>") if token in added.values()]
    eos = named["content"] if isinstance(named, dict) else named
    if eos is None:
        eos = (isinstance(number, int) and added.get(number)) or next(iter(usual), None)
    if eos is not None and eos not in added.values() and eos not in tokenizer["model"]["vocab"]:
        raise ValueError(f"its vocabulary lacks its eos_token {eos!r}")
    return eos
