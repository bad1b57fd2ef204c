"""Which checkpoint and which model a command means, and where the learning rate was tuned."""

from dataclasses import dataclass
from pathlib import Path

from litgpt.config import Config
from litgpt.data import DataModule
from litgpt.utils import extend_checkpoint_dir

from litgpt_warmstart.data import BlockDataModule
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.growth import Growth, check_growable
from litgpt_warmstart.method.scales import SCALES, Scale, find_scale, resolve_config
from litgpt_warmstart.run.checkpoint import WEIGHTS, Header, read_header
from litgpt_warmstart.run.record import Record


@dataclass(frozen=True)
class Tuned:
    """Where the learning rate was tuned."""

    config: Config
    """muP's base shapes."""
    header: Header | None = None
    """The checkpoint that says so; None for a scale or a config."""

    @property
    def record(self) -> Record | None:
        """What that checkpoint was trained with; None too for one that this package did not write."""
        return self.header.record if self.header else None

    @property
    def table_row(self) -> Scale | None:
        """Table 1's row of the muP base; a checkpoint's settings are its own, whatever its name."""
        return None if self.header else find_scale(self.config.name)


def read_base(base: Path | None, option: str = "--base") -> Header:
    """The checkpoint that an option names; LitGPT's short form below checkpoints/ is found too.

    Raises:
        UserError: It is left out, no checkpoint folder, or one of its files has changed since it was saved.
    """
    if base is None:
        raise UserError(f"{option} is missing: give the folder of a trained LitGPT checkpoint")
    try:
        folder = extend_checkpoint_dir(Path(base))
    except OSError as error:
        raise UserError(f"{option} {str(base)!r} is unreadable: {error.strerror}: give another folder") from error
    header = read_header(folder, option)
    header.check_files()
    return header


def resolve_models(
    target: str | None, start: Header | None, growth: Growth | None, mup_base: str | None, data: DataModule | None
) -> tuple[Config, Tuned]:
    """The target's config, before muP's attention scale, and where the learning rate was tuned.

    Raises:
        UserError: No target, one that ``start`` cannot become, or an unknown muP base.
    """
    tuned = _read_tuned(mup_base)
    vocabulary = {}
    if start:
        vocabulary = _vocabulary(start.config)
    elif isinstance(data, BlockDataModule):
        vocabulary = dict(padded_vocab_size=data.padded_vocab_size, vocab_size=data.vocab_size)
    elif tuned:
        vocabulary = _vocabulary(tuned.config)
    if target is None and not (start and not growth):
        known = ", ".join(s.short_name for s in SCALES)
        raise UserError(f"--target is missing: choose one of {known}, or give a LitGPT name or a model_config.yaml")
    config = resolve_config(target, **vocabulary) if target else start.config
    if start and growth:
        check_growable(start.config, config)
    elif start:
        for name in ("n_layer", "n_embd", "n_head", "head_size", "intermediate_size", "padded_vocab_size"):
            has, asked = getattr(start.config, name), getattr(config, name)
            if has != asked:
                raise UserError(
                    f"--initial_checkpoint_dir {str(start.path)!r} has {name} {has}, --target {target} has {asked}:"
                    " leave --target out"
                )
        config = start.config
    if tuned is None and mup_base is not None:
        named = resolve_config(mup_base, **_vocabulary(config))
        same = start and start.record and same_shapes(named, start.mup_base_config)
        tuned = Tuned(start.mup_base_config, start) if same else Tuned(named)
    elif tuned is None:
        tuned = Tuned(start.mup_base_config, start) if start else Tuned(config)
    return config, tuned


def check_seed(start: Header, target: Config, growth: Growth, seed: int) -> None:
    """Raise a UserError where the perturbation would be the numbers that the base was initialized with."""
    if growth.shrink and growth.perturb and seed == used_seed(start, target):
        raise UserError(
            f"--seed {seed} is the base's own: at the base's own size it would draw its initialization again as the"
            " perturbation: give another --seed"
        )


def used_seed(start: Header, target: Config) -> int | None:
    """The seed that a base of the target's size was initialized with; None where it is not known, or another size."""
    widths = [(config.n_embd, config.intermediate_size) for config in (start.config, target)]
    if start.record is None or widths[0] != widths[1]:
        return None
    return start.record.growth.seed if start.record.growth else start.record.training.get("seed")


def _vocabulary(config: Config) -> dict[str, int]:
    return dict(padded_vocab_size=config.padded_vocab_size, vocab_size=config.vocab_size)


def same_shapes(a: Config, b: Config) -> bool:
    """Whether two configs name the same muP base."""
    names = ("n_layer", "n_embd", "n_head", "n_query_groups", "head_size", "intermediate_size", "padded_vocab_size")
    return all(getattr(a, name) == getattr(b, name) for name in names)


def _read_tuned(mup_base: str | None) -> Tuned | None:
    """The tuned shapes and record of a checkpoint folder given as ``--mup_base``; None for anything else."""
    if mup_base is None:
        return None
    try:
        if not (extend_checkpoint_dir(Path(mup_base)) / WEIGHTS).is_file():
            return None
    except OSError as error:
        raise UserError(f"--mup_base {mup_base!r} is unreadable: {error.strerror}: give another") from error
    header = read_base(mup_base, "--mup_base")
    return Tuned(header.mup_base_config, header)
