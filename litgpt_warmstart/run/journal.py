"""What a run tells while it trains, and the time that it takes."""

import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm

from litgpt_warmstart.errors import Diverged
from litgpt_warmstart.run.breaking_off import blaming, tell
from litgpt_warmstart.run.devices import peak_flops
from litgpt_warmstart.run.metrics import LOGGED_AS
from litgpt_warmstart.run.resume import OpenRun, remedy
from litgpt_warmstart.run.sharding import gathered

MOST_NATS = 700.0
"""A float holds the exponential of this."""


class Journal:
    """What a run tells while it trains: rows of metrics.csv and the logger's, a bar or else lines; and its time."""

    def __init__(self, run: OpenRun) -> None:
        spec, step = run.spec, run.state.step_count
        self.run = run
        self.started, self.validating_seconds = time.perf_counter(), 0.0
        self.running_loss = torch.zeros((), device=run.fabric.device)
        """Of the steps since the last row."""
        self.logged_step, self.logged_at = step, self.seconds
        self.steady_from: tuple[int, float] | None = None
        """Step and time after the first one: what it takes, compiling, is no measure of the others."""
        self.log_interval = spec.args.train.log_interval
        self.tell_interval = self.log_interval * max(1, spec.max_steps // (20 * self.log_interval))
        device = run.fabric.device
        peak = peak_flops(device, spec.precision) if run.team.is_first else None
        self.peak = peak and peak * spec.num_devices
        """FLOPs per second that all devices could do; None where nothing tells."""
        self.of_peak = "MFU" if device.type == "cuda" else "of the measured peak"
        self.bar = tqdm(
            total=spec.max_tokens,
            initial=run.tokens,
            unit="tok",
            unit_scale=True,
            desc=spec.config.name,
            dynamic_ncols=True,
            disable=not (run.team.is_first and sys.stderr.isatty()),
        )

    @property
    def seconds(self) -> float:
        """Training time so far, saving included, validation left out."""
        return self.run.rows.seconds + time.perf_counter() - self.started - self.validating_seconds

    def log(self, more: Mapping[str, float | None] | None = None, **values: float | None) -> None:
        """Write a row of this step, in the first process.

        Args:
            more: What only the logger gets: no clock's word is in two runs' rows alike.
            values: By column; None for what is not known.

        Raises:
            Diverged: The loss is not finite; the last checkpoint is left as it is.
        """
        spec, step, tokens = self.run.spec, self.run.state.step_count, self.run.tokens
        for loss in (values.get("loss"), values.get("val_loss")):
            if loss is not None and not math.isfinite(loss):
                raise Diverged(f"training diverged: the loss is {loss} at step {step}. {remedy(spec)}")
        row = {"tokens": tokens, "seconds": self.seconds, **spec.flops(tokens)}
        row |= {name: value for name, value in values.items() if value is not None}
        self.run.rows.write(step=step, **row)
        if not self.run.team.is_first:
            return
        row |= {name: value for name, value in (more or {}).items() if value is not None}
        row |= {LOGGED_AS[name]: value for name, value in row.items() if name in LOGGED_AS}
        with blaming(f"the logger {spec.args.logger_name}"):
            self.run.fabric.log_dict(row, step=step)

    def measured(self) -> tuple[float, float | None] | None:
        """Mean loss of all devices and the steps since the last row, and the last gradient's norm; where one is due."""
        step = self.run.state.step_count
        if step % self.log_interval and step != self.run.spec.max_steps:
            return None
        summed: Any = self.run.fabric.all_reduce(self.running_loss, reduce_op="mean")
        norm = gathered(self.run.state.grad_norm)
        loss = summed.item() / (step - self.logged_step)  # waits for the device
        return loss, None if norm is None else norm.item()

    def add_step(self, measured: tuple[float, float | None] | None, learning_rate: float) -> None:
        """Count an optimizer step, and tell of it and those before it where what :meth:`measured` says is given."""
        spec, step = self.run.spec, self.run.state.step_count
        self.steady_from = self.steady_from or (step, time.perf_counter())
        self.bar.update(spec.tokens_per_step)
        if measured is None:
            return
        loss, grad_norm = measured
        now = self.seconds
        tokens_per_sec = (step - self.logged_step) * spec.tokens_per_step / (now - self.logged_at)
        mfu = tokens_per_sec * spec.flops(1)["matmul_flops"] / self.peak if self.peak else None
        left, (first_step, first_time) = None, self.steady_from
        if step > first_step:
            left = (spec.max_steps - step) * (time.perf_counter() - first_time) / (step - first_step)
        known = dict(loss=loss, grad_norm=grad_norm, learning_rate=learning_rate, tokens_per_sec=tokens_per_sec)
        self.log({"mfu": mfu, "seconds_left": left}, **known)
        norm = "" if grad_norm is None else f" | grad norm {grad_norm:.3g}"
        share = "" if mfu is None else f" | {mfu:.1%} {self.of_peak}"
        self.bar.set_postfix_str(f"loss {loss:.3f}{norm}{share}")
        if self.run.team.is_first and self.bar.disable and step % self.tell_interval == 0:
            ending = "" if left is None else f" | {left:,.0f} s left"
            told = f"step {step:>7,} of {spec.max_steps:,} | loss {loss:.4f}{norm} | {tokens_per_sec:,.0f} tokens/s"
            tell(told + share + ending)
        self.running_loss.zero_()
        self.logged_step, self.logged_at = step, now

    def add_validation(self, val_loss: float, bits_per_byte: float | None, written: str | None) -> None:
        """Tell of a validation, and of what the model has written after the prompt."""
        spec, step = self.run.spec, self.run.state.step_count
        perplexity = math.exp(val_loss) if val_loss < MOST_NATS else math.inf
        self.log({"val_ppl": perplexity}, val_loss=val_loss, val_perplexity=perplexity, val_bits_per_byte=bits_per_byte)
        if self.run.team.is_first:
            known = "-" if bits_per_byte is None else f"{bits_per_byte:.4f}"
            reached = f"step {step:>7,} of {spec.max_steps:,} | {self.run.tokens:,} tokens | val loss {val_loss:.4f}"
            tell(f"{reached} | perplexity {perplexity:,.2f} | {known} bits per byte")
            if written is not None:
                tell(f"sample: {written!r}")

    @contextmanager
    def validating(self) -> Iterator[None]:
        """Time that is not training's."""
        self.running_loss.item()  # waits for the device: what it has queued is training's time
        begun = time.perf_counter()
        yield
        self.validating_seconds += time.perf_counter() - begun

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Time that is training's, and not in its tokens/s."""
        self.running_loss.item()
        begun = self.seconds
        yield
        self.logged_at += self.seconds - begun
