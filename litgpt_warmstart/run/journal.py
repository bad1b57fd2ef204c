"""What a run tells while it trains, and the time that it takes."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm

from litgpt_warmstart.errors import Diverged
from litgpt_warmstart.run.breaking_off import blaming, tell
from litgpt_warmstart.run.resume import OpenRun, remedy


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

    def log(self, **values: float) -> None:
        """Write a row of this step, in the first process.

        Raises:
            Diverged: The loss is not finite; the last checkpoint is left as it is.
        """
        spec, step, tokens = self.run.spec, self.run.state.step_count, self.run.tokens
        for value in values.values():
            if not math.isfinite(value):
                raise Diverged(f"training diverged: the loss is {value} at step {step}. {remedy(spec)}")
        row = {"tokens": tokens, "seconds": self.seconds, **spec.flops(tokens), **values}
        self.run.rows.write(step=step, **row)
        if not self.run.team.is_first:
            return
        with blaming(f"the logger {spec.args.logger_name}"):
            self.run.fabric.log_dict(row, step=step)

    def mean_loss(self) -> float | None:
        """Of all devices and the steps since the last row, where one is due."""
        step = self.run.state.step_count
        if step % self.log_interval and step != self.run.spec.max_steps:
            return None
        summed: Any = self.run.fabric.all_reduce(self.running_loss, reduce_op="mean")
        return summed.item() / (step - self.logged_step)  # waits for the device

    def add_step(self, loss: float | None, learning_rate: float) -> None:
        """Count an optimizer step, and tell of it and those before it where :meth:`mean_loss` is given."""
        spec, step = self.run.spec, self.run.state.step_count
        self.steady_from = self.steady_from or (step, time.perf_counter())
        self.bar.update(spec.tokens_per_step)
        if loss is None:
            return
        now = self.seconds
        tokens_per_sec = (step - self.logged_step) * spec.tokens_per_step / (now - self.logged_at)
        self.log(loss=loss, learning_rate=learning_rate, tokens_per_sec=tokens_per_sec)
        self.bar.set_postfix_str(f"loss {loss:.3f}")
        if self.run.team.is_first and self.bar.disable and step % self.tell_interval == 0:
            left, (first_step, first_time) = "", self.steady_from
            if step > first_step:
                rate = (time.perf_counter() - first_time) / (step - first_step)
                left = f" | {(spec.max_steps - step) * rate:,.0f} s left"
            tell(f"step {step:>7,} of {spec.max_steps:,} | loss {loss:.4f} | {tokens_per_sec:,.0f} tokens/s{left}")
        self.running_loss.zero_()
        self.logged_step, self.logged_at = step, now

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
