"""What a run is, by its record, and how two runs differ. The definition is :meth:`RunSpec.identity`."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from litgpt.config import Config

from litgpt_warmstart.method.schedule import recorded_schedule
from litgpt_warmstart.run.optimizer import ChosenOptimizer, recorded_optimizer
from litgpt_warmstart.run.record import Record

WORDS = {"starts_from": "the sha256 of what it starts from", "reads_on_after": "the sha256 of what it reads on after"}
"""What a user is told of names that do not speak for themselves."""


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as YAML and JSON give them back, without those that are None: not known."""
    known = {name: value for name, value in values.items() if value is not None}
    return json.loads(json.dumps(known, default=str))


def recorded_identity(record: Record, config: Config) -> dict[str, Any]:
    """The identity of the run that made a checkpoint, as far as its record's other entries tell it."""
    training = record.training
    return plain(
        {
            "lr": record.base_lr,
            "train.global_batch_size": record.global_batch_size,
            "seed": training["seed"],
            "parametrization": record.parametrization,
            "scale_eps": training.get("scale_eps"),
            "growth": record.growth.asked.options if record.growth and record.command == "warmstart" else {},
            "target": asdict(config),
            "mup_base": record.mup_base_config,
            "optimizer": recorded_optimizer(training["optimizer"]).plain,
            "precision": training["precision"],
            "train.max_seq_length": training["block_size"],
            "train.max_norm": training["max_norm"] or NO_CLIPPING,
            "tokens": training["max_tokens"],
            "schedule": recorded_schedule(training["schedule"]).plain,
            "starts_from": record.identity.get("starts_from"),
            "data": record.data and (record.data.fingerprint or record.data.class_path),
        }
    )


NO_CLIPPING = "none"
"""How an identity tells that gradients are not clipped."""


def first_difference(
    before: Mapping[str, Any], now: Mapping[str, Any], names: Collection[str] | None = None
) -> tuple[str, Any, Any] | None:
    """The first thing that two identities both tell and that differs: its name, and both values; None if there is none.

    What only one of them tells is of another version of this package or of LitGPT, or not known yet; but an optimizer
    has other arguments only where the user has given others, and no growth at all is not another version's.

    Only ``names`` are looked at, where they are given.
    """
    for name, value in now.items():
        other = before.get(name, value)
        if value == other or (names is not None and name not in names):
            continue
        if isinstance(value, dict) and isinstance(other, dict) and value and other:
            if inner := first_difference(other, value):
                return f"{name}.{inner[0]}", *inner[1:]
            if name != "optimizer":
                continue
        return name, other, value
    return None


def difference_in_words(
    before: Mapping[str, Any], now: Mapping[str, Any], names: Collection[str] | None = None
) -> tuple[str, str, str] | None:
    """The first difference as a user knows it: the option, and both values in words; None if there is none."""
    difference = first_difference(before, now, names)
    if difference is None:
        return None
    name, old, new = difference
    if name.startswith("optimizer"):
        return "optimizer", str(ChosenOptimizer(**before["optimizer"])), str(ChosenOptimizer(**now["optimizer"]))
    return WORDS.get(name, name.removeprefix("growth.")), str(old), str(new)
