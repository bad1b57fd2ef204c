"""Damaged and made-up files, by the thousand: every outcome is a result or one line. ``make fuzz`` takes ten minutes.

    python -m tests.guards.fuzz --seconds 600 --seed 0
    python -m tests.guards.fuzz --every true          each value of a record by each of a few others, one at a time

Files are those of a run's folder. Half of the inputs are bytes that were flipped, cut or repeated; the other half keep
the format and have other values. What a command then does is an outcome if it ends with status 0, or with another and
one line on standard error. A traceback is printed with the input that led to it, which is kept in ``--keep``.
"""

import argparse
import contextlib
import copy
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.guards.conftest import contents

VALUES = (
    None, True, False, 0, 1, -1, 2, 3, 17, 2**31, 2**32, 2**63, 2**64, 10**30, 0.0, -0.5, 0.4, 1e-300, 1e300,
    float("inf"), float("-inf"), float("nan"), "", " ", "1", "abc", "heads", "torch.optim.SGD", "../../x", "/dev/zero",
    "~", "\0", "\ud7ff", "é" * 300, "a" * 5000, "=1+1", [], [1, 2], ["a"], {}, {"a": 1}, {"class_path": "os.system"},
    [[[[]]]], b"bytes", "2026-13-45", "0x10", "1e5", "null", "http://127.0.0.1:9/x", "s3://x/y",
)  # fmt: skip
CHARACTERS = tuple("\0\n\r\t,:;-?{}[]#&*!|>%@`'\"~=0189.eE+ ") + ("\xff", "\u2028", "é")


@dataclass
class Tally:
    """What came of the inputs."""

    inputs: int = 0
    statuses: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def flipped(content: bytes, chance: random.Random) -> bytes:
    """Bytes changed, cut, repeated or put in."""
    made = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5))):
        where = chance.randrange(len(made) + 1)
        match chance.randrange(6):
            case 0 if where < len(made):
                made[where] ^= 1 << chance.randrange(8)
            case 1:
                made[where:where] = chance.choice(CHARACTERS).encode("latin-1", "replace")
            case 2:
                del made[where:]
            case 3:
                del made[where : where + chance.choice((1, 3, 40, 400))]
            case 4:
                made[where:where] = made[where : where + 80] * chance.choice((1, 2, 50))
            case _:
                made[where:where] = bytes(chance.randrange(256) for _ in range(chance.choice((1, 4, 60))))
    return bytes(made)


def places(value: object) -> Iterator[tuple[object, object]]:
    """Every container with each of its keys."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def revalued(content: bytes, chance: random.Random) -> bytes:
    """The same YAML or JSON with other values, other names, or without some."""
    value = yaml.safe_load(content)
    for _ in range(chance.choice((1, 1, 1, 2, 6))):
        container, key = chance.choice(list(places(value)) or [(value, None)])
        if not isinstance(container, dict | list) or key is None:
            break
        match chance.randrange(8):
            case 0:
                del container[key]
            case 1 if isinstance(container, dict):
                container[chance.choice(("a", "no_such", "", "class_path", 1))] = container.pop(key)
            case _:
                container[key] = copy.deepcopy(chance.choice(VALUES))  # or one would come to hold itself
    return yaml.safe_dump(value, allow_unicode=chance.random() < 0.5).encode("utf-8", "surrogatepass")


def recelled(content: bytes, chance: random.Random) -> bytes:
    """The same CSV with other cells, rows or columns."""
    rows = [line.split(",") for line in content.decode().splitlines()]
    for _ in range(chance.choice((1, 2, 8))):
        row = chance.choice(rows)
        match chance.randrange(4):
            case 0:
                rows.insert(chance.randrange(len(rows) + 1), list(row))
            case 1:
                row.pop() if len(row) > 1 else row.append("1")
            case _:
                row[chance.randrange(len(row))] = str(chance.choice(VALUES))
    return "\n".join(map(",".join, rows)).encode("utf-8", "surrogatepass")


def run(words: list[str], cwd: Path) -> tuple[int, str, str | None]:
    """A command in this process: its status, standard error, and a traceback where it has one."""
    from litgpt_warmstart.__main__ import main

    out, err, failure, status = io.StringIO(), io.StringIO(), None, 0
    before, argv = os.getcwd(), sys.argv
    os.chdir(cwd)
    sys.argv = ["litgpt-warmstart", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1 if error.code else 0
        if isinstance(error.code, str):
            err.write(error.code + "\n")
    except BaseException:
        failure = traceback.format_exc()
    finally:
        sys.argv = argv
        os.chdir(before)
    return status, err.getvalue(), failure


def cases(run_dir: Path, wide: Path) -> list[tuple[str, list[str]]]:
    """(file in a run's folder, a command that reads it); RUN stands for the folder."""
    shared = ["--target", str(wide)]
    plan = ["warmstart_plan", "--base", "RUN/final", *shared, "--measure", "false"]
    grow = ["warmstart_grow", "--base", "RUN/final", *shared, "--out_dir", "made"]
    export = ["warmstart_export", "--checkpoint_dir", "RUN/final", "--out_dir", "made"]
    report = ["warmstart_report", "RUN", "--out_dir", "made"]
    again = ["warmstart_scratch", "--config", "RUN/final/hyperparameters.yaml", "--out_dir", "RUN", "--resume", "auto"]
    found = [("final/warmstart.yaml", words) for words in (plan, plan, grow, export, report, again)]
    found += [("final/model_config.yaml", words) for words in (plan, plan, grow, export, report)]
    found += [("final/hyperparameters.yaml", words) for words in (
        report, ["warmstart_plan", "--config", "RUN/final/hyperparameters.yaml", *plan[1:]],
    )]  # fmt: skip
    found += [(name, words) for name in ("metrics.csv", "norms.csv") for words in (report, again)]
    found += [("final/tokenizer.json", grow), ("final/tokenizer_config.json", grow), ("outcome.json", report)]
    found += [("final/lit_model.pth", grow), ("final/training_state.pth", again), (".run.json", again)]
    return [(name, words) for name, words in found if (run_dir / name).is_file()]


REMOVED = object()
OTHERS = (REMOVED, None, {}, [], "x", 0, -1, True)


def every_other(content: bytes) -> Iterator[bytes]:
    """The same YAML with one value removed or another, for each value and each of :data:`OTHERS`."""
    for place in range(len(list(places(yaml.safe_load(content))))):
        for other in OTHERS:
            value = yaml.safe_load(content)
            container, key = list(places(value))[place]
            if other is REMOVED:
                del container[key]
            else:
                container[key] = other
            yield yaml.safe_dump(value).encode()


def try_every(run_dir: Path, wide: Path, keep: Path | None = None) -> Tally:
    """Give a record each other value, one at a time, and commands that read it; see :func:`fuzz`."""
    tally, content = Tally(), (run_dir / "final/warmstart.yaml").read_bytes()
    commands = {words[0]: words for name, words in cases(run_dir, wide) if name == "final/warmstart.yaml"}
    for changed in every_other(content):
        for words in commands.values():
            attempt(run_dir, "final/warmstart.yaml", lambda _: changed, words, tally, keep)  # noqa: B023
    return tally


def fuzz(run_dir: Path, wide: Path, seconds: float, seed: int, keep: Path | None = None) -> Tally:
    """Damage files of a run and give commands that read them.

    Args:
        run_dir: The folder of a run; it is copied.
        wide: A model_config.yaml to grow its checkpoint into.
        seconds: How long.
        seed: Of what is tried.
        keep: Gets the inputs that led to a traceback or to more than a line.
    """
    chance, tally, end = random.Random(seed), Tally(), time.monotonic() + seconds
    known = cases(run_dir, wide)
    while time.monotonic() < end:
        name, words = chance.choice(known)
        size = (run_dir / name).stat().st_size
        change = flipped
        if name.endswith((".yaml", ".json")) and size < 2**16 and chance.random() < 0.6:
            change = revalued
        elif name.endswith(".csv") and chance.random() < 0.6:
            change = recelled
        attempt(run_dir, name, lambda c: change(c, chance), words, tally, keep, chance.random() < 0.7)  # noqa: B023
    return tally


def attempt(
    run_dir: Path, name: str, change: Callable[[bytes], bytes], words: list[str], tally: Tally, keep: Path | None,
    without_digests: bool = True,
) -> None:  # fmt: skip
    """Change a file of a copy of a run, give a command, and tally what came of it.

    Args:
        run_dir: The folder of the run.
        name: Of the file.
        change: Its content -> another one.
        words: The command.
        tally: Gets the outcome.
        keep: Gets the input if the outcome is none.
        without_digests: Leave them out of the record: they would keep all the rest from being read.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "run")
        shutil.copytree(run_dir, copy)
        if without_digests:
            record = yaml.safe_load((copy / "final/warmstart.yaml").read_text())
            (copy / "final/warmstart.yaml").write_text(yaml.safe_dump(record | {"sha256": {}}))
        path = copy / name
        path.write_bytes(change(path.read_bytes()))
        before = contents(Path(folder))
        status, err, failure = run([word.replace("RUN", "run") for word in words], Path(folder))
        lines = [line for line in err.splitlines() if line.strip() and "Warning:" not in line]
        told = failure
        if failure is None and status and words[0] != "warmstart_scratch" and len(lines) != 1:
            told = f"status {status} with {len(lines)} lines: {err[-2000:]}"
        if failure is None and status and words[0] == "warmstart_scratch" and not lines:
            told = f"status {status} without a word"
        if told is None and status and words[0] != "warmstart_scratch" and contents(Path(folder)) != before:
            told = f"status {status}, and the disk is not as before"
        tally.inputs += 1
        tally.statuses[status if failure is None else "traceback"] += 1
        if told:
            tally.failures.append(f"{' '.join(words)}\n  with {name} changed: {told}")
            if keep is not None:
                shutil.copytree(copy, keep / str(tally.inputs))


def main() -> None:
    """Make a run, damage it for a while, and say how many inputs there were and what came of them."""
    from tests.guards.conftest import shell, training, write_model

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=bool, default=False)
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        texts, data = Path(folder, "texts"), Path(folder, "data")
        texts.mkdir()
        for path in sorted(Path(json.__file__).parent.parent.glob("[a-d]*.py"))[:20]:
            (texts / f"{path.stem}.txt").write_text(path.read_text(errors="ignore"))
        made = shell("warmstart_prepare_data", "--text_dir", texts, "--tokenizer_vocab_size", 512, "--data_path", data)
        assert made.status == 0, made.err
        models = [write_model(Path(folder, str(n_embd)), n_embd, 2) for n_embd in (16, 48)]
        words = training(models[0], Path(folder, "run"), "--lr", 0.02, "--data", "PreparedText", "--data.data_path",
                         data, "--track", 2)  # fmt: skip
        made = shell("warmstart_scratch", *words)
        assert made.status == 0, made.err
        begun = time.monotonic()
        if asked.every:
            tally = try_every(Path(folder, "run"), models[1], asked.keep)
        else:
            tally = fuzz(Path(folder, "run"), models[1], asked.seconds, asked.seed, asked.keep)
        seconds = time.monotonic() - begun
    for failure in tally.failures:
        print(failure, end="\n\n")
    outcomes = ", ".join(f"{status}: {count:,}" for status, count in sorted(tally.statuses.items(), key=str))
    print(f"{tally.inputs:,} inputs in {seconds:,.0f} s, by status: {outcomes}; {len(tally.failures)} failures")
    raise SystemExit(bool(tally.failures))


if __name__ == "__main__":
    main()
