"""Which runs are compared with which: a warmstart with the run from scratch that differs in nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.scales import short_name
from litgpt_warmstart.report.curves import Estimate, estimate, speed_up, tokens_to_last_loss, tokens_to_reach
from litgpt_warmstart.report.old_runs import Run
from litgpt_warmstart.run.optimizer import recorded_optimizer
from litgpt_warmstart.run.record import Ancestor
from litgpt_warmstart.run.spec import DECAY_OPTIONS

MIN_VALIDATIONS = 4
"""Fewer points make an interpolated token count a guess."""


def settings(run: Run) -> dict[str, Any]:
    """What two runs must share to be compared, by name, the tellingest first; the seed is not among them."""
    record, training, config = run.record, run.record.training, run.config
    data = record.data
    schedule = {k: v for k, v in training["schedule"].items() if k != "total_steps"}
    return {
        "vocabulary": config.padded_vocab_size,
        "model": (record.name, record.parameters, config.n_layer, config.n_embd, config.n_head),
        "data": data and (data.fingerprint or f"{data.class_path} {data.init_args}"),
        "first token": data and data.start_token,
        "validation blocks": run.hyperparameters["eval"]["max_iters"],
        "block size": training["block_size"],
        "muP base": (record.mup_base_config["name"], record.mup_base_config["n_embd"]),
        "learning rate": record.base_lr,
        "batch size": record.global_batch_size,
        "schedule": schedule,
        "optimizer": str(recorded_optimizer(training["optimizer"])),
        "gradient clipping": training["max_norm"],
        "precision": training["precision"],
    }


def budget(run: Run) -> int:
    """Tokens that a run was to train on."""
    return run.record.training["max_tokens"]


SCHEDULE_OPTIONS = ("lr_warmup_steps", "lr_warmup_fraction", *DECAY_OPTIONS)


def asked_schedule(run: Run) -> dict[str, Any] | None:
    """A schedule as its run's options have it, which may be parts of a budget; None where they are not known."""
    given = run.hyperparameters
    if "schedule" not in given or not isinstance(given.get("train"), dict):
        return None
    return {"name": given["schedule"], **{name: given["train"].get(name) for name in SCHEDULE_OPTIONS}}


def differences(a: Run, b: Run) -> list[tuple[str, Any, Any]]:
    """Settings in which two runs differ but should not: name and both values.

    Where their budgets differ, schedules are compared as they were asked for: a fifth of the steps is another number of
    them.
    """
    second = settings(b)
    found = [(name, value, second[name]) for name, value in settings(a).items() if value != second[name]]
    asked = asked_schedule(a)
    if budget(a) != budget(b) and asked is not None and asked == asked_schedule(b):
        found = [difference for difference in found if difference[0] != "schedule"]
    return found


def check_comparable(scratch: Run, warmstart: Run) -> None:
    """Raise a UserError that names the first thing in which the runs differ but should not; budgets and seeds may."""
    for run, right, wanted in ((scratch, scratch.from_scratch, "run from scratch (muP)"),
                               (warmstart, warmstart.warmstarted, "warmstart")):  # fmt: skip
        if not right:
            raise UserError(f"{str(run.out_dir)!r} is no {wanted}: give the run from scratch first, then the warmstart")
    for what, first, second in differences(scratch, warmstart):
        raise UserError(f"the runs cannot be compared, their {what} differs: {first} and {second}")


@dataclass(frozen=True)
class Pair:
    """A warmstart beside the run from scratch with its seed."""

    scratch: Run
    warmstart: Run

    @property
    def seed(self) -> int:
        return self.scratch.seed

    @property
    def loss(self) -> float:
        """The scratch run's last validation loss."""
        return self.scratch.val_losses[-1][1]

    @property
    def tokens(self) -> float | None:
        """Of the warmstart, to that loss; None if it did not reach it."""
        return tokens_to_reach(self.warmstart.val_losses, self.loss)

    @property
    def flops(self) -> float | None:
        """The warmstart's own, to that loss; None if it did not reach it."""
        return None if self.tokens is None else self.tokens * self.warmstart.flops_per_token

    @property
    def scratch_flops(self) -> float:
        """Of the run from scratch until it first was at its last loss."""
        return tokens_to_last_loss(self.scratch.val_losses) * self.scratch.flops_per_token

    @property
    def share(self) -> float | None:
        """The warmstart's FLOPs to that loss over those from scratch."""
        return None if self.flops is None else self.flops / self.scratch_flops

    @property
    def share_with_base(self) -> float | None:
        """The same with the warmstart's whole lineage in front; None where that is not known."""
        before = self.warmstart.base_flops
        return None if self.flops is None or before is None else (self.flops + before) / self.scratch_flops

    @property
    def guessed(self) -> bool:
        """Whether there are too few validations to interpolate between."""
        return min(len(self.scratch.val_losses), len(self.warmstart.val_losses)) < MIN_VALIDATIONS


@dataclass(frozen=True)
class Arm:
    """A way to warmstart, over its seeds."""

    label: str
    sources: str
    """The models that it was grown from, oldest first."""
    pairs: tuple[Pair, ...]

    @property
    def reached(self) -> tuple[Pair, ...]:
        return tuple(pair for pair in self.pairs if pair.tokens is not None)

    @property
    def speed_up(self) -> Estimate | None:
        """In FLOPs, the warmstart's own, over the seeds that reached the scratch run's last loss."""
        return speed_up([pair.share for pair in self.reached])

    @property
    def speed_up_with_base(self) -> Estimate | None:
        """In FLOPs, those of the warmstart's whole lineage; None where they are not known."""
        shares = [pair.share_with_base for pair in self.reached]
        return None if None in shares else speed_up(shares)

    def loss_difference(self, place: int) -> Estimate:
        """Warmstart's validation loss less scratch's: at place 0 before the first step, at -1 after the last."""
        return estimate([p.warmstart.val_losses[place][1] - p.scratch.val_losses[place][1] for p in self.pairs])


@dataclass
class Comparison:
    """Runs that differ in their first weights only, and seeds."""

    title: str
    scratch: tuple[Run, ...]
    """With different seeds."""
    arms: tuple[Arm, ...]
    unfinished: tuple[Run, ...] = ()
    """With the same settings and budget; no answer counts them."""

    @property
    def runs(self) -> tuple[Run, ...]:
        return (*self.scratch, *(pair.warmstart for arm in self.arms for pair in arm.pairs))

    @property
    def tokens_per_param(self) -> float:
        return self.scratch[0].tokens_per_param


@dataclass
class Compared:
    """All comparisons, and what had to be left out of them."""

    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[tuple[Run, str]] = field(default_factory=list)
    """Runs that no answer counts, and why."""
    repetitions: list[Run] = field(default_factory=list)
    """Of those, the ones whose settings, growth and seed another run has."""


def compare_all(runs: Sequence[Run]) -> Compared:
    """Put warmstarts beside their runs from scratch, seed by seed.

    Runs that did not finish are noted and left out, as are repetitions: same settings, growth and seed.
    """
    result = Compared()
    scratch: dict[str, dict[int, Run]] = {}
    warm: dict[str, dict[str, dict[int, Run]]] = {}
    kept: list[Run] = []
    unfinished: dict[str, list[Run]] = {}
    for run in runs:
        if not (run.from_scratch or run.warmstarted):
            continue
        key = f"{settings(run)} {budget(run)}"
        if run.status != "finished":
            unfinished.setdefault(key, []).append(run)
            result.notes.append((run, f"{run.status}: {run.told}"))
            continue
        if run.val_losses[-1][0] < run.tokens:
            result.notes.append((run, "was not validated at its end: leave --eval.final_validation on"))
            continue
        group = scratch if run.from_scratch else warm.setdefault(key, {})
        seeds = group.setdefault(key if run.from_scratch else f"{growth(run)} {_line(run)}", {})
        if run.seed in seeds:
            result.repetitions.append(run)
            result.notes.append(
                (run, f"repeats {str(seeds[run.seed].out_dir)!r}, which has the same settings and seed")
            )
            continue
        seeds[run.seed] = run
        kept.append(run)
    base = [run for run in kept if run.from_scratch]
    for key, arms in warm.items():
        beside = scratch.get(key, {})
        found = []
        for seeds in arms.values():
            for run in seeds.values():
                if run.seed not in beside:
                    result.notes.append((run, _why_alone(run, base, bool(beside))))
            pairs = tuple(Pair(beside[seed], run) for seed, run in seeds.items() if seed in beside)
            if pairs:
                found.append(pairs)
        if found:
            members = tuple(beside[seed] for seed in beside if any(seed == p.seed for pairs in found for p in pairs))
            labels = arm_labels([pairs[0].warmstart for pairs in found])
            named = [Arm(label, lineage(p[0].warmstart), p) for label, p in zip(labels, found, strict=True)]
            named.sort(key=lambda arm: [(p.warmstart.record.growth.shrink, arm.label) for p in arm.pairs[:1]])
            going = tuple(unfinished.get(key, ()))
            result.comparisons.append(Comparison(members[0].record.name, members, tuple(named), going))
    result.comparisons.sort(key=lambda comparison: -comparison.tokens_per_param)  # a short budget says least
    _name(result.comparisons)
    return result


def growth(run: Run) -> tuple:
    """How a warmstart was grown."""
    return tuple(run.record.growth.options.values())


def _line(run: Run) -> list[tuple]:
    """What its ancestors were, whatever their seeds."""
    return [(a.name, a.parameters, a.tokens, a.growth and a.growth.shrink) for a in run.record.lineage]


def _why_alone(run: Run, scratch: Sequence[Run], other_seeds: bool) -> str:
    """Why a warmstart has nothing to be compared with, in words."""
    if other_seeds:
        return f"no run from scratch with its seed, {run.seed}, among those with its settings"
    if not scratch:
        return "no run from scratch to compare it with: litgpt warmstart_scratch --mup_base BASE, and give that too"
    nearest = min(scratch, key=lambda s: (len(differences(s, run)), budget(s) != budget(run)))
    told = differences(nearest, run) or [("budget in tokens", budget(nearest), budget(run))]
    what, first, second = told[0]
    return f"cannot be compared with {str(nearest.out_dir)!r}: their {what} differs: {first} and {second}"


def size(run: Run | Ancestor) -> str:
    """A model's name and size."""
    record = run.record if isinstance(run, Run) else run
    return f"{short_name(record.name)} ({record.parameters / 1e6:.3g}M)"


def lineage(run: Run) -> str:
    """The models that a run's weights come from, oldest first, with an arrow between two."""
    return " → ".join(size(ancestor) for ancestor in run.record.lineage)


def arm_labels(runs: Sequence[Run]) -> list[str]:
    """What tells warmstarts of one target from each other."""
    sources = {str(_line(run)) for run in runs}
    labels = []
    for run in runs:
        parts = [run.record.growth.label]
        if len(sources) > 1:
            ancestor = run.record.lineage[-1]
            parts.append(f"from {lineage(run)} at {ancestor.tokens / ancestor.parameters:.3g} tokens/param")
        labels.append(", ".join(parts))
    return labels


def _name(comparisons: Sequence[Comparison]) -> None:
    """Title them: source, target, tokens per parameter, and what else tells those of one target apart."""
    for comparison in comparisons:
        run = comparison.scratch[0]
        same = [other.scratch[0] for other in comparisons if other.scratch[0].record.name == run.record.name]
        sources = list(dict.fromkeys(arm.sources for arm in comparison.arms))
        parts = [f"{' or '.join(sources)} → {size(run)}", f"{comparison.tokens_per_param:.3g} tokens per parameter"]
        mine = settings(run)
        for name in (
            "schedule",
            "optimizer",
            "learning rate",
            "batch size",
            "precision",
            "validation blocks",
            "muP base",
        ):
            if any(settings(other)[name] != mine[name] for other in same):
                parts.append(_in_words(name, mine[name]))
        comparison.title = ", ".join(parts)


def _in_words(name: str, value: Any) -> str:
    if name == "schedule":
        return f"schedule {value['name']}"
    return f"{name} {value}" if name != "optimizer" else str(value)
