"""StdlibText: the text of the Python standard library on this machine, for trying things without a download."""

import hashlib
import json
import os
import shlex
import shutil
import sys
from pathlib import Path

from litgpt_warmstart.data.prepared_text import PreparedText
from litgpt_warmstart.data.preparing.bpe import train_bpe
from litgpt_warmstart.data.preparing.prepare import prepare
from litgpt_warmstart.data.preparing.request import PREPARED, Preparation
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import atomic_folder

VAL_FRACTION = 0.04
PIECE_CHARACTERS = 2048
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "_bundled"}
VOCAB_SIZE = 4096


class StdlibText(PreparedText):
    """The Python standard library's own source text, about 12 MB without its tests; nothing is downloaded.

    A byte-level BPE of 4,096 tokens is trained on it once and kept with the tokens (about 3.5 million). Files are split
    into training and validation by the hash of their names, cut into pieces, and the pieces shuffled.
    """

    def __init__(self, data_path: Path = Path("data/stdlib_text"), order_seed: int | None = None) -> None:
        """
        Args:
            data_path: Where tokenizer and tokens are; prepared at first use.
            order_seed: Of the order in which blocks are read. Default: what the base has read it in, else 0.
        """
        super().__init__(data_path=data_path, order_seed=order_seed)

    @property
    def vocab_size(self) -> int:
        return VOCAB_SIZE

    @property
    def is_prepared(self) -> bool:
        return (self.tokenizer_dir / PREPARED).is_file()

    @property
    def tokenizer_json(self) -> bytes | None:
        return super().tokenizer_json if self.is_prepared else None

    def prepare_data(self) -> None:
        """Train the tokenizer and encode the text, or check what is there."""
        if (self.tokenizer_dir / "train.bin").is_file():
            raise UserError(
                f"{str(self.tokenizer_dir)!r} was prepared by litgpt-warmstart 0.1, in another format: remove it with"
                f" rm -r {shlex.quote(str(self.tokenizer_dir))}, and the same command prepares it anew"
            )
        if self.is_prepared:
            return super().prepare_data()
        print(f"Preparing StdlibText in {str(self.tokenizer_dir)!r} (once, about 15 s) ...", file=sys.stderr)
        source = self.tokenizer_dir.resolve().with_name(f".{self.tokenizer_dir.name}.source")
        if not source.is_dir():
            with atomic_folder(source) as folder:
                write_source(folder, VOCAB_SIZE)
        prepare(Preparation(self.tokenizer_dir, text_dir=source, tokenizer=str(source)), say=lambda line: None)
        shutil.rmtree(source)


def stdlib_documents() -> dict[str, str]:
    """Name -> text of the standard library's modules, without tests and installed packages."""
    root = Path(os.__file__).parent
    names = [p.relative_to(root) for p in root.rglob("*.py") if not LEFT_OUT & set(p.relative_to(root).parts)]
    return {n.as_posix(): (root / n).read_text(encoding="utf-8", errors="replace") for n in sorted(names)}


def pieces(text: str) -> list[str]:
    """A text cut at line ends into pieces of about :data:`PIECE_CHARACTERS`.

    Uncut, one of the library's tables or long modules would fill whole batches by itself.
    """
    found, lines, length = [], [], 0
    for line in text.splitlines(keepends=True):
        if lines and length + len(line) > PIECE_CHARACTERS:
            found.append("".join(lines))
            lines, length = [], 0
        lines.append(line)
        length += len(line)
    return [*found, "".join(lines)] if lines else found


def in_validation(name: str) -> bool:
    """Whether a document belongs to the validation split."""
    return int.from_bytes(hashlib.sha256(f"val:{name}".encode()).digest()[:4], "big") < VAL_FRACTION * 2**32


def write_source(folder: Path, vocab_size: int) -> None:
    """Write the library's pieces, by split, and the tokenizer that is trained on them: what a preparation takes."""
    splits: dict[str, list[str]] = {"train": [], "validation": []}
    for name, text in stdlib_documents().items():
        splits["validation" if in_validation(name) else "train"] += pieces(text)
    train_bpe(splits["train"], vocab_size, folder)
    for split, found in splits.items():
        lines = "".join(json.dumps({"text": piece}) + "\n" for piece in found)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
