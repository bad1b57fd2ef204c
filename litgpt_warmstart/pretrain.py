"""Pretraining on Fabric: setup -> main -> fit -> validate, as in ``litgpt.pretrain``.

A loop of our own, because LitGPT's writes one learning rate into every parameter group, which undoes muP.
"""

import math
import os
import shlex
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from litgpt.model import GPT
from litgpt.utils import choose_logger, num_parameters
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from litgpt_warmstart import checkpoint, growth, parametrization, record
from litgpt_warmstart.args import RunSpec
from litgpt_warmstart.data.loaders import DataPlan, next_batches, plan_data, val_batches
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.flops import matmul_flops_per_token
from litgpt_warmstart.grow_folder import record_growth
from litgpt_warmstart.interrupt import StopRequest
from litgpt_warmstart.loss import NextTokenLoss
from litgpt_warmstart.metrics import FILE_NAME, MetricsFile
from litgpt_warmstart.model import MuGPT, fold_readout


@dataclass
class State:
    """What changes while a run goes on."""

    gpt: GPT
    """The bare model: its parameters, as trained."""
    loss: nn.Module
    """:class:`NextTokenLoss` around it, compiled and wrapped by Fabric."""
    optimizer: torch.optim.Optimizer
    lineage: tuple[record.Ancestor, ...]
    growth: record.GrowthRecord | None
    iter_num: int = 0
    """Micro-batches."""
    step_count: int = 0
    """Optimizer updates."""
    train_loader: DataLoader | None = None


def setup(spec: RunSpec) -> Path:
    """Run a specification on one device: everything that can be refused is refused before anything is written.

    Returns:
        The folder of the last checkpoint.

    Raises:
        UserError: The run cannot start, broke off (loss not finite), or its data ended.
        SystemExit: It was stopped by SIGINT or SIGTERM, after saving; the status is 128 plus the signal's number.
    """
    resume_dir = find_resume_dir(spec)
    logger = choose_logger(
        spec.logger_name,
        spec.out_dir,
        name=f"{spec.command}-{spec.config.name}",
        resume=resume_dir is not None,
        log_interval=spec.train.log_interval,
        log_args=asdict(spec.log),
    )
    fabric = L.Fabric(devices=1, precision=spec.precision, loggers=[logger])
    fabric.launch()
    return main(fabric, spec, resume_dir)


def find_resume_dir(spec: RunSpec) -> Path | None:
    """The checkpoint folder to go on from, or None to start.

    Raises:
        UserError: ``out_dir`` holds a run and neither --resume nor --overwrite is given, or there is nothing to resume.
    """
    if isinstance(spec.resume, Path):
        folder = spec.resume if spec.resume.is_dir() else spec.resume.parent
        if not (folder / checkpoint.STATE).is_file():
            raise UserError(f"--resume {str(spec.resume)!r} has no {checkpoint.STATE}: give a step-*/ folder of a run")
        return folder
    found = checkpoint.latest_checkpoint(spec.out_dir)
    if spec.resume:
        if found is None and spec.resume is True:
            raise UserError(f"--resume: no checkpoint in {str(spec.out_dir)!r}: start the run without --resume")
        return found
    holds_run = found is not None or (spec.out_dir / FILE_NAME).exists() or (spec.out_dir / "final").exists()
    if holds_run and not spec.overwrite:
        raise UserError(
            f"--out_dir {str(spec.out_dir)!r} already holds a run: pass --resume true to go on, --overwrite true to"
            " replace it, or another --out_dir"
        )
    return None


def main(fabric: L.Fabric, spec: RunSpec, resume_dir: Path | None = None) -> Path:
    """Build model, optimizer and data from the specification, train, and save; see :func:`setup`."""
    fabric.seed_everything(spec.seed, verbose=False)
    source = initial = None
    if spec.growth:
        source = checkpoint.read_checkpoint(spec.growth.source_dir)
        growth.check_growable(source.config, spec.config)
    elif spec.initial_checkpoint_dir:
        initial = checkpoint.read_checkpoint(spec.initial_checkpoint_dir, "--initial_checkpoint_dir")
    plan = plan_data(spec)
    for warning in plan.warnings:
        fabric.print(f"Warning: {warning}")

    resumed = Resumed.read(resume_dir, spec, plan) if resume_dir else None
    if resumed and resumed.record.step_count >= spec.max_steps:
        fabric.print(f"{str(resume_dir)!r} has all {spec.max_steps:,} steps: nothing to do. Raise --train.max_tokens to go on")
        return resume_dir

    with fabric.init_module(empty_init=True):
        gpt = MuGPT(spec.config, parametrization.width_mult(spec.config, spec.mup_base_config))
    gpt.max_seq_length = spec.block_size
    parametrization.set_base_shapes(gpt, spec.mup_base_config)
    growth_record = None
    if resumed:
        parametrization.load_weights(gpt, resumed.weights.items())
        growth_record, lineage = resumed.record.growth, resumed.record.lineage
    elif initial:
        parametrization.load_weights(gpt, initial.weights.items())
        growth_record, lineage = (initial.record.growth if initial.record else None), initial.ancestors()
    else:
        weights = parametrization.initial_weights(gpt, spec.mup_base_config, spec.seed, spec.growth.perturb if source else 1.0)
        lineage = source.ancestors() if source else ()
        if source:
            growth_record = record_growth(spec.growth, source.config, spec.config, spec.seed)
            weights = growth.grow(
                source.weights, weights, source.config, spec.config, spec.growth.shrink, spec.growth.alignment
            )
        parametrization.load_weights(gpt, weights)
    del source, initial

    loss: nn.Module = NextTokenLoss(gpt)
    if spec.compile:
        if reason := why_not_compile(fabric.device):
            fabric.print(f"Training without torch.compile: {reason}")
        else:
            loss = torch.compile(loss)
    loss = fabric.setup(loss)
    optimizer = parametrization.build_optimizer(
        gpt, spec.optimizer, spec.base_lr, fused=spec.precision != "16-mixed"  # a fused step unscales by itself, too late for clipping
    )
    optimizer = fabric.setup_optimizers(optimizer)
    state = State(gpt, loss, optimizer, lineage, growth_record)
    if resumed:
        resumed.restore(fabric, state)
    state.train_loader = plan.train_loader(state.step_count, state.iter_num, resumed.loader_state if resumed else None)
    describe(fabric, spec, state, plan)

    if spec.overwrite and not resume_dir:
        remove_run(spec.out_dir)
    try:
        spec.out_dir.mkdir(parents=True, exist_ok=True)
        metrics = MetricsFile(spec.out_dir, state.step_count if resumed else None)
    except OSError as error:
        raise UserError(f"cannot write --out_dir {str(spec.out_dir)!r}: {error.strerror}: choose another") from error
    if spec.logger_name in ("tensorboard", "wandb", "mlflow"):
        fabric.logger.log_hyperparams(spec.hyperparameters)
    try:
        with StopRequest() as stop:
            fit(fabric, spec, state, plan, metrics, stop)
    finally:
        metrics.close()

    if stop and state.step_count < spec.max_steps:
        folder = save(spec, state, plan, fabric, spec.out_dir / f"step-{state.step_count:08d}")
        fabric.print(f"Saved {str(folder)!r} at step {state.step_count:,} of {spec.max_steps:,}. Go on with:\n  {resume_command()}")
        raise SystemExit(stop.exit_status)
    folder = save(spec, state, plan, fabric, spec.out_dir / "final")
    fabric.print(f"Saved {str(folder)!r} after {state.step_count * spec.tokens_per_step:,} tokens")
    return folder


def fit(
    fabric: L.Fabric, spec: RunSpec, state: State, plan: DataPlan, metrics: MetricsFile, stop: StopRequest
) -> None:
    """Train until the budget, ``max_time`` or a stop request, validating and saving at their intervals."""
    module, optimizer = state.loss, state.optimizer
    accumulation = spec.accumulation_iters
    batches = next_batches(state.train_loader, fabric.device)
    flops_per_token = matmul_flops_per_token(spec.config, spec.block_size)
    started, seconds_before, step_before = time.perf_counter(), metrics.seconds, state.step_count
    validating_seconds = 0.0

    def seconds() -> float:
        return seconds_before + time.perf_counter() - started - validating_seconds

    def log(**values: float) -> None:
        tokens = state.step_count * spec.tokens_per_step
        row = {"tokens": tokens, "seconds": seconds(), "matmul_flops": tokens * flops_per_token, **values}
        metrics.write(step=state.step_count, **row)
        fabric.log_dict(row, step=state.step_count)

    def validate_now(bar: tqdm) -> None:
        nonlocal validating_seconds
        t0 = time.perf_counter()
        val_loss = validate(fabric, module, val_batches(plan, spec.eval.max_iters, fabric.device))
        validating_seconds += time.perf_counter() - t0
        log(val_loss=val_loss)
        bar.write(f"step {state.step_count:>7,} | {state.step_count * spec.tokens_per_step:>13,} tokens | val loss {val_loss:.4f}")

    bar = tqdm(
        total=spec.max_steps * spec.tokens_per_step,
        initial=state.step_count * spec.tokens_per_step,
        unit="tok",
        unit_scale=True,
        desc=spec.config.name,
        dynamic_ncols=True,
        disable=not sys.stderr.isatty(),
    )
    running_loss = torch.zeros((), device=fabric.device)
    steps_since_log, logged_at = 0, seconds()
    with bar:
        if state.step_count == 0 and spec.eval.initial_validation:
            validate_now(bar)
        while state.step_count < spec.max_steps and not stop:
            if spec.train.max_time and time.perf_counter() - started >= spec.train.max_time:
                bar.write(f"Stopping after --train.max_time {spec.train.max_time:g} s")
                break
            lr_multiplier = spec.schedule(state.step_count)
            parametrization.set_learning_rate(optimizer, spec.base_lr, lr_multiplier)
            for micro in range(accumulation):
                batch = next(batches, None)
                if batch is None:
                    data_ended(fabric, spec, state, plan)
                input_ids, targets = batch
                with fabric.no_backward_sync(module, enabled=micro + 1 < accumulation):
                    loss = module(input_ids, targets)
                    fabric.backward(loss / accumulation)
                running_loss += loss.detach() / accumulation
            if spec.train.max_norm is not None:
                # No error for a norm that is not finite: 16-mixed skips such a step, and asking would stall the device.
                fabric.clip_gradients(state.gpt, optimizer, max_norm=spec.train.max_norm, error_if_nonfinite=False)
            optimizer.step()
            optimizer.zero_grad()
            state.iter_num += accumulation
            state.step_count += 1
            steps_since_log += 1
            bar.update(spec.tokens_per_step)

            if state.step_count % spec.train.log_interval == 0 or state.step_count == spec.max_steps:
                loss_value = running_loss.item() / steps_since_log  # waits for the device
                check_finite(loss_value, spec, state)
                now = seconds()
                tokens_per_sec = steps_since_log * spec.tokens_per_step / (now - logged_at)
                log(loss=loss_value, learning_rate=spec.base_lr * lr_multiplier, tokens_per_sec=tokens_per_sec)
                bar.set_postfix_str(f"loss {loss_value:.3f}")
                if bar.disable and state.step_count % max(spec.train.log_interval, spec.max_steps // 20) == 0:
                    left = (spec.max_steps - state.step_count) * (time.perf_counter() - started) / (state.step_count - step_before)
                    fabric.print(
                        f"step {state.step_count:>7,} of {spec.max_steps:,} | loss {loss_value:.4f} |"
                        f" {tokens_per_sec:,.0f} tokens/s | {left:,.0f} s left"
                    )
                running_loss.zero_()
                steps_since_log, logged_at = 0, now
            last = state.step_count == spec.max_steps
            if spec.eval.final_validation if last else state.step_count % spec.eval.interval == 0:
                validate_now(bar)
                logged_at = seconds()
            if spec.train.save_interval and not last and state.step_count % spec.train.save_interval == 0:
                save(spec, state, plan, fabric, spec.out_dir / f"step-{state.step_count:08d}")
                logged_at = seconds()


@torch.no_grad()
def validate(fabric: L.Fabric, module: nn.Module, batches: Iterator[tuple[torch.Tensor, torch.Tensor, int]]) -> float:
    """Mean loss over validation blocks.

    Args:
        fabric: Not used for communication yet; one device.
        module: The wrapped :class:`NextTokenLoss`.
        batches: Inputs and targets, shape (B, T) each, and how many of the B blocks count.
    """
    module.eval()
    total, blocks = torch.zeros((), device=fabric.device, dtype=torch.float64), 0
    for input_ids, targets, counted in batches:
        total += module(input_ids, targets).double() * counted
        blocks += counted
    module.train()
    return total.item() / blocks


def check_finite(loss: float, spec: RunSpec, state: State) -> None:
    """Raise a UserError if training has diverged; the last checkpoint is left as it is."""
    if not math.isfinite(loss):
        last = checkpoint.latest_checkpoint(spec.out_dir)
        kept = f"the last good checkpoint is {str(last)!r}" if last else "no checkpoint was saved"
        raise UserError(
            f"the loss is {loss} at step {state.step_count}: lower --lr (now {spec.base_lr:g}) or --shrink; {kept}"
        )


def data_ended(fabric: L.Fabric, spec: RunSpec, state: State, plan: DataPlan) -> None:
    """Save and raise: a DataModule without a known length had fewer tokens than the budget."""
    folder = save(spec, state, plan, fabric, spec.out_dir / f"step-{state.step_count:08d}")
    tokens = state.step_count * spec.tokens_per_step
    raise UserError(
        f"the data ended after {tokens:,} of {spec.max_steps * spec.tokens_per_step:,} tokens; saved {str(folder)!r}:"
        f" resume it with --train.max_tokens {tokens} to finish there"
    )


def save(spec: RunSpec, state: State, plan: DataPlan, fabric: L.Fabric, folder: Path) -> Path:
    """Write a checkpoint folder with everything needed to go on."""
    tokens = state.step_count * spec.tokens_per_step
    written = record.Record(
        command=spec.command,
        name=spec.config.name,
        parameters=num_parameters(state.gpt),
        parametrization=spec.parametrization,
        mup_base_config=asdict(spec.mup_base_config),
        width_mult=parametrization.width_mult(spec.config, spec.mup_base_config),
        base_lr=spec.base_lr,
        global_batch_size=spec.train.global_batch_size,
        tokens=tokens,
        step_count=state.step_count,
        matmul_flops=tokens * matmul_flops_per_token(spec.config, spec.block_size),
        data=plan.use(state.step_count),
        growth=state.growth,
        lineage=state.lineage,
        training=described_training(spec, fabric.device),
        versions=checkpoint.installed_versions(),
    )
    checkpoint.save_checkpoint(
        folder,
        {name: weight.detach() for name, weight in state.gpt.state_dict().items()},
        spec.config,
        written,
        spec.hyperparameters,
        plan.tokenizer_dir,
        fold_readout,
        {
            "optimizer": state.optimizer.state_dict(),
            "iter_num": state.iter_num,
            "step_count": state.step_count,
            "micro_batch_size": spec.train.micro_batch_size,
            "precision": fabric.strategy.precision.state_dict(),
            "rng": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()},
            "train_dataloader": plan.loader_state(state.train_loader),
        },
    )
    return folder


def described_training(spec: RunSpec, device: torch.device) -> dict[str, Any]:
    """What decided the run's course, as plain values; a resumed run must agree (see :class:`Resumed`)."""
    return {
        "schedule": asdict(spec.schedule),
        "optimizer": spec.optimizer,
        "max_norm": spec.train.max_norm,
        "block_size": spec.block_size,
        "micro_batch_size": spec.train.micro_batch_size,
        "max_tokens": spec.max_steps * spec.tokens_per_step,
        "precision": spec.precision,
        "seed": spec.seed,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


@dataclass
class Resumed:
    """A checkpoint to go on from."""

    path: Path
    record: record.Record
    weights: dict[str, torch.Tensor]
    state: dict[str, Any]

    @classmethod
    def read(cls, path: Path, spec: RunSpec, plan: DataPlan) -> "Resumed":
        """Read a checkpoint and check that the run's settings are those it was started with.

        Raises:
            UserError: It is damaged, or a setting differs: named, with both values.
        """
        read = checkpoint.read_checkpoint(path, "--resume")
        if read.record is None:
            raise UserError(f"--resume {str(path)!r} has no {checkpoint.RECORD}: start from it with --initial_checkpoint_dir")
        was = read.record
        growth_now = (spec.growth.shrink, spec.growth.perturb, spec.growth.alignment) if spec.growth else None
        growth_was = (was.growth.shrink, was.growth.perturb, was.growth.asked_alignment) if was.growth else None
        data_was = (was.data.class_path, was.data.fingerprint, was.data.start_token)
        use = plan.use(0)
        pairs = {
            "target": (was.name, spec.config.name),
            "lr": (was.base_lr, spec.base_lr),
            "train.global_batch_size": (was.global_batch_size, spec.train.global_batch_size),
            "optimizer": (was.training["optimizer"], spec.optimizer),
            "seed": (was.training["seed"], spec.seed),
            "schedule": (was.training["schedule"]["name"], spec.schedule.name),
            "train.max_seq_length": (was.training["block_size"], spec.block_size),
            "data": (data_was, (use.class_path, use.fingerprint, use.start_token)),
        }
        if spec.growth:
            pairs["shrink, perturb, alignment"] = (growth_was, growth_now)
        for name, (before, now) in pairs.items():
            if before != now:
                raise UserError(
                    f"--resume: {name} was {before}, now {now}: pass the settings that the run was started with, or"
                    " another --out_dir"
                )
        return cls(path, was, read.weights, checkpoint.load_tensors(path / checkpoint.STATE))

    @property
    def loader_state(self) -> dict[str, Any] | None:
        return self.state["train_dataloader"]

    def restore(self, fabric: L.Fabric, state: State) -> None:
        """Put optimizer, counters and random states back; weights are loaded already."""
        state.optimizer.load_state_dict(self.state["optimizer"])
        state.iter_num, state.step_count = self.state["iter_num"], self.state["step_count"]
        fabric.strategy.precision.load_state_dict(self.state["precision"])
        torch.set_rng_state(self.state["rng"]["cpu"])
        if len(self.state["rng"]["cuda"]) == torch.cuda.device_count() > 0:
            torch.cuda.set_rng_state_all(self.state["rng"]["cuda"])
        fabric.print(f"Resuming {str(self.path)!r} at step {state.step_count:,}")


def describe(fabric: L.Fabric, spec: RunSpec, state: State, plan: DataPlan) -> None:
    """Print what is about to happen, in a few lines."""
    parameters = num_parameters(state.gpt)
    tokens = spec.max_steps * spec.tokens_per_step
    scales = sorted({round(group["lr_scale"], 6) for group in state.optimizer.param_groups if group["params"]})
    lines = [f"{spec.config.name}: {parameters:,} parameters, n_embd {spec.config.n_embd}, {spec.config.n_head} heads of"
             f" {spec.config.head_size}, vocabulary {spec.config.padded_vocab_size:,}; {fabric.device}, {spec.precision}"]  # fmt: skip
    if state.growth:
        shrunk = state.growth
        lines.append(f"Grown from {shrunk.source_dir!r}: shrink {shrunk.shrink:g}, alignment {shrunk.alignment}"
                     + (f" instead of {shrunk.asked_alignment}: {shrunk.alignment_reason}" if shrunk.alignment_reason else ""))  # fmt: skip
    lines.append(f"{'muP base ' + spec.mup_base_config.name if spec.parametrization == 'mup' else 'standard parametrization'},"
                 f" lr {spec.base_lr:g} x {', '.join(f'{s:g}' for s in scales)} by group, schedule {spec.schedule.name}")  # fmt: skip
    lines.append(f"{tokens:,} tokens ({tokens / parameters:.2f} per parameter) in {spec.max_steps:,} steps of"
                 f" {spec.train.global_batch_size} x {spec.block_size:,}; {plan.describe()}")  # fmt: skip
    fabric.print("\n".join(lines))


def why_not_compile(device: torch.device) -> str | None:
    """Why torch.compile cannot work here, with the remedy; None if it can."""
    if device.type == "cpu":
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            return f"no C++ compiler {compiler!r}; install one for more speed"
        if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
            return "Python's headers are missing; install them (python3-dev) for more speed"
    elif device.type == "cuda":
        if not any(map(shutil.which, (os.environ.get("CC", "gcc"), "clang", "cc"))):
            return "no C compiler, which Triton needs; install gcc for more speed"
    return None


def resume_command() -> str:
    """The command line of this process with ``--resume true``."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    if words[0] == "__main__.py":
        words[0:1] = ["python", "-m", "litgpt_warmstart"]
    without = [w for i, w in enumerate(words) if not w.startswith(("--resume", "--overwrite"))
               and not (words[i - 1] in ("--resume", "--overwrite"))]  # fmt: skip
    return shlex.join([*without, "--resume", "true"])


def remove_run(out_dir: Path) -> None:
    """Delete what an earlier run left in ``out_dir``, and nothing else."""
    for folder in (*out_dir.glob("step-*"), out_dir / "final", out_dir / "logs"):
        shutil.rmtree(folder, ignore_errors=True)
    (out_dir / FILE_NAME).unlink(missing_ok=True)
