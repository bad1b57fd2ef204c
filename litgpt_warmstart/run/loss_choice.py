"""Which of the losses to take: the one that was measured as fastest on the nearest device, precision and shape.

``loss_figures.json`` holds the measurements; ``python benchmarks/loss.py --write`` adds those of a machine.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from litgpt.config import Config

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.loss import why_not
from litgpt_warmstart.run.spec import LossChoice, LossImpl

FIGURES = Path(__file__).with_name("loss_figures.json")
TOLERANCE = 0.05
"""Among ways that are this close to the fastest the one that holds the fewest logits is taken."""
FEWEST_LOGITS: tuple[LossImpl, ...] = ("chunked", "torch", "full")


@dataclass(frozen=True)
class Figure:
    """One measurement: tokens/s of forward and backward with each loss."""

    device: str
    """cpu or cuda."""
    name: str
    """What decides its speed: a CPU's vector instructions, a GPU's name (see :func:`device_name`)."""
    precision: str
    compile: bool
    n_embd: int
    padded_vocab_size: int
    torch: str
    tokens_per_sec: dict[str, float]
    date: str


def read_figures() -> list[Figure]:
    """All that was measured."""
    return [Figure(**row) for row in json.loads(FIGURES.read_text(encoding="utf-8"))]


def device_name(device: torch.device) -> str:
    """What decides a device's speed."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return torch.backends.cpu.get_cpu_capability()


def choose(
    asked: LossChoice,
    config: Config,
    precision: str,
    compile: bool,
    device: torch.device,
    before: LossImpl | None = None,
) -> tuple[LossImpl, str]:
    """The loss to train with.

    Args:
        asked: ``--loss_impl``.
        config: The model.
        precision: Fabric's, such as ``bf16-mixed``.
        compile: Whether the model is compiled.
        device: Where it is.
        before: What the run that is resumed took; ``auto`` stays with it.

    Returns:
        The loss and why it was taken, in a few words.

    Raises:
        UserError: The one asked for cannot be taken here.
    """
    if asked != "auto":
        if reason := why_not(asked, config, precision):
            raise UserError(f"--loss_impl {asked}: {reason}; leave it out to have one chosen")
        return asked, "as asked"
    if before is not None and why_not(before, config, precision) is None:
        return before, "as before"
    possible = [impl for impl in get_args(LossImpl) if why_not(impl, config, precision) is None]
    if len(possible) == 1:
        return possible[0], "the only one possible"
    figures = [f for f in read_figures() if f.device == device.type and f.tokens_per_sec.keys() & set(possible)]
    if not figures:
        return ("chunked" if "chunked" in possible else "full"), f"nothing was measured on {device.type}"

    def distance(figure: Figure) -> tuple[float, ...]:
        """What matters more comes first."""
        return (
            _bits(figure.precision) != _bits(precision),
            figure.compile != compile,
            figure.name != device_name(device),
            abs(math.log(figure.n_embd / config.n_embd))
            + abs(math.log(figure.padded_vocab_size / config.padded_vocab_size)),
            abs(_minor(figure.torch) - _minor(torch.__version__)),
        )

    nearest = min(figures, key=distance)
    speeds = {impl: speed for impl, speed in nearest.tokens_per_sec.items() if impl in possible}
    where = f"n_embd {nearest.n_embd}, {nearest.padded_vocab_size:,} classes, {nearest.precision}, {nearest.name}"
    where += ", compiled" if nearest.compile else ", eager"
    fast = [impl for impl in FEWEST_LOGITS if speeds.get(impl, 0) >= (1 - TOLERANCE) * max(speeds.values())]
    return fast[0], f"nearest measurement: {where}"


def _bits(precision: str) -> str:
    return precision.partition("-")[0]


def _minor(version: str) -> int:
    """2.13.0+cpu -> 213."""
    major, minor = version.split(".")[:2]
    return 100 * int(major) + int(minor)
