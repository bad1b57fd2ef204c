"""What the guards stand on: commands as typed, and the files that they leave. Nothing here knows a function of ours.

Everything is made by commands: text of this Python's library, a tokenizer of 512 tokens, models of width 16 and 48 with
two layers and sequences of 64 tokens, and a base.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.conftest import made_once

MAIN = (sys.executable, "-m", "litgpt_warmstart")
STEP = ("--compile", "false", "--precision", "32-true", "--logger_name", "csv", "--eval.max_iters", "4")
"""Options of every run here."""


@dataclass(frozen=True)
class Told:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        """Lines on standard error, without blank ones."""
        return [line for line in self.err.splitlines() if line.strip()]


Command = Callable[..., Told]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process, as ``python -m litgpt_warmstart`` does; ``cwd`` is where it stands."""

    def run(*words: object, cwd: Path | None = None) -> Told:
        from litgpt_warmstart.__main__ import main

        capfd.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["litgpt-warmstart", *map(str, words)])
            if cwd is not None:
                patch.chdir(cwd)
            status = 0
            try:
                main()
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else 1 if error.code else 0
                if isinstance(error.code, str):
                    print(error.code, file=sys.stderr)
        out, err = capfd.readouterr()
        return Told(status, out, err)

    return run


def shell(*words: object, cwd: Path | None = None, timeout: float = 120, **environment: str) -> Told:
    """Run a command in a process of its own."""
    done = subprocess.run(
        [*MAIN, *map(str, words)], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True,
        timeout=timeout, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return Told(done.returncode, done.stdout, done.stderr)


def contents(folder: Path) -> dict[str, str]:
    """Every path beneath a folder, with the SHA-256 of a file, the target of a link; locks are left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_dir():
            found[name] = "folder"
        elif path.name != ".lock":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def table(path: Path) -> list[list[str]]:
    """A CSV file's rows without what a clock decides."""
    lines = [line.split(",") for line in path.read_text().splitlines()]
    timed = [i for i, name in enumerate(lines[0]) if name in ("seconds", "tokens_per_sec")]
    return [[cell for i, cell in enumerate(line) if i not in timed] for line in lines]


def write_model(folder: Path, n_embd: int, n_head: int, **changes: object) -> Path:
    """A model_config.yaml of a GPT-NeoX of two layers, for ``--target``."""
    folder.mkdir(parents=True, exist_ok=True)
    config = dict(
        name=f"tiny-{n_embd}", hf_config={}, block_size=64, n_layer=2, n_embd=n_embd, n_head=n_head, vocab_size=512,
        padded_vocab_size=512, rotary_percentage=0.5,
    )  # fmt: skip
    path = folder / "model_config.yaml"
    path.write_text(yaml.safe_dump(config | changes))
    return path


def training(target: object, out_dir: object, *more: object, steps: int = 4, batch: int = 8) -> Sequence[object]:
    """Options of a run of seconds."""
    sized = ("--train.global_batch_size", batch, "--train.micro_batch_size", 4, "--train.max_steps", steps)
    return ("--target", target, "--out_dir", out_dir, *sized, *STEP, *more)


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twenty .txt files."""
    folder = tmp_path_factory.mktemp("texts")
    library = Path(json.__file__).parent.parent
    for number, path in enumerate(sorted(library.glob("[a-d]*.py"))[:20]):
        (folder / f"{number:02d}.txt").write_text(path.read_text(errors="ignore"))
    return folder


def done(*words: object, **environment: str) -> None:
    """Run a command in a process of its own, to its good end."""
    told = shell(*words, **environment)
    assert told.status == 0, told.err


@pytest.fixture(scope="session")
def data(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared text, with its tokenizer of 512 tokens."""
    words = ("warmstart_prepare_data", "--text_dir", texts, "--tokenizer_vocab_size", 512, "--data_path")
    return made_once(tmp_path_factory, "text", lambda path: done(*words, path))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """n_embd -> model_config.yaml."""
    folder = tmp_path_factory.mktemp("models")
    return {n_embd: write_model(folder / str(n_embd), n_embd, n_head) for n_embd, n_head in ((16, 2), (48, 4))}


@pytest.fixture(scope="session")
def from_text(data: Path) -> tuple[str, ...]:
    """Options that train on the prepared text."""
    return ("--data", "PreparedText", "--data.data_path", str(data))


@pytest.fixture(scope="session")
def base_run(models: dict[int, Path], from_text: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a base's run, width 16, 6 steps, a checkpoint at 3."""

    def train(out_dir: Path) -> None:
        words = training(models[16], out_dir, "--lr", 0.02, "--train.save_interval", 3, *from_text, steps=6)
        done("warmstart_scratch", *words)

    return made_once(tmp_path_factory, "base_of_text", train)


@pytest.fixture(scope="session")
def base(base_run: Path) -> Path:
    """The base's last checkpoint."""
    return base_run / "final"
