"""Pretraining on Fabric: setup -> main -> fit -> validate, as in ``litgpt.pretrain``.

A loop of our own, because LitGPT's writes one learning rate into every parameter group, which undoes muP.
"""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import lightning as L
import torch
from litgpt.utils import choose_logger, num_parameters
from torch import nn
from tqdm import tqdm

from litgpt_warmstart.data.loaders import TrainLoader, first_val_block, next_batches, val_batches
from litgpt_warmstart.data.plan import DataPlan, plan_data
from litgpt_warmstart.errors import BrokeOff, Diverged, UserError, one_line
from litgpt_warmstart.files import locked, older_folder, put_back
from litgpt_warmstart.method import parametrization
from litgpt_warmstart.method.flops import hoffmann_flops_per_token, matmul_flops_per_token
from litgpt_warmstart.method.growth import check_growable
from litgpt_warmstart.run import checkpoint, metrics, norms, ownership
from litgpt_warmstart.run.breaking_off import (
    blaming,
    end_early,
    guarded,
    save_whole,
    step_folder,
    tell,
    told_and_stopped,
)
from litgpt_warmstart.run.build import build_state, uses_cuda_graphs
from litgpt_warmstart.run.interrupt import StopRequest
from litgpt_warmstart.run.norms import Tracker
from litgpt_warmstart.run.resume import Resumed, State, find_resume_dir, remedy, resume_command
from litgpt_warmstart.run.spec import RunSpec
from litgpt_warmstart.run.tuning import tuned


def setup(spec: RunSpec) -> Path:
    """Run a specification on one device: everything that can be refused is refused before anything is written.

    Returns:
        The folder of the last checkpoint.

    Raises:
        UserError: The run cannot start, broke off, or its data ended.
        Diverged: A loss is not finite, or the last one, of a run that is saved all the same, is above the first.
        SystemExit: A signal came, perhaps in the last step; all is saved, and the status is 128 plus its number.
    """
    resume_dir = find_resume_dir(spec)
    try:
        logger = choose_logger(
            spec.logger_name,
            spec.out_dir,
            name=f"{spec.command}-{spec.config.name}",
            resume=resume_dir is not None,
            log_interval=spec.log_interval,
            log_args=asdict(spec.log),
        )
    except ModuleNotFoundError as error:
        raise UserError(
            f"--logger_name {spec.logger_name} is not installed ({one_line(error, 120)}): pip install it, or choose csv"
        ) from error
    except Exception as error:  # a server that does not answer, a missing login
        raise _logger_failed(spec, error) from error
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    fabric = L.Fabric(accelerator=accelerator, devices=1, precision=spec.precision, loggers=[logger])
    fabric.launch()
    return main(fabric, spec, resume_dir)


def main(fabric: L.Fabric, spec: RunSpec, resume_dir: Path | None = None) -> Path:
    """Build model, optimizer and data from the specification, train, and save; see :func:`setup`."""
    before = checkpoint.read_header(resume_dir, "--resume").record if resume_dir else None
    spec, choices = tuned(fabric, spec, before)
    fabric.seed_everything(spec.seed, verbose=False)
    start = None
    if spec.source_dir:
        start = checkpoint.read_checkpoint(spec.source_dir)
        check_growable(start.config, spec.config)
    elif spec.initial_checkpoint_dir:
        start = checkpoint.read_checkpoint(spec.initial_checkpoint_dir, "--initial_checkpoint_dir")
    plan = plan_data(spec.reading)
    plan.tokenizer  # noqa: B018  # told before anything is written where it is damaged
    for warning in plan.warnings:
        fabric.print(f"Warning: {warning}")

    resumed = Resumed.read(resume_dir, spec, plan, start.ancestors() if start else ()) if resume_dir else None
    steps_left = spec.max_steps - resumed.record.step_count if resumed else spec.max_steps
    out_dir = repr(str(spec.out_dir))
    busy = f"another process is training the run in {out_dir}: wait for it, or choose another --out_dir"
    final = spec.out_dir / "final"
    if resume_dir and (steps_left < 0 or (steps_left == 0 and final.exists())):
        if resume_dir == older_folder(final):
            with locked(spec.out_dir, busy):
                put_back(final)
            resume_dir = find_resume_dir(spec) or final
        before = metrics.read_metrics(spec.out_dir / metrics.FILE_NAME)
        check_end(spec, {row["step"]: row["val_loss"] for row in before if "val_loss" in row}, resume_dir)
        fabric.print(
            f"{str(resume_dir)!r} has all {spec.max_steps:,} steps: nothing to do. Raise --train.max_tokens to go on"
        )
        return resume_dir
    for folder, reason in checkpoint.newest_checkpoint(spec.out_dir)[1]:
        fabric.print(f"Warning: passing over {str(folder)!r}: {reason}")

    state = build_state(fabric, spec, start, resumed)
    del start
    if resumed:
        resumed.restore(fabric, state)
    loader = plan.train_loader(state.step_count, state.loader_state, fabric.global_rank, fabric.world_size)
    plan.check.begin()
    describe(fabric, spec, state, plan, choices)

    probe = first_val_block(plan.reading, fabric.device) if spec.track else None
    with ExitStack() as held:
        try:
            spec.out_dir.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(spec.out_dir, busy))
            if find_resume_dir(spec) != resume_dir:
                raise UserError(f"another process has gone on with the run in {out_dir}: give the command again")
            if resume_dir:
                put_back(final)
                ownership.remove_left_overs(spec.out_dir, "partial", "removed")
            elif spec.overwrite:
                ownership.remove_run(spec.out_dir)
            written = (metrics.FILE_NAME, *([norms.FILE_NAME] if spec.track else []))
            ownership.claim(spec.out_dir, written, getattr(fabric.logger, "log_dir", None))
            rows = held.enter_context(closing(metrics.MetricsFile(spec.out_dir, state.step_count or None)))
            tracker = held.enter_context(closing(Tracker(fabric, spec, state.gpt, probe, state.step_count or None)))
        except BrokenPipeError:  # of standard output
            raise
        except OSError as error:
            raise UserError(f"cannot write --out_dir {out_dir}: {error.strerror}: choose another") from error
        if spec.logger_name in ("tensorboard", "wandb", "mlflow"):
            try:
                fabric.logger.log_hyperparams(spec.hyperparameters)
            except Exception as error:
                raise _logger_failed(spec, error) from error
        stop = held.enter_context(StopRequest())
        try:
            fit(fabric, spec, state, plan, loader, rows, tracker, stop)
            ended = not stop or state.step_count == spec.max_steps
            folder = save_whole(spec, state, plan, fabric, final if ended else step_folder(spec, state), rows, tracker)
        except Exception as error:
            ended, folder = False, end_early(error, fabric, spec, state, plan, stop)

    if not ended:
        with suppress(BrokeOff):  # a closed terminal
            tell(
                f"Saved {str(folder)!r} at step {state.step_count:,} of {spec.max_steps:,}. Go on with:"
                f"\n  {resume_command(spec)}"
            )
        raise SystemExit(stop.exit_status)
    try:
        check_end(spec, rows.val_losses, folder)
        tell(f"Saved {str(folder)!r} after {state.step_count * spec.tokens_per_step:,} tokens")
    except UserError as error:
        if stop:
            raise told_and_stopped(error, stop) from error
        raise
    if stop:  # in the last step, validation or save: the run is done, and what comes after it is not begun
        raise SystemExit(stop.exit_status)
    return folder


def check_end(spec: RunSpec, val_losses: dict[float, float], folder: Path) -> None:
    """Raise :class:`Diverged` for a run that came to its end with a loss that is worth nothing.

    Args:
        spec: The run.
        val_losses: By step, in the order of steps.
        folder: Where it is saved.
    """
    last, at_start = next(reversed(val_losses.values()), None), val_losses.get(0)  # the first may be late
    if metrics.ended_diverged(at_start, last, spec.num_classes):
        began = "" if at_start is None else f" the first was {at_start:.4g},"
        raise Diverged(
            f"training diverged: the last validation loss is {last:.4g},{began} and a"
            f" uniform guess has {math.log(spec.num_classes):.4g}; {str(folder)!r} is saved all the same:"
            f" lower --lr (now {spec.base_lr:g}) and start anew in another --out_dir"
        )


def _logger_failed(spec: RunSpec, error: Exception) -> UserError:
    return UserError(
        f"--logger_name {spec.logger_name} failed ({type(error).__name__}: {one_line(error, 200)}): mend that, or"
        " choose csv"
    )


def fit(
    fabric: L.Fabric,
    spec: RunSpec,
    state: State,
    plan: DataPlan,
    loader: TrainLoader,
    rows: metrics.MetricsFile,
    tracker: Tracker,
    stop: StopRequest,
) -> None:
    """Train until the budget, ``max_time`` or a stop request, validating and saving at their intervals."""
    module, optimizer = state.loss, state.optimizer
    accumulation = spec.accumulation_iters
    batches = guarded(next_batches(loader, fabric.device, ahead=plan.blocks is not None), "the data")
    drop_gradients = not uses_cuda_graphs(spec.compile, fabric.device)
    matmul_flops = matmul_flops_per_token(spec.config, spec.block_size)
    hoffmann_flops = hoffmann_flops_per_token(spec.config, spec.block_size)
    started, seconds_before = time.perf_counter(), rows.seconds
    validating_seconds = 0.0

    def seconds() -> float:
        return seconds_before + time.perf_counter() - started - validating_seconds

    def log(**values: float) -> None:
        tokens = state.step_count * spec.tokens_per_step
        flops = {"matmul_flops": tokens * matmul_flops, "hoffmann_flops": tokens * hoffmann_flops}
        row = {"tokens": tokens, "seconds": seconds(), **flops, **values}
        rows.write(step=state.step_count, **row)
        with blaming(f"the logger {spec.logger_name}"):
            fabric.log_dict(row, step=state.step_count)

    def validate_now() -> None:
        nonlocal validating_seconds
        running_loss.item()  # waits for the device: what it has queued is training's time
        t0 = time.perf_counter()
        batches = guarded(val_batches(plan.reading, spec.eval.max_iters, fabric.device), "the validation data")
        val_loss = validate(fabric, module, batches)
        validating_seconds += time.perf_counter() - t0
        check_finite(val_loss, spec, state)
        log(val_loss=val_loss)
        tokens = state.step_count * spec.tokens_per_step
        tell(f"step {state.step_count:>7,} of {spec.max_steps:,} | {tokens:,} tokens | val loss {val_loss:.4f}")

    def validate_if_due() -> None:
        step, validation = state.step_count, spec.eval
        due = step % validation.interval == 0 if step else validation.initial_validation
        if step == spec.max_steps:
            due = validation.final_validation
        if due and step not in rows.validated:
            validate_now()

    bar = tqdm(
        total=spec.max_steps * spec.tokens_per_step,
        initial=state.step_count * spec.tokens_per_step,
        unit="tok",
        unit_scale=True,
        desc=spec.config.name,
        dynamic_ncols=True,
        disable=not sys.stderr.isatty(),
    )
    tracker.record_if_due(state.step_count)  # as of the validation: it may have broken off before
    tell_interval = spec.log_interval * max(1, spec.max_steps // (20 * spec.log_interval))
    running_loss = torch.zeros((), device=fabric.device)
    steps_since_log, logged_at = 0, seconds()
    steady_from: tuple[int, float] | None = None
    with bar:
        validate_if_due()
        while state.step_count < spec.max_steps and not stop:
            if spec.max_time and time.perf_counter() - started >= spec.max_time:
                tell(f"Stopping after --train.max_time {spec.max_time:g} s")
                break
            plan.check.raise_if_bad(wait=False)
            lr_multiplier = spec.schedule(state.step_count)
            parametrization.set_learning_rate(optimizer, spec.base_lr, lr_multiplier)
            for micro in range(accumulation):
                try:
                    batch = next(batches, None)
                except BrokeOff:
                    if not stop:  # the signal may have reached the loader's workers too
                        raise
                    optimizer.zero_grad(set_to_none=drop_gradients)
                    return
                if batch is None:
                    data_ended(fabric, spec, state, plan, rows, tracker)
                input_ids, targets = batch
                with fabric.no_backward_sync(module, enabled=micro + 1 < accumulation):
                    loss = module(input_ids, targets)
                    fabric.backward(loss / accumulation)
                running_loss += loss.detach() / accumulation
            if spec.max_norm is not None:
                # No error for a norm that is not finite: 16-mixed skips such a step, and asking would stall the device.
                fabric.clip_gradients(state.gpt, optimizer, max_norm=spec.max_norm, error_if_nonfinite=False)
            state.whole = False
            optimizer.step()
            optimizer.zero_grad(set_to_none=drop_gradients)
            state.step_count += 1
            state.loader_state = plan.loader_state(loader)
            state.whole = True
            steps_since_log += 1
            if steady_from is None:  # what the first step takes, compiling, is no measure of the others
                steady_from = state.step_count, time.perf_counter()
            bar.update(spec.tokens_per_step)
            tracker.record_if_due(state.step_count)  # its time counts in this step's tokens/s

            if state.step_count % spec.log_interval == 0 or state.step_count == spec.max_steps:
                loss_value = running_loss.item() / steps_since_log  # waits for the device
                check_finite(loss_value, spec, state)
                now = seconds()
                tokens_per_sec = steps_since_log * spec.tokens_per_step / (now - logged_at)
                log(loss=loss_value, learning_rate=spec.base_lr * lr_multiplier, tokens_per_sec=tokens_per_sec)
                bar.set_postfix_str(f"loss {loss_value:.3f}")
                if bar.disable and state.step_count % tell_interval == 0:
                    left = ""
                    if steady_from and state.step_count > steady_from[0]:
                        rate = (time.perf_counter() - steady_from[1]) / (state.step_count - steady_from[0])
                        left = f" | {(spec.max_steps - state.step_count) * rate:,.0f} s left"
                    tell(
                        f"step {state.step_count:>7,} of {spec.max_steps:,} | loss {loss_value:.4f} |"
                        f" {tokens_per_sec:,.0f} tokens/s{left}"
                    )
                running_loss.zero_()
                steps_since_log, logged_at = 0, now
            validate_if_due()
            interval = spec.save_interval
            due = interval and (state.step_count % interval == 0 or state.step_count in spec.schedule.milestones)
            if due and state.step_count < spec.max_steps:
                running_loss.item()
                save_start = seconds()
                save_whole(spec, state, plan, fabric, step_folder(spec, state), rows, tracker)
                logged_at += seconds() - save_start


@torch.no_grad()
def validate(fabric: L.Fabric, module: nn.Module, batches: Iterator[tuple[torch.Tensor, torch.Tensor, int]]) -> float:
    """Mean loss over validation blocks.

    Args:
        fabric: Tells the device.
        module: The wrapped :class:`NextTokenLoss`.
        batches: Inputs and targets, shape (B, T) each, and how many of the B blocks count.
    """
    module.eval()
    total, blocks = torch.zeros((), device=fabric.device, dtype=torch.float64), 0
    for input_ids, targets, counted in batches:
        total += module(input_ids, targets).double() * counted
        blocks += counted
    module.train()
    if blocks == 0:
        raise UserError("the data has no validation block: take more data")
    return total.item() / blocks


def check_finite(loss: float, spec: RunSpec, state: State) -> None:
    """Raise :class:`Diverged` if the loss is not finite; the last checkpoint is left as it is."""
    if not math.isfinite(loss):
        raise Diverged(f"training diverged: the loss is {loss} at step {state.step_count}. {remedy(spec)}")


def data_ended(
    fabric: L.Fabric, spec: RunSpec, state: State, plan: DataPlan, rows: metrics.MetricsFile, tracker: Tracker
) -> NoReturn:
    """Save and raise: a DataModule without a known length had fewer tokens than the budget."""
    folder = save_whole(spec, state, plan, fabric, step_folder(spec, state), rows, tracker)
    tokens = state.step_count * spec.tokens_per_step
    raise UserError(
        f"the data ended after {tokens:,} of {spec.max_steps * spec.tokens_per_step:,} tokens; saved {str(folder)!r}:"
        f" resume it with --train.max_tokens {tokens} to finish there"
    )


def describe(fabric: L.Fabric, spec: RunSpec, state: State, plan: DataPlan, choices: str) -> None:
    """Print what is about to happen, in a few lines."""
    config, grown = spec.config, state.growth
    parameters, tokens = num_parameters(state.gpt), spec.max_steps * spec.tokens_per_step
    scales = {g["lr_scale"] for g in state.optimizer.param_groups if g["params"]}
    rates = {f"{spec.base_lr * scale:.4g}" for scale in scales} - {f"{spec.base_lr:.4g}"}
    matrices = ", for matrices " + " or ".join(sorted(rates, key=float)) if rates else ""
    parametrized = "standard parametrization"
    if spec.parametrization == "mup":
        parametrized = f"muP base {spec.mup_base_config.name} of n_embd {spec.mup_base_config.n_embd}"
    fabric.print(
        f"{config.name}: {parameters:,} parameters, n_embd {config.n_embd}, {config.n_head} heads of"
        f" {config.head_size}, vocabulary {config.padded_vocab_size:,}; {fabric.device}, {spec.precision}"
    )
    if grown:
        fabric.print(f"Grown from {grown.source_dir}: {grown.told}")
    fabric.print(f"{parametrized}; lr {spec.base_lr:g}{matrices}, schedule {spec.schedule.words}; {spec.optimizer}")
    fabric.print(
        f"{tokens:,} tokens ({tokens / parameters:.2f} per parameter) in {spec.max_steps:,} steps of"
        f" {spec.global_batch_size} x {spec.block_size:,}; {plan.describe()}"
    )
    fabric.print(choices)
