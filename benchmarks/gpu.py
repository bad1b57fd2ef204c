"""What only a GPU can show, within minutes: speed beside stock LitGPT, the gpu tests, and a small study with its page.

    python benchmarks/gpu.py [--text DIR] [--out DIR] [--minutes 9] [--steps versions train tests ...]

`make gpu`. Nothing is fetched. The most important step comes first; each has a time limit, and writes OUT/STEP.json
with device, versions, date and command whatever becomes of the others. `--rehearse` takes the same way with toys, on
any machine, and every JSON says so. See docs/speed.md.
"""

import argparse
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
try:
    import torch

    from litgpt_warmstart.data.preparing.read import format_of
    from litgpt_warmstart.data.preparing.request import BYTES_PER_TOKEN
    from litgpt_warmstart.errors import one_line
    from litgpt_warmstart.run.metrics import read_metrics
except ModuleNotFoundError as error:
    print(f"make gpu: {error} in {sys.executable}: install what pyproject.toml asks for", file=sys.stderr)
    sys.exit(2)

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = (".py", ".txt", ".md", ".rst")
SHORTEST = 20
"""Seconds; a step for which less is left is left out."""
FOR_THE_PAGE = 25
"""Seconds that the study leaves of what is left."""
Figures = dict[str, Any]


class Broke(Exception):
    """A step did not come to its end; the message says why, in a line."""


class Cut(Broke):
    """It was at its time limit."""


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    scales: tuple[str, ...] = ("70M", "5M", "22M")
    """What was not measured yet is first: time may end."""
    speed: str = "--precisions bf16-mixed --global_batch_size 64 --stock_micro_batch_sizes 16 32 --pairs 5 --together"
    """Of benchmarks/train.py."""
    tests: str = "gpu"
    """What of them is run, for pytest's ``-m``."""
    block_size: int = 1024
    n_layer: int = 6
    vocab_size: int = 50257
    base: str | None = "5M"
    """A scale, with the paper's learning rate and batch; None for a model as small as the others here."""
    base_tokens: int = 40_000_000
    target_tokens: int = 25_000_000
    micro_batch_size: int | None = None
    """None for what is chosen."""
    patience: int = 1
    """Every time limit is this many times as long."""

    @property
    def text_bytes(self) -> int:
        """Text to take where all of it is more: enough for the lineage, and for a validation split."""
        return int(1.5 * BYTES_PER_TOKEN * (self.base_tokens + self.target_tokens)) + 3_000_000


REHEARSAL = Sizes(
    scales=("5M",),
    speed="--precisions 32-true --global_batch_size 2 --block_size 32 --stock_micro_batch_sizes 2 --pairs 1"
    " --round_steps 1 --together",
    tests="gpu and not slow",
    block_size=64,
    n_layer=2,
    vocab_size=512,
    base=None,
    base_tokens=30_000,
    target_tokens=15_000,
    micro_batch_size=8,
    patience=5,
)


@dataclass
class Session:
    """Where everything goes, and until when."""

    out: Path
    text: Path | None
    """A folder of text; None for that of the installed packages."""
    sizes: Sizes
    rehearse: bool
    ends: float
    """On time.monotonic's clock."""
    machine: Figures = field(default_factory=dict)
    running: set[subprocess.Popen] = field(default_factory=set)

    def folder(self, step: str) -> Path:
        """What a step leaves for others to read."""
        return self.out / "work" / step


@dataclass
class Task:
    """A step while it is carried out: it runs commands, and notes what it finds."""

    session: Session
    folder: Path
    ends: float
    figures: Figures = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)

    def run(self, name: str, *command: object, **environment: str) -> str:
        """Run this Python with some words after it; what it printed.

        Raises:
            Broke: It failed, or was cut: then all its processes are ended.
        """
        words = [sys.executable, *map(str, command)]
        self.ran.append(" ".join(["python", *words[1:]]).replace(str(self.session.out), "OUT"))
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {"PYTHONPATH": paths, "JSONARGPARSE_DEPRECATION_WARNINGS": "off", **environment}
        log = self.folder / f"{name}.log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                words, cwd=ROOT, env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=stream,
                stderr=subprocess.STDOUT, process_group=0,
            )  # fmt: skip
            self.session.running.add(process)
            try:
                status = process.wait(max(0.0, min(self.ends, self.session.ends) - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise Cut(f"{name} was cut at the time limit") from None
            finally:
                end_group(process)
                self.session.running.discard(process)
        said = log.read_text(errors="replace")
        if status:
            last = next((line for line in reversed(said.splitlines()) if line.strip()), "it said nothing")
            raise Broke(f"{name} ended with status {status}: {one_line(last, 300)}")
        return said

    def ours(self, name: str, *words: object) -> str:
        """Run a command of ours."""
        return self.run(name, "-m", "litgpt_warmstart", *words)


def end_group(process: subprocess.Popen) -> None:
    """End a process and those that it started, which are in a group of their own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def versions(task: Task) -> None:
    """The machine in words, which every JSON has."""
    task.session.machine = json.loads(task.run("versions", "benchmarks/measuring.py").splitlines()[-1])


def speed(task: Task) -> None:
    """Training beside stock LitGPT; the scales that were through are told where time ends."""
    result = task.folder / "result.json"
    words = ["--scales", *task.session.sizes.scales, *task.session.sizes.speed.split(), "--out", result]
    try:
        print(task.run("train", "benchmarks/train.py", *words), end="")
    finally:
        if result.exists():
            task.figures["results"] = json.loads(result.read_text())["results"]


def tests(task: Task) -> None:
    """The tests marked gpu, by name; those that were through are told where time ends."""
    session, log = task.session, task.folder / "pytest.log"
    files = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py"))
    marked = [path for path in files if "mark.gpu" in (ROOT / path).read_text()]  # the others take long to import
    words = [
        "-m",
        "pytest",
        *marked,
        "-m",
        session.sizes.tests,
        *["-vv", "-rap", "-p", "no:logging", "--durations", "30"],
    ]
    if importlib.util.find_spec("xdist"):
        words += ["-n", 2 if session.rehearse else 6, "--dist", "worksteal"]
    rehearse = {"WARMSTART_REHEARSE": "1"} if session.rehearse else {}
    try:
        task.run("pytest", *words, OMP_NUM_THREADS="1" if session.rehearse else "2", **rehearse)
    finally:
        said = log.read_text(errors="replace")
        outcomes = dict(outcomes_of(said))
        by_name: dict[str, list[str]] = {}
        for name, outcome in outcomes.items():
            by_name.setdefault(outcome, []).append(name)
        task.figures |= {"counts": {outcome: len(names) for outcome, names in by_name.items()}, "tests": by_name}
        shutil.copyfile(log, session.out / "tests.log")


def outcomes_of(said: str) -> Iterator[tuple[str, str]]:
    """Names and outcomes in what pytest says while it runs, with and without processes of its own."""
    for line in said.splitlines():
        if found := re.match(r"\[gw\d+\] \[ *\d+%\] (PASSED|FAILED|ERROR|SKIPPED) (tests/\S+::.*)", line):
            yield found[2].strip(), found[1].lower()
        elif found := re.match(r"(tests/\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED)\b", line):
            yield found[1], found[2].lower()


def text(task: Task) -> None:
    """Tokens of the text, by a tokenizer of its own."""
    session, source = task.session, task.session.text
    if source is None:
        source = task.folder / "text"
        source.mkdir()
        task.figures["gathered"] = gather(installed_folders(), source / "packages.jsonl", session.sizes.text_bytes)
    words = [
        "--text_dir",
        source,
        "--tokenizer_vocab_size",
        session.sizes.vocab_size,
        "--data_path",
        task.folder / "data",
    ]
    said = task.ours("warmstart_prepare_data", "warmstart_prepare_data", *words)
    task.figures["prepared"] = next(line for line in said.splitlines() if line.startswith("Prepared "))


def installed_folders() -> list[Path]:
    """The folders of this Python's packages."""
    paths = sysconfig.get_paths()
    named = [Path(path) for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    return sorted({Path(paths["purelib"]), Path(paths["platlib"]), *named})


def gather(folders: list[Path], out: Path, limit: int) -> Figures:
    """Write the text of folders to a .jsonl file, a document a file, in an order drawn once, up to a limit in bytes."""
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in SUFFIXES)
    Random(0).shuffle(files)
    taken, size, seen = 0, 0, set()
    with out.open("w", encoding="utf-8") as stream:
        for path in files:
            if size >= limit:
                break
            try:
                content = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if len(content) < 100 or hash(content) in seen:  # licences, and files that say little
                continue
            seen.add(hash(content))
            stream.write(json.dumps({"text": content}) + "\n")
            taken, size = taken + 1, size + len(content.encode())
    return {"files": taken, "bytes": size}


def study(task: Task) -> None:
    """A base, and from it two targets, each beside scratch: one whose attention is wider in heads, one in all."""
    session, sizes, runs = task.session, task.session.sizes, task.folder / "runs"
    data = session.folder("text") / "data"
    if not (data / "prepared.json").is_file():
        raise Broke("there is no prepared text: the step text did not come to its end, or was not asked for")
    shared: list[object] = ["--logger_name", "csv"]
    if sizes.micro_batch_size:
        shared += ["--train.micro_batch_size", sizes.micro_batch_size]

    def train(name: str, command: str, tokens: int, *words: object) -> None:
        start = time.monotonic()
        budget = ["--train.max_tokens", tokens, "--out_dir", runs / name]
        task.ours(name, command, *words, *budget, *shared)
        rows = read_metrics(runs / name / "metrics.csv")
        val_losses = {int(row["step"]): row["val_loss"] for row in rows if "val_loss" in row}
        speeds = sorted(row["tokens_per_sec"] for row in rows if "tokens_per_sec" in row)
        found = {"val_losses": val_losses, "median_tokens_per_sec": speeds[len(speeds) // 2]}
        task.figures[name] = {"seconds": time.monotonic() - start, "tokens": tokens, **found}
        print(f"  {name}: val loss {list(val_losses.values())[-1]:.4f}, {time.monotonic() - start:.0f} s", flush=True)

    small, base = [], sizes.base
    if base is None:
        base, small = model_file(task.folder, sizes, "base", 48, 2), ["--lr", 0.01, "--train.global_batch_size", 8]
    of_base = ["--target", base, *small, "--data", "PreparedText", "--data.data_path", data]
    train("base", "warmstart_scratch", sizes.base_tokens, *of_base)
    trained = runs / "base/final"
    targets = {
        "10M-heads-24": model_file(task.folder, sizes, "10M-heads-24", 96, 4),
        "22M": "22M" if sizes.base else model_file(task.folder, sizes, "22M", 192, 8),
    }
    with ThreadPoolExecutor(2) as pool:  # one of a pair compiles while the other trains
        trainings = []
        for name, target in targets.items():
            of_target = [sizes.target_tokens, "--target", target]
            trainings += [
                pool.submit(train, f"{name}-scratch", "warmstart_scratch", *of_target, "--mup_base", trained),
                pool.submit(train, f"{name}-warmstart", "warmstart", *of_target, "--base", trained),
            ]
    broken = [error for training in trainings if (error := training.exception())]
    if broken:
        raise broken[0]


def model_file(folder: Path, sizes: Sizes, name: str, n_embd: int, n_head: int) -> Path:
    """A model of the scales' family in a model_config.yaml of its own."""
    path = folder / name / "model_config.yaml"
    path.parent.mkdir()
    shape = dict(n_layer=sizes.n_layer, n_embd=n_embd, n_head=n_head, block_size=sizes.block_size)
    classes = dict(vocab_size=sizes.vocab_size, padded_vocab_size=-(-sizes.vocab_size // 64) * 64)
    path.write_text(json.dumps({"name": f"warmstart-{name.lower()}", **shape, **classes}))
    return path


def page(task: Task) -> None:
    """What the study came to, in words and as a page."""
    session = task.session
    if not (session.folder("study") / "runs").is_dir():
        raise Broke("there are no runs: the step study did not come to its end, or was not asked for")
    where = ["--out_dir", session.out / "report", "--picture", session.out / "curves.png"]
    said = task.ours("warmstart_report", "warmstart_report", session.folder("study") / "runs", *where)
    print(said, end="")
    task.figures["said"] = said.splitlines()


@dataclass(frozen=True)
class Step:
    """A part of the whole."""

    name: str
    carry_out: Callable[[Task], None]
    seconds: int
    """At most."""
    leaves: int = 0
    """Seconds of what is left that it does not take."""
    beside: bool = False
    """Whether it is carried out beside those that come after it, one after the other with others of its kind."""


def steps_of() -> list[Step]:
    """All steps, in the order in which they are worth having."""
    return [
        Step("versions", versions, 60),
        Step("train", speed, 270),
        Step("text", text, 150, beside=True),
        Step("study", study, 400, leaves=FOR_THE_PAGE, beside=True),
        Step("page", page, 60, beside=True),
        Step("tests", tests, 230),
    ]


def carry_out(session: Session, step: Step) -> str:
    """Carry a step out within its limit, and write its JSON; what became of it."""
    start, outcome, reason = time.monotonic(), "broken off", None
    limit = max(0.0, min(step.seconds * session.sizes.patience, session.ends - start - step.leaves))
    folder = session.folder(step.name)
    task = Task(session, folder, start + limit)
    try:
        if limit < SHORTEST:
            outcome, reason = "left out", f"{limit:.0f} s are left for it"
        else:
            print(f"{step.name}: {limit:.0f} s at most", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            step.carry_out(task)
            outcome = "done"
    except Cut as error:
        outcome, reason = "cut", str(error)
    except Broke as error:
        if session.ends:  # else a signal has ended what it waited for
            outcome, reason = "failed", str(error)
    except Exception as error:  # the others are carried out all the same
        outcome, reason = "failed", f"{type(error).__name__}: {one_line(error, 300)}"
    finally:  # a signal's, too
        tell(task, step, outcome, reason, start, limit)
    return outcome


def tell(task: Task, step: Step, outcome: str, reason: str | None, start: float, limit: float) -> None:
    """Write a step's JSON, and say in a line what became of it."""
    session = task.session
    told = {
        "command": f"python benchmarks/gpu.py --steps {step.name}" + (" --rehearse" if session.rehearse else ""),
        "rehearsal": session.rehearse,
        **session.machine,
        "outcome": outcome,
        "reason": reason,
        "seconds": round(time.monotonic() - start, 1),
        "limit_seconds": round(limit, 1),
        "ran": task.ran,
    }
    (session.out / f"{step.name}.json").write_text(json.dumps(told | task.figures, indent=1) + "\n")
    print(f"{step.name}: {outcome} in {told['seconds']:.0f} s" + (f": {reason}" if reason else ""), flush=True)


def has_text(folder: Path) -> bool:
    """Whether warmstart_prepare_data finds files in a folder."""
    return folder.is_dir() and any(format_of(path.name) for path in folder.rglob("*"))


def refuse(why: str) -> NoReturn:
    """Say in one line why nothing is done."""
    print(f"make gpu: {why}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    """Parse, refuse in one line, and carry the steps out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--text", type=Path, help="folder of .txt, .jsonl or .parquet; default: the installed packages'"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "out/gpu", help="folder of the results")
    parser.add_argument("--minutes", type=float, default=9, help="for all steps together")
    parser.add_argument("--steps", nargs="+", help="only these: versions, train, text, tests, study, page")
    parser.add_argument("--rehearse", action="store_true", help="with toys and without a GPU, to find mistakes")
    args = parser.parse_args()
    sizes = REHEARSAL if args.rehearse else Sizes()
    every = steps_of()
    asked = set(args.steps or (step.name for step in every)) | {"versions"}
    if unknown := sorted(asked - {step.name for step in every}):
        refuse(f"there is no step {unknown[0]!r}: choose from {', '.join(step.name for step in every)}")
    if not 0 < args.minutes < math.inf:  # NaN is neither
        refuse(f"--minutes must be above 0 and finite, got {args.minutes:g}")
    if args.text and not has_text(args.text):
        refuse(f"no text in {str(args.text)!r}: give a folder of .txt, .jsonl or .parquet files")
    if not args.rehearse and not torch.cuda.is_available():
        refuse("torch finds no CUDA device here; --rehearse takes the same way with toys, to find mistakes")

    out = args.out.resolve()
    try:
        (out / "work").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        refuse(f"cannot write --out {str(args.out)!r}: {error.strerror}: choose another")
    text = args.text.resolve() if args.text else None
    session = Session(out, text, sizes, args.rehearse, time.monotonic() + 60 * args.minutes * sizes.patience)
    chosen = [step for step in every if step.name in asked]
    outcomes: dict[str, str] = {}
    beside: list[tuple[Step, Future]] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: what was started is ended
    with ThreadPoolExecutor(1) as pool:
        try:
            for step in chosen:
                if step.beside:
                    beside.append((step, pool.submit(carry_out, session, step)))
                else:
                    outcomes[step.name] = carry_out(session, step)
            outcomes |= {step.name: future.result() for step, future in beside}
        except (KeyboardInterrupt, SystemExit) as stopped:
            session.ends = 0.0  # what a step beside would start next
            for process in list(session.running):
                end_group(process)
            sys.exit(130 if isinstance(stopped, KeyboardInterrupt) else stopped.code)
    whole = [name for name, outcome in outcomes.items() if outcome == "done"]
    print(f"{len(whole)} of {len(chosen)} steps done; results in {str(args.out)!r}")
    sys.exit(0 if len(whole) == len(chosen) else 1)


if __name__ == "__main__":
    main()
