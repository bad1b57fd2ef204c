"""Step -> learning-rate multiplier, as pure functions.

The multiplier is applied to every parameter group's own ``base_lr * lr_scale``, so muP's ratios between groups hold
under each schedule (arXiv 2203.03466).
"""

import math
from dataclasses import dataclass
from typing import Literal

ScheduleName = Literal["constant", "warmup", "cosine"]


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule over a run; call it with the number of finished optimizer steps."""

    name: ScheduleName
    total_steps: int
    """Optimizer steps of the whole run."""
    warmup_steps: int = 0
    """Optimizer steps of linear warmup; step 0 has multiplier 0, as in LitGPT."""
    min_lr_ratio: float = 0.0
    """Where ``cosine`` ends, as a ratio to ``base_lr``."""

    @property
    def course(self) -> str:
        """What decides the multiplier of a step: a resumed run must have the same."""
        parts = [f"{self.name}"]
        if self.name != "constant":
            parts.append(f"{self.warmup_steps} warmup steps")
        if self.name == "cosine":
            parts.append(f"to {self.min_lr_ratio:g} in {self.total_steps} steps")
        return ", ".join(parts)

    def __call__(self, step: int) -> float:
        """The multiplier of the update that comes after ``step`` finished ones."""
        if self.name != "constant" and step < self.warmup_steps:
            return step / self.warmup_steps
        if self.name == "cosine":
            progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
            cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
            return self.min_lr_ratio + (1.0 - self.min_lr_ratio) * cosine
        return 1.0
