"""A run that is going on: its state, saving it, and going on from what was saved."""

import os
import shlex
import signal
import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from litgpt.utils import num_parameters

from litgpt_warmstart.data.plan import DataPlan
from litgpt_warmstart.errors import Diverged, UserError
from litgpt_warmstart.method import parametrization
from litgpt_warmstart.method.growth import Grown
from litgpt_warmstart.method.model import MuGPT
from litgpt_warmstart.method.schedule import Schedule, recorded_schedule
from litgpt_warmstart.run import checkpoint, norms
from litgpt_warmstart.run.checkpoint import Checkpoint
from litgpt_warmstart.run.folder import is_checkpoint, newest_checkpoint, step_folders
from litgpt_warmstart.run.identity import difference_in_words, recorded_identity
from litgpt_warmstart.run.interrupt import StopRequest
from litgpt_warmstart.run.metrics import Metrics
from litgpt_warmstart.run.record import Ancestor, Record
from litgpt_warmstart.run.sharding import gathered, gathered_state, is_finite, load_state
from litgpt_warmstart.run.spec import RunSpec
from litgpt_warmstart.run.team import Team
from litgpt_warmstart.run.text import Text


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
    is_sharded: bool = False
    """Whether each device has a part of every parameter. Its gradients are averaged, and so sharded, after each
    micro-batch: the sum of several has no room elsewhere."""
    step_count: int = 0
    """Optimizer updates."""
    grad_norm: torch.Tensor | None = None
    """Of the last update, before clipping, on the device; None where nothing tells it."""
    whole: bool = True
    """False in the middle of an update, which is then not worth saving."""
    loader_state: dict[str, Any] | None = None
    """The loader's own word for its position after the last optimizer step."""


@dataclass
class OpenRun:
    """A run that is going on: all that training, telling and saving need."""

    fabric: L.Fabric
    team: Team
    spec: RunSpec
    plan: DataPlan
    state: State
    text: Text
    stop: StopRequest
    rows: Metrics = field(default_factory=lambda: Metrics([]))
    tracker: norms.Tracker | None = None
    """In the first process, once its files are open."""

    def heard(self) -> StopRequest:
        """The wish to stop, of whichever process a signal came to."""
        number = self.team.largest(self.stop.signal or 0)
        if number and not self.stop:
            self.stop.signal = signal.Signals(int(number))
        return self.stop

    @property
    def tokens(self) -> int:
        """Tokens trained on so far."""
        return self.state.step_count * self.spec.tokens_per_step

    @property
    def step_folder(self) -> Path:
        """Where the checkpoint of the last step goes while the run is not at its end."""
        return self.spec.out_dir / f"step-{self.state.step_count:08d}"


def save(run: OpenRun, folder: Path) -> Path:
    """Write a checkpoint folder with everything needed to go on.

    Raises:
        Diverged: A weight is not finite; what was saved before is left as it is.
        UserError: The folder cannot be written; what was saved before is left as it is.
    """
    spec, state, team = run.spec, run.state, run.team
    bad = next((name for name, weight in state.gpt.named_parameters() if not is_finite(weight)), None)
    if team.largest(bad is not None):
        raise Diverged(
            f"training diverged: {bad or 'a weight'} is not finite at step {state.step_count}; nothing was saved there."
            f" {remedy(spec)}"
        )
    optimizer = gathered_state(state.optimizer)
    weights = ((name, gathered(weight)) for name, weight in state.gpt.state_dict().items())
    if not team.is_first:
        deque(weights, maxlen=0)

    def write() -> None:
        try:
            _write(run, folder, weights, optimizer)
        finally:
            deque(weights, maxlen=0)  # the others are gathering, whatever has failed here

    team.first(write)
    return folder


def _write(run: OpenRun, folder: Path, weights: Iterable[tuple[str, torch.Tensor]], optimizer: dict[str, Any]) -> None:
    """Write a checkpoint of whole weights, each taken when the one before is written, and optimizer state."""
    spec, state, device = run.spec, run.state, run.fabric.device
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
        branch_divisor=parametrization.branch_divisor(spec.config, spec.mup_base_config, spec.parametrization),
        base_lr=spec.base_lr,
        global_batch_size=spec.global_batch_size,
        tokens=run.tokens,
        step_count=state.step_count,
        **spec.flops(run.tokens),
        data=run.plan.use(state.step_count),
        growth=state.growth,
        lineage=state.lineage,
        training={
            "command_line": command_line(),
            "schedule": spec.schedule.plain,
            "optimizer": spec.optimizer.plain,
            "scale_eps": spec.scale_eps,
            "max_norm": spec.args.train.max_norm,
            "block_size": spec.block_size,
            "micro_batch_size": spec.micro_batch_size,
            "loss_impl": spec.loss,
            "max_tokens": spec.max_tokens,
            "precision": spec.precision,
            "seed": spec.seed,
            "devices": spec.num_devices,
            "wandb_id": run.fabric.logger.version if spec.args.logger_name == "wandb" else None,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        },
        identity=spec.identity(),
    )
    training_state = {
        "optimizer": optimizer,
        "step_count": state.step_count,
        "micro_batch_size": spec.micro_batch_size,
        "precision": run.fabric.strategy.precision.state_dict(),
        "rng": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()},
        "train_dataloader": state.loader_state,
    }
    checkpoint.save_checkpoint(
        folder, weights, spec.config, record, spec.hyperparameters, run.plan.tokenizer, training_state
    )


def remedy(spec: RunSpec) -> str:
    """What to do after a divergence: --resume would refuse another learning rate."""
    last, _ = newest_checkpoint(spec.out_dir)
    lower = f"lower --lr (now {spec.base_lr:g})"
    if spec.growth:
        lower += f" or --shrink (now {spec.growth.shrink_of('hidden'):g})"
    if last is None:
        return f"No checkpoint was saved: {lower} and start anew in another --out_dir"
    return (
        f"The last good checkpoint is {str(last)!r}: to go on from it, {lower.partition(' or')[0]} and pass litgpt"
        f" warmstart_scratch --initial_checkpoint_dir {shlex.quote(str(last))} --out_dir NEW; or {lower} and start anew"
    )


def _keep_milestone(spec: RunSpec, state: State, final: Path) -> None:
    """Keep the end of a wsd-s run that was lengthened as a step-*/ folder: it is one of the run's results."""
    if is_checkpoint(final):
        try:
            steps = Record.load(final / checkpoint.RECORD).step_count
        except UserError:  # damaged: it is replaced
            return
        kept = final.with_name(f"step-{steps:08d}")
        if steps < state.step_count and steps in spec.schedule.milestones and not os.path.lexists(kept):
            final.rename(kept)


def _check_schedule(path: Path, before: Schedule, now: Schedule, step_count: int) -> None:
    """Raise a UserError if a finished step would have had another multiplier under the schedule of now.

    So a plateau may be lengthened from a checkpoint before its cooldown, and wsd-s from a cooled one by naming its end.
    """
    step = before.first_difference(now, step_count)
    if step is None:
        return
    saved = (f for f in step_folders(path.parent) if (f / checkpoint.STATE).is_file())
    agreeing = [folder for folder in saved if int(folder.name[5:]) <= step]
    remedy = "pass the schedule that the run was started with, or another --out_dir"
    if agreeing:
        remedy = f"pass --resume {shlex.quote(str(agreeing[-1]))} to go on from where they agree, or another --out_dir"
    if now.name == before.name == "wsd-s":
        ends = {end for _, end in now.cooldowns}
        if dropped := {end for _, end in before.cooldowns if end <= step_count} - ends:
            named = ",".join(map(str, sorted((dropped | ends) - {now.total_steps})))
            remedy = f"pass --train.cooldown_ends [{named}] to go on after its end"
    raise UserError(
        f"--resume: schedule was {before.words}, now {now.words}, with other learning rates from step {step:,} on:"
        f" {remedy}"
    )


RESUMED = (
    "parametrization", "scale_eps", "target", "mup_base", "growth", "precision", "train.max_norm", "lr",
    "train.global_batch_size", "optimizer", "seed", "train.max_seq_length", "starts_from",
)  # fmt: skip
"""What of its identity a run keeps when it goes on; its schedule may differ in steps to come, its budget be longer."""


def read_resumed(path: Path, spec: RunSpec, plan: DataPlan) -> Checkpoint:
    """Read a checkpoint to go on from, and check that the run's settings are those it was started with.

    Raises:
        UserError: It is damaged, or a setting differs: named, with both values.
    """
    read, elsewhere = checkpoint.read_checkpoint(path, "--resume"), "start from it with --initial_checkpoint_dir"
    was = read.record
    if was is None or not was.training or was.data is None:
        raise UserError(f"--resume {str(path)!r} is no checkpoint of a run of litgpt-warmstart: {elsewhere}")
    if was.data.fingerprint is not None and was.data.order_seed is None:
        raise UserError(
            f"--resume {str(path)!r}: version 0.1 read this run's tokens as they are stored, which is not gone on with:"
            f" {elsewhere}"
        )
    use = plan.use(0)
    differences = (
        difference_in_words(recorded_identity(was, read.config), spec.identity(), RESUMED),
        ("data", was.data.identity(use), use.identity(was.data)),
    )
    for name, before, now in filter(None, differences):
        if before != now:
            raise UserError(
                f"--resume: {name} was {before}, now {now}: pass the settings that the run was started with, or"
                " another --out_dir"
            )
    _check_schedule(path, recorded_schedule(was.training["schedule"]), spec.schedule, was.step_count)
    return read


def restore(folder: Path, fabric: L.Fabric, state: State) -> None:
    """Put optimizer, counters and random states of a checkpoint back; weights are loaded already."""
    saved = checkpoint.load_tensors(folder / checkpoint.STATE)
    load_state(state.optimizer, saved["optimizer"])
    state.step_count = saved["step_count"]
    state.loader_state = saved["train_dataloader"]
    fabric.strategy.precision.load_state_dict(saved["precision"])
    torch.set_rng_state(saved["rng"]["cpu"])
    if len(saved["rng"]["cuda"]) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(saved["rng"]["cuda"])
    fabric.print(f"Resuming {str(folder)!r} at step {state.step_count:,}")


def command_line() -> list[str]:
    """The words of this process's command line, as typed."""
    name = Path(sys.argv[0]).name
    return [*(("python", "-m", "litgpt_warmstart") if name == "__main__.py" else (name,)), *sys.argv[1:]]


def resume_command(spec: RunSpec) -> str:
    """The command line of this process, with ``--resume true`` unless it goes on by itself."""
    words = command_line()
    if spec.args.resume == "auto":
        return shlex.join(words)
    without = [w for i, w in enumerate(words) if not w.startswith(("--resume", "--overwrite"))
               and words[i - 1] not in ("--resume", "--overwrite")]  # fmt: skip
    return shlex.join([*without, "--resume", "true"])
