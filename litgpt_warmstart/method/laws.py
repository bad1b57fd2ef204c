"""The law of losses over size and tokens, L(N, D) = E + A / N^alpha + B / D^beta, and its fit to runs from scratch.

Hoffmann et al. (arXiv 2203.15556, section 3.3, approach 3). What N counts is up to who fits: :data:`HOFFMANN` has all
parameters; Porian et al. (arXiv 2406.19146) count the head, and no embedding, as
:func:`litgpt_warmstart.method.flops.matmul_parameters` does.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import huber_loss

DELTA = 1e-3
"""Of the Huber loss on log losses: what is farther from the law than 0.1% counts by its distance, not its square."""
STARTS = (range(0, 30, 5), (0, 0.5, 1, 1.5, 2), range(0, 30, 5), (0, 0.5, 1, 1.5, 2), (-1, -0.5, 0, 0.5, 1))
"""The paper's grid, of log A, alpha, log B, beta, log E."""
TRIED = 4
"""How many of the grid's starts, those with the lowest objective, are followed to their end."""

LEAST_START_E = math.exp(-1)
"""Of a start that is given: near 0 the law hardly changes with log E, and the descent stays."""
LEAST_E = 1e-3
"""In nats per token: what is less is told as 0."""
NO_FLOOR = -100.0
"""log E of a law without one, to which a descent from elsewhere comes down ever more slowly."""


@dataclass(frozen=True)
class Law:
    """Loss in nats per token after D tokens of training from scratch with N parameters."""

    E: float
    """Of the text itself: no model is below it. 0 where the losses show no such floor yet."""
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """L(N, D)."""
        return self.floor(parameters) + self.B * tokens**-self.beta

    def floor(self, parameters: float) -> float:
        """What a model of this size comes down to, but never reaches, with ever more tokens."""
        return self.E + self.A * parameters**-self.alpha

    def tokens(self, parameters: float, loss: float) -> float:
        """D after which a model of this size is at a loss; infinite at its :meth:`floor` and below, NaN for NaN."""
        above = (loss - self.floor(parameters)) / self.B
        power = math.inf if above <= 0 else -math.log(above) / self.beta
        return math.inf if power >= 700 else math.exp(power)


HOFFMANN = Law(E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28)
"""Their own fit, to MassiveText: good for comparing, not for another text's losses."""


def fit(parameters: Sequence[float], tokens: Sequence[float], losses: Sequence[float], start: Law | None = None) -> Law:
    """The law with the least sum of Huber losses, over runs, of log L(N, D) less the log of the loss.

    L-BFGS in double precision from the best of a grid of starts, or from ``start`` alone. log N and log D are taken
    from their means, without which log A and alpha hardly differ in what they do, and the sum is over DELTA^2: a mean
    of Huber losses as small as these ends L-BFGS before its time (arXiv 2404.10102).

    Args:
        parameters: N of each run.
        tokens: D of each.
        losses: In nats per token.
        start: A law that is near.
    """
    log_n, log_d, log_loss = (torch.tensor(list(v), dtype=torch.float64).log() for v in (parameters, tokens, losses))
    mean_n, mean_d = log_n.mean(), log_d.mean()
    design = torch.zeros(3, 5, len(log_n), dtype=torch.float64)  # (terms of L, constants, runs)
    design[0, 0] = design[1, 2] = design[2, 4] = 1.0
    design[0, 1], design[1, 3] = mean_n - log_n, mean_d - log_d

    def objective(constants: torch.Tensor) -> torch.Tensor:  # (5,)
        fitted = torch.einsum("tcr,c->tr", design, constants).logsumexp(0)
        return huber_loss(fitted, log_loss, reduction="sum", delta=DELTA) / DELTA**2

    if start is None:
        starts = torch.cartesian_prod(*(torch.tensor(list(axis), dtype=torch.float64) for axis in STARTS))
    else:
        log_a, log_b = (math.log(max(constant, 1e-30)) for constant in (start.A, start.B))
        log_e = math.log(max(start.E, LEAST_START_E))
        starts = torch.tensor([[log_a, start.alpha, log_b, start.beta, log_e]], dtype=torch.float64)
    starts[:, 0] -= starts[:, 1] * mean_n
    starts[:, 2] -= starts[:, 3] * mean_d
    with torch.no_grad():
        nearest = torch.vmap(objective, chunk_size=256)(starts).argsort()[:TRIED]
    found = min((_descended(objective, starts[number]) for number in nearest), key=objective)
    floorless = _descended(objective, torch.cat([found[:4], torch.tensor([NO_FLOOR])]))
    log_a, alpha, log_b, beta, log_e = min(found, floorless, key=objective)
    e = log_e.exp() if log_e > math.log(LEAST_E) else 0.0
    constants = e, (log_a + alpha * mean_n).exp(), alpha, (log_b + beta * mean_d).exp(), beta
    return Law(*(float(value) for value in constants))


def _descended(objective: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor) -> torch.Tensor:
    """Where L-BFGS ends."""
    constants = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [constants], max_iter=300, history_size=20, tolerance_grad=1e-7, tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = objective(constants)
        value.backward()
        return value

    optimizer.step(closure)
    return constants.detach()
