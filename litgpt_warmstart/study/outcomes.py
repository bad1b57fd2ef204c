"""The runs of a study and how they ended, which each run's folder tells in outcome.json."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas

from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.files import write_whole
from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.parsing import Count, Finite, Unreadable, parse
from litgpt_warmstart.run.checkpoint import weights_sha256
from litgpt_warmstart.run.folder import OUTCOME
from litgpt_warmstart.run.identity import NO_CLIPPING, WORDS, difference_in_words
from litgpt_warmstart.run.metrics import FILE_NAME, read_metrics
from litgpt_warmstart.run.optimizer import recorded_optimizer
from litgpt_warmstart.run.spec import RunSpec

Status = Literal["finished", "diverged", "skipped"]
FIRST_NAMES = {words: name for name, words in WORDS.items()} | {"block_size": "train.max_seq_length"}
"""What the first landing called entries of an identity."""


@dataclass(frozen=True)
class StudyRun:
    """One run of a study."""

    name: str
    """Tells it from the others; part of its folder's name."""
    spec: RunSpec
    factors: Mapping[str, Any] = field(default_factory=dict)
    """What is varied, by name, for tables."""
    after: tuple[str, ...] = ()
    """Names of the runs that must have ended before, such as the one whose checkpoint it grows."""
    data_after: Path | None = None
    """A checkpoint, perhaps not written yet, whose lineage's tokens this run does not read again."""
    fork_of: Path | None = None
    """Folder of a run at a constant rate, with which this one is the same up to its own cooldown: it begins there."""

    @property
    def tokens(self) -> int:
        """Tokens that it trains on itself."""
        return (self.spec.max_steps - self.forks_at) * self.spec.tokens_per_step

    @property
    def forks_at(self) -> int:
        """The optimizer step at which it leaves the run that it forks: where its cooldown begins; 0 without one."""
        return self.spec.schedule.cooldowns[0][0] if self.fork_of else 0


@dataclass(frozen=True)
class Outcome:
    """How a run ended, in numbers that tables need; ``None`` where it did not get that far."""

    status: Status
    reason: str | None = None
    """Why, where it did not finish."""
    first_val_loss: Finite | None = None
    """Validation loss before the first step."""
    val_loss: Finite | None = None
    """The last one."""
    step_count: Count = 0
    tokens: Count = 0
    seconds: Finite = 0.0
    """Of training."""
    matmul_flops: Finite = 0.0
    hoffmann_flops: Finite = 0.0
    settings: dict[str, Any] = field(default_factory=dict, compare=False)
    """What decided the run; another run in its place must have the same."""

    @property
    def in_words(self) -> str:
        """How it ended, in a few words."""
        if self.status != "finished":
            return f"{self.status}: {self.reason}"
        return f"validation loss {self.val_loss:.4f}" if self.val_loss is not None else "finished"


@dataclass(frozen=True)
class Study:
    """A list of runs, and what is made of them."""

    out_dir: Path
    """Where its results go."""
    runs: Sequence[StudyRun]
    """With different names and folders, each after those that it needs."""
    conclude: Callable[[Mapping[str, Outcome]], None]
    """Writes and prints what came of the runs, given their outcomes by name."""


def write_outcome(run: StudyRun, status: Status, reason: str | None = None) -> Outcome:
    """Write how a run has just ended into its folder, with the numbers of its metrics.csv."""
    spec = run.spec
    rows = read_metrics(spec.out_dir / FILE_NAME)
    losses = [row["val_loss"] for row in rows if "val_loss" in row]
    last = rows[-1] if rows else {}
    outcome = Outcome(
        status,
        reason,
        first_val_loss=losses[0] if losses and spec.args.eval.initial_validation else None,
        val_loss=losses[-1] if losses else None,
        step_count=int(last.get("step", 0)),
        tokens=int(last.get("tokens", 0)),
        seconds=last.get("seconds", 0.0),
        matmul_flops=last.get("matmul_flops", 0.0),
        hoffmann_flops=last.get("hoffmann_flops", 0.0),
        settings=settings(run),
    )
    ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_whole(spec.out_dir / OUTCOME, json.dumps({**asdict(outcome), "ended": ended}, indent=1, default=str) + "\n")
    return outcome


def read_outcome(run: StudyRun) -> Outcome | None:
    """The outcome of a run that has ended; None for one that has not."""
    path = run.spec.out_dir / OUTCOME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            content.pop("ended", None)
        outcome = parse(Outcome, content)
        if not outcome.settings or (outcome.status == "finished" and outcome.val_loss is None):
            raise Unreadable("it tells no settings or no loss")
    except (OSError, ValueError, RecursionError, Unreadable) as error:
        raise UserError(
            f"{str(path)!r} is damaged ({one_line(error, 80)}): delete it, and the run is looked at again"
        ) from error
    before = {FIRST_NAMES.get(name, name): value for name, value in outcome.settings.items()}
    if "optimizer" in before:
        before["optimizer"] = recorded_optimizer(before["optimizer"]).plain
    if "train.max_norm" in before:
        before["train.max_norm"] = before["train.max_norm"] or NO_CLIPPING
    if difference := difference_in_words(before, settings(run)):
        name, before, now = difference[0], *(one_line(value, 100) for value in difference[1:])
        raise UserError(
            f"{str(run.spec.out_dir)!r} holds a run with {name} {before}, now {now}: choose another --out_dir, or"
            " delete that run's folder"
        )
    return outcome


def settings(run: StudyRun) -> dict[str, Any]:
    """What decides a run's numbers: its identity, and what it reads on after."""
    after = weights_sha256(run.data_after) if run.data_after else None
    return run.spec.identity() | ({"reads_on_after": after} if after else {})


def results(runs: Sequence[StudyRun], outcomes: Mapping[str, Outcome], columns: Sequence[str]) -> pandas.DataFrame:
    """A row a run that has factors: these, some columns of its outcome, and its name; a loss that is none is NaN."""
    rows = [
        {**run.factors, **{name: getattr(outcomes[run.name], name) for name in columns}, "run": run.name}
        for run in runs
        if run.factors
    ]
    return pandas.DataFrame(rows).astype({"first_val_loss": float, "val_loss": float})


def warmstarted(spec: RunSpec, source_dir: Path, growth: Growth) -> RunSpec:
    """A run from scratch, made into one that grows a checkpoint, which may still have to be trained."""
    own = dict(base=str(source_dir), target=spec.own["target"]) | growth.options
    return replace(spec, command="warmstart", start_dir=source_dir, growth=growth, own=own)
