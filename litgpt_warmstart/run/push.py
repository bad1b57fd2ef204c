"""An exported folder goes to the Hugging Face Hub, by the Hub's own client; what goes wrong is told in one line.

The client honours HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and HF_HOME.
"""

import shlex
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from huggingface_hub import HfApi, constants, errors, get_token, hf_hub_download
from huggingface_hub.utils import logging
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.run.card import CARD, is_as_written, repository


def check_push(repo_id: str) -> None:
    """What can be known before anything is written: the name, the token, the network.

    Raises:
        UserError: The name is none of a repository, or there is no token, or HF_HUB_OFFLINE is set.
    """
    if repository(repo_id) is None or "/" not in repo_id:
        raise UserError(f"--push_to_hub {repo_id!r} is no name of a repository: give USER/NAME")
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"--push_to_hub {repo_id}: HF_HUB_OFFLINE is set: unset it, or leave --push_to_hub out")
    if get_token() is None:
        raise UserError(
            f"--push_to_hub {repo_id}: no token is known: log in with hf auth login, or set HF_TOKEN to one that may"
            f" write to {repo_id.partition('/')[0]!r}"
        )


def push(folder: Path, repo_id: str, private: bool, names: Collection[str], ignored: str) -> str:
    """Upload an exported folder as one commit, to a repository that is made where there is none.

    What a repository holds is replaced where an export of this package is all of it that counts: its card is as it was
    written. Of an earlier export no file stays that this one has not.

    Args:
        folder: What was exported.
        repo_id: The model repository.
        private: Make it a private one.
        names: Of all files that an export may have.
        ignored: Of a file that stays here.

    Returns:
        The repository's address.

    Raises:
        UserError: It has not been pushed, or not all of it; the folder stays, and the message says how to push it.
    """
    api = HfApi()
    with _told(folder, repo_id, private):
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        found = api.model_info(repo_id, revision="main")
        there = {file.rfilename for file in found.siblings or ()} - {".gitattributes"}
        if private and found.private is False:
            raise UserError(f"{repo_id} exists and is public: make it private on the Hub, or leave --private out")
        if there and not (CARD in there and is_as_written(Path(hf_hub_download(repo_id, CARD, revision=found.sha)))):
            shown = ", ".join(sorted(there)[:3])
            raise UserError(f"{repo_id} holds what this command has not written alone ({shown}): choose another name")
        gone = sorted((there & {*names}) - {path.name for path in folder.iterdir()})
        api.upload_folder(
            repo_id=repo_id, folder_path=folder, ignore_patterns=[ignored], delete_patterns=gone or None,
            parent_commit=found.sha, commit_message="Upload an export of litgpt-warmstart",
        )  # fmt: skip
    return str(url)


@contextmanager
def _told(folder: Path, repo_id: str, private: bool) -> Iterator[None]:
    """Turn errors into a UserError that says where the export is, and how to push it alone.

    The client is kept still otherwise, but for its bar on a terminal.

    A RuntimeError is what a file's upload ends with, of whatever cause; a ValueError is the Hub's word on a card.
    """
    verbosity, bars = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    except (UserError, errors.HfHubHTTPError, httpx.TransportError, OSError, RuntimeError, ValueError) as error:
        name = "USER/NAME" if isinstance(error, UserError) else repo_id
        alone = f"hf upload {name} {shlex.quote(str(folder))}{' --private' * private}"
        raise UserError(
            f"{_in_words(error, repo_id)}; the export stays in {str(folder)!r}, to push it alone: {alone}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            enable_progress_bars()


def _in_words(error: BaseException, repo_id: str) -> str:
    """What kept a push from being made, and the remedy."""
    match error:
        case UserError():
            return str(error)
        case RuntimeError() if isinstance(error.__cause__, Exception):
            return _in_words(error.__cause__, repo_id)
        case httpx.TransportError() | RuntimeError():
            return f"cannot reach {constants.ENDPOINT} to push to {repo_id}: check the network"
        case errors.HfHubHTTPError() if error.response.status_code in (401, 403):
            return f"the Hub does not let this token write to {repo_id}: set HF_TOKEN to one that may"
        case errors.HfHubHTTPError() if error.response.status_code == 412:
            return f"{repo_id} has changed while this was pushed: look at it"
        case _:
            return f"cannot push to {repo_id}: {one_line(error, 160)}"
