"""Where along the budget a warmstart is ahead: its validation loss less scratch's, at equal tokens and compute."""

from collections.abc import Sequence
from dataclasses import dataclass

from litgpt_warmstart.report.curves import Curve, Estimate, estimate
from litgpt_warmstart.report.groups import Arm, Pair


@dataclass(frozen=True)
class Gain:
    """A difference in validation loss at one place; below 0 the warmstart is ahead."""

    at: float
    """Tokens, or FLOPs."""
    values: tuple[float, ...]
    """A seed each."""

    @property
    def difference(self) -> Estimate:
        return estimate(self.values)

    @property
    def ahead(self) -> bool:
        """Whether the 95% interval lies below 0; of one seed, which has none, the difference itself."""
        found = self.difference
        return (found.interval[1] if found.interval else found.mean) < 0


def at_equal_tokens(arm: Arm) -> list[Gain]:
    """Differences at equal tokens, at the validations after the first step that all runs of an arm share."""
    curves = [(dict(p.warmstart.val_losses), dict(p.scratch.val_losses)) for p in arm.pairs]
    shared = set.intersection(*(set(curve) for pair in curves for curve in pair)) - {0}
    return [Gain(tokens, tuple(warm[tokens] - cold[tokens] for warm, cold in curves)) for tokens in sorted(shared)]


def at_equal_compute(arm: Arm) -> list[Gain]:
    """Differences after as much compute, that of all training before the warmstart in front of its own.

    At the scratch run's validations. The warmstart's loss is linear between its own, from the first one after training
    began: losses fall ever more slowly, so that this puts it too high rather than too low.

    Returns:
        Nothing where a lineage does not tell what it took, or took too much for the scratch run's budget.
    """
    if any(pair.warmstart.base_flops is None for pair in arm.pairs):
        return []
    by_pair = [dict(_compute_differences(pair)) for pair in arm.pairs]
    shared = set.intersection(*map(set, by_pair))
    return [Gain(flops, tuple(found[flops] for found in by_pair)) for flops in sorted(shared)]


def _compute_differences(pair: Pair) -> list[tuple[float, float]]:
    warm, cold = pair.warmstart, pair.scratch
    before = warm.base_flops
    curve = [(before + tokens * warm.flops_per_token, loss) for tokens, loss in warm.val_losses if tokens]
    places = [(tokens * cold.flops_per_token, loss) for tokens, loss in cold.val_losses]
    return [(flops, own - loss) for flops, loss in places if (own := loss_at(curve, flops)) is not None]


def loss_at(curve: Curve, place: float) -> float | None:
    """A curve's loss at a place, linear between its points; None beyond its ends."""
    for (a, loss_a), (b, loss_b) in zip(curve, curve[1:], strict=False):
        if a <= place <= b:
            return loss_a + (loss_b - loss_a) * (place - a) / (b - a)
    return None


def spans(gains: Sequence[Gain]) -> list[tuple[Gain, Gain]]:
    """First and last of each unbroken row of places at which the warmstart is ahead."""
    found: list[list[Gain]] = []
    before = False
    for gain in gains:
        if gain.ahead:
            if not before:
                found.append([gain, gain])
            found[-1][1] = gain
        before = gain.ahead
    return [(first, last) for first, last in found]
