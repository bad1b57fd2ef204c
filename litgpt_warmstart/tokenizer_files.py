"""A tokenizer's files: which there are, whether they can be read, and which ids begin and end a text."""

import json
from dataclasses import dataclass
from pathlib import Path

from litgpt_warmstart.errors import UserError, one_line

JSON, MODEL, CONFIG = "tokenizer.json", "tokenizer.model", "tokenizer_config.json"
NAMES = (JSON, MODEL, CONFIG)
"""As LitGPT has them."""


@dataclass(frozen=True)
class TokenizerFiles:
    """The files of a tokenizer that can be read, in memory: a run copies these into each of its checkpoints."""

    files: dict[str, bytes]
    bos_id: int | None
    """Begins a text; None where it is not known."""
    eos_id: int | None
    """Ends a text; None where it is not known."""

    def write(self, folder: Path) -> None:
        """Write the files into a folder that is being filled."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


def read_tokenizer_files(folder: Path) -> TokenizerFiles | None:
    """The tokenizer's files in a folder; None where it has none.

    Raises:
        UserError: One is damaged or may not be read.
    """
    if not any((folder / name).is_file() for name in (JSON, MODEL)):
        return None
    from litgpt.tokenizer import Tokenizer

    try:
        files = {name: (folder / name).read_bytes() for name in NAMES if (folder / name).is_file()}
        tokenizer = Tokenizer(folder)
    except OSError as error:
        raise UserError(f"the tokenizer in {str(folder)!r} is unreadable: {error.strerror}") from error
    except Exception as error:  # tokenizers and sentencepiece raise their own kinds
        raise UserError(
            f"the tokenizer in {str(folder)!r} is damaged ({_reason(error)}): restore {JSON} and {CONFIG}"
        ) from error
    return TokenizerFiles(files, _known(tokenizer.bos_id), _known(tokenizer.eos_id))


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{CONFIG}: {error.msg} in line {error.lineno}"
    return f"{CONFIG} lacks {error}" if isinstance(error, KeyError) else one_line(error, 120)


def _known(number: object) -> int | None:
    """An id as one number: sentencepiece says -1 for none, and a generation_config.json may list several."""
    first = number[0] if isinstance(number, list) and number else number
    return first if isinstance(first, int) and first >= 0 else None
