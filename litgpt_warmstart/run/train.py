"""Pretraining on Fabric: setup -> main -> fit -> validate, as in ``litgpt.pretrain``.

A loop of our own, because LitGPT's writes one learning rate into every parameter group, which undoes muP.
"""

import math
import os
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from litgpt.utils import choose_logger, num_parameters
from torch import nn

from litgpt_warmstart.data.loaders import TrainLoader, first_val_block, next_batches, val_batches
from litgpt_warmstart.data.plan import DataPlan, plan_data
from litgpt_warmstart.errors import Diverged, UserError, one_line
from litgpt_warmstart.files import locked, older_folder, put_back
from litgpt_warmstart.method import parametrization
from litgpt_warmstart.run import checkpoint, metrics, norms
from litgpt_warmstart.run.breaking_off import end_early, guarded, save_whole, tell
from litgpt_warmstart.run.build import build_state, update_weights
from litgpt_warmstart.run.devices import check_here, choose_strategy
from litgpt_warmstart.run.folder import claim, find_resume_dir, newest_checkpoint, remove_left_overs, remove_run
from litgpt_warmstart.run.interrupt import StopRequest
from litgpt_warmstart.run.journal import Journal
from litgpt_warmstart.run.keeping import remove_older
from litgpt_warmstart.run.launch import carry_out
from litgpt_warmstart.run.resume import OpenRun, State, read_resumed, restore, resume_command
from litgpt_warmstart.run.sharding import make_fabric
from litgpt_warmstart.run.spec import RunSpec
from litgpt_warmstart.run.team import Team
from litgpt_warmstart.run.text import Text
from litgpt_warmstart.run.tuning import keep_memory, tuned


def setup(spec: RunSpec) -> Path:
    """Run a specification on its devices: everything that can be refused is refused before anything is written.

    Returns:
        The folder of the last checkpoint.

    Raises:
        UserError: The run cannot start, broke off, or its data ended.
        Diverged: A loss is not finite, or the last one, of a run that is saved all the same, is above the first.
        SystemExit: A signal came, perhaps in the last step; all is saved, and the status is 128 plus its number.
    """
    check_here(spec.args)
    choose_strategy(spec)  # before other processes are started
    resume_dir = find_resume_dir(spec)
    return carry_out(partial(begin, spec, resume_dir), spec.devices, spec.args.num_nodes)


def begin(spec: RunSpec, resume_dir: Path | None, team: Team) -> Path:
    """What each process does of :func:`setup`."""
    strategy, why = choose_strategy(spec)
    fabric = make_fabric(spec, strategy, team.environment, [_logger(spec, resume_dir)] if team.is_first else None)
    fabric.launch()
    team.connect()
    if team.size > 1:
        fabric.print(f"{team.size} devices, {strategy} ({why})")
    return main(fabric, team, spec, resume_dir)


def _logger(spec: RunSpec, resume_dir: Path | None) -> Any:
    """The logger that the user has named, LitGPT's."""
    try:
        return choose_logger(
            spec.args.logger_name,
            spec.out_dir,
            name=f"{spec.command}-{spec.config.name}",
            log_interval=spec.args.train.log_interval,
            log_args=asdict(spec.args.log),
            **_same_run(spec, resume_dir),
        )
    except Exception as error:  # it is not installed, its server does not answer, a login is missing
        raise _logger_failed(spec, error) from error


def _same_run(spec: RunSpec, resume_dir: Path | None) -> dict[str, Any]:
    """What has W&B go on with the run that a resumed one was, whose id is in the checkpoint's record."""
    if spec.args.logger_name != "wandb":
        return {"resume": resume_dir is not None}
    record = checkpoint.read_header(resume_dir, "--resume").record if resume_dir else None
    known = record.training.get("wandb_id") if record else None
    return {"id": known or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4), "resume": "allow"}


def _logger_failed(spec: RunSpec, error: Exception) -> UserError:
    remedy = "install" if isinstance(error, ModuleNotFoundError) else "mend"
    failed = f"--logger_name {spec.args.logger_name} failed ({type(error).__name__}: {one_line(error, 200)})"
    return UserError(f"{failed}: {remedy} that, or choose csv")


def main(fabric: L.Fabric, team: Team, spec: RunSpec, resume_dir: Path | None = None) -> Path:
    """Build model, optimizer and data from the specification, train, and save; see :func:`setup`."""
    before = checkpoint.read_header(resume_dir, "--resume").record if resume_dir else None
    if spec.args.keep_memory:
        keep_memory(fabric.device)
    spec, choices = team.first(partial(tuned, fabric, spec, before))
    fabric.seed_everything(spec.seed, verbose=False)
    what = "base" if spec.growth else "--initial_checkpoint_dir"
    start = checkpoint.read_checkpoint(spec.start_dir, what) if spec.start_dir and not resume_dir else None
    plan = team.in_turn(partial(plan_data, spec))
    text = Text(spec, plan)  # a damaged tokenizer is told of before anything is written
    for warning in plan.warnings:
        fabric.print(f"Warning: {warning}")

    resumed = read_resumed(resume_dir, spec, plan) if resume_dir else None
    final = spec.out_dir / "final"
    if resume_dir and before:
        steps_left = spec.max_steps - before.step_count
        if steps_left < 0 or (steps_left == 0 and final.exists()):
            return team.first(partial(nothing_to_do, fabric, spec, resume_dir))
    for folder, reason in newest_checkpoint(spec.out_dir)[1] if team.is_first else ():
        fabric.print(f"Warning: passing over {str(folder)!r}: {reason}")

    state = build_state(fabric, spec, start, resumed)
    del start
    if resume_dir:
        restore(resume_dir, fabric, state)
    loader = plan.train_loader(state.step_count, state.loader_state, team.rank, team.size)
    if team.is_first:
        plan.check.begin()
    describe(fabric, spec, state, plan, choices)

    stop = StopRequest(tells=team.is_first)
    run = OpenRun(fabric, team, spec, plan, state, text, stop)
    try:
        with opened(run, resume_dir):
            try:
                fit(run, loader)
                ended = not stop or state.step_count == spec.max_steps
                folder = save_whole(run, final if ended else run.step_folder)
                remove_older(run)
            except Exception as error:
                ended, folder = False, end_early(error, run)
        if ended:
            check_end(spec, run.rows, folder)
        if team.is_first and ended:
            tell(f"Saved {str(folder)!r} after {run.tokens:,} tokens")
        elif team.is_first:
            reached = f"step {state.step_count:,} of {spec.max_steps:,}"
            tell(f"Saved {str(folder)!r} at {reached}. Go on with:\n  {resume_command(spec)}")
    except UserError as error:
        if not stop:
            raise
        with suppress(OSError):  # a closed terminal
            if team.is_first:
                print(error, file=sys.stderr)
        raise SystemExit(stop.exit_status) from error  # else a study would go on with its next run
    if stop:  # perhaps in the last step, validation or save: the run is done, and what comes after it is not begun
        raise SystemExit(stop.exit_status)
    return folder


def nothing_to_do(fabric: L.Fabric, spec: RunSpec, resume_dir: Path) -> Path:
    """The folder of a run that has all its steps; where only the one that it replaces is left, that is put back.

    Raises:
        Diverged: It ended so.
    """
    final = spec.out_dir / "final"
    if resume_dir == older_folder(final):
        with locked(spec.out_dir, _busy(spec)):
            put_back(final)
        resume_dir = find_resume_dir(spec) or final
    rows = metrics.read_metrics(spec.out_dir / metrics.FILE_NAME)
    check_end(spec, metrics.Metrics(rows), resume_dir)
    told = f"{str(resume_dir)!r} has all {spec.max_steps:,} steps: nothing to do. Raise --train.max_tokens to go on"
    fabric.print(told)
    return resume_dir


def _busy(spec: RunSpec) -> str:
    return f"another process is training the run in {str(spec.out_dir)!r}: wait for it, or choose another --out_dir"


@contextmanager
def opened(run: OpenRun, resume_dir: Path | None) -> Iterator[None]:
    """A run's folder locked, what it replaces removed, its files open, and signals taken as wishes.

    The first process alone has them, and the others know of earlier rows what it has read.

    Raises:
        UserError: Another process has the folder, it cannot be written, or the logger fails.
    """
    with ExitStack() as held:
        kept = run.team.first(partial(_open_files, held, run, resume_dir))
        if not run.team.is_first:
            run.rows = metrics.Metrics(kept)
        held.enter_context(run.stop)
        yield


def _open_files(held: ExitStack, run: OpenRun, resume_dir: Path | None) -> list[metrics.Row]:
    """Lock the folder, remove what is replaced, and open metrics.csv, whose rows are given, and norms.csv."""
    fabric, spec = run.fabric, run.spec
    out_dir, resume_step = repr(str(spec.out_dir)), run.state.step_count or None
    probe = first_val_block(spec, fabric.device) if spec.args.track else None
    try:
        spec.out_dir.mkdir(parents=True, exist_ok=True)
        held.enter_context(locked(spec.out_dir, _busy(spec)))
        if find_resume_dir(spec) != resume_dir:
            raise UserError(f"another process has gone on with the run in {out_dir}: give the command again")
        if resume_dir:
            put_back(spec.out_dir / "final")
            remove_left_overs(spec.out_dir, "partial", "removed")
        elif spec.args.overwrite:
            remove_run(spec.out_dir)
        claim(spec.out_dir, getattr(fabric.logger, "log_dir", None))
        file = metrics.RowFile(spec.out_dir / metrics.FILE_NAME, metrics.METRICS, resume_step)
        held.enter_context(closing(file))
        run.rows = metrics.Metrics(file.kept, file)
        run.tracker = norms.Tracker(fabric, spec, run.state.gpt, probe, resume_step)
        if run.tracker.file:
            held.enter_context(closing(run.tracker.file))
    except BrokenPipeError:  # of standard output
        raise
    except OSError as error:
        raise UserError(f"cannot write --out_dir {out_dir}: {error.strerror}: choose another") from error
    if spec.args.logger_name in ("tensorboard", "wandb", "mlflow"):
        try:
            fabric.logger.log_hyperparams(spec.hyperparameters)
        except Exception as error:
            raise _logger_failed(spec, error) from error
    return file.kept


def check_end(spec: RunSpec, rows: metrics.Metrics, folder: Path) -> None:
    """Raise :class:`Diverged` for a run that came to its end with a loss that is worth nothing.

    Args:
        spec: The run.
        rows: Its losses.
        folder: Where it is saved.
    """
    last, at_start = next(reversed(rows.val_losses.values()), None), rows.first_loss
    if metrics.ended_diverged(at_start, last, spec.num_classes):
        began = "" if at_start is None else f" the first was {at_start:.4g},"
        raise Diverged(
            f"training diverged: the last validation loss is {last:.4g},{began} and a"
            f" uniform guess has {math.log(spec.num_classes):.4g}; {str(folder)!r} is saved all the same:"
            f" lower --lr (now {spec.base_lr:g}) and start anew in another --out_dir"
        )


def fit(run: OpenRun, loader: TrainLoader) -> None:
    """Train until the budget, ``max_time`` or a stop request, validating and saving at their intervals."""
    spec, state, device = run.spec, run.state, run.fabric.device
    batches = guarded(next_batches(loader, device, ahead=run.plan.blocks is not None), "the data")
    journal, max_time = Journal(run), spec.args.train.max_time
    with journal.bar:
        with run.team.agreed():
            record_if_due(run)  # as of the validation: it may have broken off before
        validate_if_due(run, journal)
        while state.step_count < spec.max_steps and not run.heard():
            if max_time and run.team.largest(time.perf_counter() - journal.started) >= max_time:
                if run.team.is_first:
                    tell(f"Stopping after --train.max_time {max_time:g} s")
                break
            lr_multiplier = spec.schedule(state.step_count)
            parametrization.set_learning_rate(state.optimizer, spec.base_lr, lr_multiplier)
            train_step(run, batches, journal.running_loss)
            state.loader_state = loader.state()
            state.whole = True
            measured = journal.measured()
            with run.team.agreed():
                run.plan.check.raise_if_bad(wait=False)
                record_if_due(run)  # its time counts in this step's tokens/s
                journal.add_step(measured, spec.base_lr * lr_multiplier)
            validate_if_due(run, journal)
            interval, step = spec.args.train.save_interval, state.step_count
            due = interval and (step % interval == 0 or step in spec.schedule.milestones)
            if (due or step in spec.save_at) and step < spec.max_steps:
                with journal.saving():
                    save_whole(run, run.step_folder)
                    with run.team.agreed():
                        remove_older(run)


def record_if_due(run: OpenRun) -> None:
    """Record norms after this step where that is asked for; the first process does."""
    if run.tracker:
        run.tracker.record_if_due(run.state.step_count)


def train_step(run: OpenRun, batches: Iterator[tuple[torch.Tensor, torch.Tensor]], running_loss: torch.Tensor) -> None:
    """One optimizer step, which leaves the state in the middle of it: where the loader stands is the caller's to tell.

    Args:
        run: The run.
        batches: Inputs and targets of micro-batches, shape (B, T) each.
        running_loss: The step's mean loss is added to it, on the device.
    """
    fabric, spec, state = run.fabric, run.spec, run.state
    for micro in range(spec.accumulation_iters):
        if (batch := next(batches, None)) is None:
            data_ended(run)
        alone = micro + 1 < spec.accumulation_iters and not state.is_sharded
        with fabric.no_backward_sync(state.loss, enabled=alone):
            loss = state.loss(*batch)
            fabric.backward(loss / spec.accumulation_iters)
        running_loss += loss.detach() / spec.accumulation_iters
    state.whole = False
    update_weights(fabric, spec, state)
    state.step_count += 1


def validate_if_due(run: OpenRun, journal: Journal) -> None:
    """Validate where this step is one of those at which the run is, and has not been yet."""
    fabric, spec, step = run.fabric, run.spec, run.state.step_count
    due = step % spec.val_interval == 0 if step else spec.args.eval.initial_validation
    if step == spec.max_steps:
        due = spec.args.eval.final_validation
    if not due or step in run.rows.val_losses:
        return
    with journal.validating():

        def blocks() -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
            found = val_batches(spec, spec.args.eval.max_iters, fabric.device, run.team.rank, run.team.size)
            return guarded(found, "the validation data")

        val_loss = validate(fabric, run.state.loss, blocks())
        bits_per_byte = run.text.bits_per_byte(fabric, val_loss, blocks())
        with fabric.autocast():
            written = run.text.sample(run.state.gpt, run.team.is_first)
    with run.team.agreed():
        journal.add_validation(val_loss, bits_per_byte, written)


@torch.no_grad()
def validate(fabric: L.Fabric, module: nn.Module, batches: Iterator[tuple[torch.Tensor, torch.Tensor, int]]) -> float:
    """Mean loss over validation blocks, those of all devices.

    Args:
        fabric: Tells the device, and adds up over several.
        module: The wrapped :class:`NextTokenLoss`.
        batches: Inputs and targets, shape (B, T) each, and how many of the B blocks count.
    """
    module.eval()
    sums = torch.zeros(2, device=fabric.device, dtype=torch.float64)  # of losses, and of blocks
    for input_ids, targets, counted in batches:
        loss = module(input_ids, targets).double()
        if counted:  # else another device has the last block
            sums += torch.stack((loss * counted, torch.full_like(loss, counted)))
    module.train()
    summed: Any = fabric.all_reduce(sums, reduce_op="sum")
    total, blocks = summed.tolist()
    if blocks == 0:
        raise UserError("the data has no validation block: take more data")
    return total / blocks


def data_ended(run: OpenRun) -> NoReturn:
    """Save and raise: a DataModule without a known length had fewer tokens than the budget."""
    folder = save_whole(run, run.step_folder)
    raise UserError(
        f"the data ended after {run.tokens:,} of {run.spec.max_tokens:,} tokens; saved"
        f" {str(folder)!r}: resume it with --train.max_tokens {run.tokens} to finish there"
    )


def describe(fabric: L.Fabric, spec: RunSpec, state: State, plan: DataPlan, choices: str) -> None:
    """Print what is about to happen, in a few lines."""
    config, grown = spec.config, state.growth
    parameters, tokens = num_parameters(state.gpt), spec.max_tokens
    scales = {g["lr_scale"] for g in state.optimizer.param_groups if g["params"]}
    rates = {f"{spec.base_lr * scale:.4g}" for scale in scales} - {f"{spec.base_lr:.4g}"}
    matrices = ", for matrices " + " or ".join(sorted(rates, key=float)) if rates else ""
    table = parametrization.PARAMETRIZATIONS[spec.parametrization]
    at_base = f" base {spec.mup_base_config.name} of n_embd {spec.mup_base_config.n_embd}"
    fabric.print(
        f"{config.name}: {parameters:,} parameters, n_embd {config.n_embd}, {config.n_head} heads of"
        f" {config.head_size}, vocabulary {config.padded_vocab_size:,}; {fabric.device}, {spec.precision}"
    )
    if grown:
        fabric.print(f"Grown from {grown.source_dir}: {grown.told}")
    carried = f"{table.label}{at_base * (not table.is_own_base)}; lr {spec.base_lr:g}{matrices}"
    fabric.print(f"{carried}, schedule {spec.schedule.words}; {spec.optimizer}")
    fabric.print(
        f"{tokens:,} tokens ({tokens / parameters:.2f} per parameter) in {spec.max_steps:,} steps of"
        f" {spec.global_batch_size} x {spec.block_size:,}; {plan.describe()}"
    )
    fabric.print(choices)
