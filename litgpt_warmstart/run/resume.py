"""A run's folder: what it holds, writing checkpoints into it, going on from one.

out_dir/
  step-00001000/    checkpoint folders (see checkpoint.py), one every save_interval steps
  final/            the last one
  metrics.csv       one row per logged step
  norms.csv         sizes of activations and weights, with --track
  logs/             the logger's own files
  outcome.json      how it ended, where an experiment carried it out
  .run.json         what of this the run has written (see ownership.py)
  .lock             keeps a second process out
"""

import os
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from litgpt.utils import num_parameters

from litgpt_warmstart.data.plan import DataPlan
from litgpt_warmstart.errors import Diverged, UserError
from litgpt_warmstart.method import parametrization
from litgpt_warmstart.method.flops import hoffmann_flops_per_token, matmul_flops_per_token
from litgpt_warmstart.method.growth import Grown
from litgpt_warmstart.method.model import MuGPT
from litgpt_warmstart.method.schedule import Schedule, WsdS, recorded_schedule
from litgpt_warmstart.run import checkpoint, norms, ownership
from litgpt_warmstart.run.identity import difference_in_words, recorded_identity
from litgpt_warmstart.run.interrupt import StopRequest
from litgpt_warmstart.run.metrics import MetricsFile
from litgpt_warmstart.run.record import Ancestor, Record
from litgpt_warmstart.run.spec import RunSpec


@dataclass
class State:
    """What changes while a run goes on."""

    gpt: MuGPT
    """The bare model: its parameters, as trained."""
    loss: Any
    """:class:`NextTokenLoss` around it, compiled and wrapped by Fabric, which names its wrapper in private."""
    optimizer: torch.optim.Optimizer
    lineage: tuple[Ancestor, ...]
    growth: Grown | None
    step_count: int = 0
    """Optimizer updates."""
    whole: bool = True
    """False in the middle of an update, which is then not worth saving."""
    loader_state: dict[str, Any] | None = None
    """The loader's own word for its position after the last optimizer step."""


@dataclass
class OpenRun:
    """A run whose folder is its own: all that training, telling and saving need."""

    fabric: L.Fabric
    spec: RunSpec
    plan: DataPlan
    state: State
    rows: MetricsFile
    tracker: norms.Tracker
    stop: StopRequest

    @property
    def tokens(self) -> int:
        """Tokens trained on so far."""
        return self.state.step_count * self.spec.tokens_per_step

    @property
    def step_folder(self) -> Path:
        """Where the checkpoint of the last step goes while the run is not at its end."""
        return self.spec.out_dir / f"step-{self.state.step_count:08d}"


def find_resume_dir(spec: RunSpec) -> Path | None:
    """The checkpoint folder to go on from, or None to start.

    Raises:
        UserError: ``out_dir`` cannot be written, it holds a run and neither --resume nor --overwrite is given, it holds
            something of a user's where the run would write, or there is nothing to resume.
    """
    check_writable(spec.out_dir)
    out_dir = repr(str(spec.out_dir))
    found, unread = checkpoint.newest_checkpoint(spec.out_dir)
    if spec.resume and spec.track:
        ownership.check_file(spec.out_dir / norms.FILE_NAME)
    if isinstance(spec.resume, Path):
        folder = spec.resume if spec.resume.is_dir() else spec.resume.parent
        if not (folder / checkpoint.STATE).is_file():
            raise UserError(f"--resume {str(spec.resume)!r} has no {checkpoint.STATE}: give a step-*/ folder of a run")
        if found and folder.resolve().parent != spec.out_dir.resolve():
            raise UserError(f"--resume {str(folder)!r} is no part of the run in {out_dir}: change --out_dir")
    elif spec.resume:
        folder = found
        if found is None and unread:
            damaged, reason = unread[-1]
            raise UserError(f"--resume: no checkpoint in {out_dir} can be read, {damaged.name}: {reason}")
        if found is None and spec.resume is True:
            raise UserError(f"--resume: no checkpoint in {out_dir}: pass --resume auto to start there")
    else:
        _check_startable(spec)
        return None
    if found is None:
        ownership.check_free(spec.out_dir)
    return folder


def _check_startable(spec: RunSpec) -> None:
    """Raise a UserError where a run that starts anew would write over something, or into what it starts from."""
    out_dir, real = repr(str(spec.out_dir)), spec.out_dir.resolve()
    for needed in filter(None, (spec.source_dir, spec.initial_checkpoint_dir, spec.mup_base_dir)):
        if needed.resolve() in (real, *real.parents):
            raise UserError(f"--out_dir {out_dir} is in {str(needed)!r}, which this run starts from: choose another")
        if spec.overwrite and real in needed.resolve().parents:
            raise UserError(
                f"--overwrite would delete {str(needed)!r}, which this run starts from: choose another --out_dir"
            )
    ownership.check_free(spec.out_dir)
    if spec.overwrite:
        ownership.check_replaceable(ownership.checkpoints(spec.out_dir))
    elif ownership.holds_run(spec.out_dir):
        raise UserError(
            f"--out_dir {out_dir} already holds a run: pass --resume auto to go on, --overwrite true to replace it, or"
            " another --out_dir"
        )


def save(run: OpenRun, folder: Path) -> Path:
    """Write a checkpoint folder with everything needed to go on.

    Raises:
        Diverged: A weight is not finite; what was saved before is left as it is.
        UserError: The folder cannot be written; what was saved before is left as it is.
    """
    spec, state, device = run.spec, run.state, run.fabric.device
    for name, weight in state.gpt.named_parameters():
        if not torch.isfinite(weight).all():
            raise Diverged(
                f"training diverged: {name} is not finite at step {state.step_count}; nothing was saved there."
                f" {remedy(spec)}"
            )
    if folder.name == "final":
        _keep_milestone(spec, state, folder)
    run.plan.check.raise_if_bad(wait=folder.name == "final")
    record = Record(
        command=spec.command,
        name=spec.config.name,
        parameters=num_parameters(state.gpt),
        parametrization=spec.parametrization,
        mup_base_config=asdict(spec.mup_base_config),
        width_mult=parametrization.width_mult(spec.config, spec.mup_base_config, spec.parametrization),
        base_lr=spec.base_lr,
        global_batch_size=spec.global_batch_size,
        tokens=run.tokens,
        step_count=state.step_count,
        matmul_flops=run.tokens * matmul_flops_per_token(spec.config, spec.block_size),
        hoffmann_flops=run.tokens * hoffmann_flops_per_token(spec.config, spec.block_size),
        data=run.plan.use(state.step_count),
        growth=state.growth,
        lineage=state.lineage,
        training={
            "command_line": command_line(),
            "schedule": spec.schedule.plain,
            "optimizer": spec.optimizer.plain,
            "max_norm": spec.max_norm,
            "block_size": spec.block_size,
            "micro_batch_size": spec.micro_batch_size,
            "loss_impl": spec.loss_impl,
            "max_tokens": spec.max_tokens,
            "precision": spec.precision,
            "seed": spec.seed,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        },
        identity=spec.identity(),
        versions=checkpoint.installed_versions(),
    )
    training_state = {
        "optimizer": state.optimizer.state_dict(),
        "step_count": state.step_count,
        "micro_batch_size": spec.micro_batch_size,
        "precision": run.fabric.strategy.precision.state_dict(),
        "rng": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()},
        "train_dataloader": state.loader_state,
    }
    weights = state.gpt.state_dict().items()
    checkpoint.save_checkpoint(
        folder, weights, spec.config, record, spec.hyperparameters, run.plan.tokenizer, training_state
    )
    return folder


def remedy(spec: RunSpec) -> str:
    """What to do after a divergence: --resume would refuse another learning rate."""
    last, _ = checkpoint.newest_checkpoint(spec.out_dir)
    lower = f"lower --lr (now {spec.base_lr:g})"
    if spec.growth:
        lower += f" or --shrink (now {spec.growth.shrink:g})"
    if last is None:
        return f"No checkpoint was saved: {lower} and start anew in another --out_dir"
    return (
        f"The last good checkpoint is {str(last)!r}: to go on from it, {lower.partition(' or')[0]} and pass litgpt"
        f" warmstart_scratch --initial_checkpoint_dir {shlex.quote(str(last))} --out_dir NEW; or {lower} and start anew"
    )


def _keep_milestone(spec: RunSpec, state: State, final: Path) -> None:
    """Keep the end of a wsd-s run that was lengthened as a step-*/ folder: it is one of the run's results."""
    if ownership.is_checkpoint(final):
        try:
            steps = Record.load(final / checkpoint.RECORD).step_count
        except UserError:  # damaged: it is replaced
            return
        kept = final.with_name(f"step-{steps:08d}")
        if steps < state.step_count and steps in spec.schedule.milestones and not os.path.lexists(kept):
            final.rename(kept)


def _sha256(lineage: tuple[Ancestor, ...]) -> str | None:
    return lineage[-1].sha256[:12] if lineage else None


def _check_schedule(path: Path, before: Schedule, now: Schedule, step_count: int) -> None:
    """Raise a UserError if a finished step would have had another multiplier under the schedule of now.

    So a plateau may be lengthened from a checkpoint before its cooldown, and wsd-s from a cooled one by naming its end.
    """
    step = before.first_difference(now, step_count)
    if step is None:
        return
    saved = (f for f in checkpoint.step_folders(path.parent) if (f / checkpoint.STATE).is_file())
    agreeing = [folder for folder in saved if int(folder.name[5:]) <= step]
    remedy = "pass the schedule that the run was started with, or another --out_dir"
    if agreeing:
        remedy = f"pass --resume {shlex.quote(str(agreeing[-1]))} to go on from where they agree, or another --out_dir"
    if isinstance(now, WsdS) and isinstance(before, WsdS):
        ends = {end for _, end in now.cooldowns}
        if dropped := {end for _, end in before.cooldowns if end <= step_count} - ends:
            named = ",".join(map(str, sorted((dropped | ends) - {now.total_steps})))
            remedy = f"pass --train.cooldown_ends [{named}] to go on after its end"
    raise UserError(
        f"--resume: schedule was {before.words}, now {now.words}, with other learning rates from step {step:,} on:"
        f" {remedy}"
    )


RESUMED = (
    "parametrization", "target", "mup_base", "growth", "precision", "train.max_norm", "lr", "train.global_batch_size",
    "optimizer", "seed", "train.max_seq_length",
)  # fmt: skip
"""What of its identity a run keeps when it goes on; its schedule may differ in steps to come, its budget be longer."""


@dataclass
class Resumed:
    """A checkpoint to go on from."""

    path: Path
    record: Record
    weights: dict[str, torch.Tensor]
    state: dict[str, Any]

    @classmethod
    def read(cls, path: Path, spec: RunSpec, plan: DataPlan, ancestors: tuple[Ancestor, ...]) -> "Resumed":
        """Read a checkpoint and check that the run's settings are those it was started with.

        Raises:
            UserError: It is damaged, or a setting differs: named, with both values.
        """
        read = checkpoint.read_checkpoint(path, "--resume")
        if read.record is None:
            raise UserError(
                f"--resume {str(path)!r} has no {checkpoint.RECORD}: start from it with --initial_checkpoint_dir"
            )
        was = read.record
        if not was.training or was.data is None:
            raise UserError(f"--resume {str(path)!r} was grown but not trained: use --initial_checkpoint_dir")
        use = plan.use(0)
        if was.data.is_in_stored_order:
            raise UserError(
                f"--resume {str(path)!r}: version 0.1 read this run's tokens as they are stored, which is not gone on"
                " with: start from the checkpoint's weights with --initial_checkpoint_dir"
            )
        differences = (
            difference_in_words(recorded_identity(was, read.config), spec.identity(), RESUMED),
            ("the checkpoint that it starts from (sha256)", _sha256(was.lineage), _sha256(ancestors)),
            ("data", was.data.identity(use), use.identity(was.data)),
        )
        for name, before, now in filter(None, differences):
            if before != now:
                raise UserError(
                    f"--resume: {name} was {before}, now {now}: pass the settings that the run was started with, or"
                    " another --out_dir"
                )
        _check_schedule(path, recorded_schedule(was.training["schedule"]), spec.schedule, was.step_count)
        return cls(path, was, read.weights, checkpoint.load_tensors(path / checkpoint.STATE))

    def restore(self, fabric: L.Fabric, state: State) -> None:
        """Put optimizer, counters and random states back; weights are loaded already."""
        state.optimizer.load_state_dict(self.state["optimizer"])
        state.step_count = self.state["step_count"]
        state.loader_state = self.state["train_dataloader"]
        fabric.strategy.precision.load_state_dict(self.state["precision"])
        torch.set_rng_state(self.state["rng"]["cpu"])
        if len(self.state["rng"]["cuda"]) == torch.cuda.device_count() > 0:
            torch.cuda.set_rng_state_all(self.state["rng"]["cuda"])
        fabric.print(f"Resuming {str(self.path)!r} at step {state.step_count:,}")


def command_line() -> list[str]:
    """The words of this process's command line, as typed."""
    name = Path(sys.argv[0]).name
    return [*(("python", "-m", "litgpt_warmstart") if name == "__main__.py" else (name,)), *sys.argv[1:]]


def resume_command(spec: RunSpec) -> str:
    """The command line of this process, with ``--resume true`` unless it goes on by itself."""
    words = command_line()
    if spec.resume == "auto":
        return shlex.join(words)
    without = [w for i, w in enumerate(words) if not w.startswith(("--resume", "--overwrite"))
               and words[i - 1] not in ("--resume", "--overwrite")]  # fmt: skip
    return shlex.join([*without, "--resume", "true"])


def check_writable(out_dir: Path) -> None:
    """Raise a UserError, before anything that takes long, for a folder that cannot be made or written into."""
    try:
        existing = next(path for path in (out_dir, *out_dir.absolute().parents) if path.exists())
        writable = existing.is_dir() and os.access(existing, os.W_OK)
    except OSError as error:  # a name that is too long, a folder that may not be searched
        raise UserError(f"cannot write --out_dir {str(out_dir)!r}: {error.strerror}: choose another") from error
    if not writable:
        raise UserError(f"cannot write --out_dir {str(out_dir)!r}: choose another")
