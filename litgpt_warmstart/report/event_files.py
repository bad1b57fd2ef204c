"""A run's metrics from its TensorBoard logs, where metrics.csv is missing."""

import logging
from pathlib import Path

LOGS = Path("logs") / "tensorboard"
"""Where LitGPT's TensorBoard logger writes, beneath a run's folder."""


def has_events(out_dir: Path) -> bool:
    """Whether a run's folder holds TensorBoard event files."""
    return any((out_dir / LOGS).glob("version_*/events.out.tfevents.*"))


def read_events(out_dir: Path) -> list[dict[str, float]]:
    """Rows as metrics.csv has them: a row a training loss, a row a validation loss, in the order of steps.

    Of a step that was logged twice, before and after a resumption, the later version counts. Values are single
    precision; tokens above 2^24 are therefore rounded (:func:`litgpt_warmstart.report.old_runs.exact`).
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    by_tag: dict[str, dict[int, float]] = {}
    folders = {path.parent for path in (out_dir / LOGS).glob("version_*/events.out.tfevents.*")}
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    for folder in sorted(folders, key=lambda folder: int(folder.name.removeprefix("version_"))):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            by_tag.setdefault(tag, {}).update({event.step: event.value for event in events.Scalars(tag)})
    rows = []
    for step in sorted(by_tag.get("loss", {}).keys() | by_tag.get("val_loss", {}).keys()):
        shared = {tag: by_tag[tag][step] for tag in ("tokens", "seconds", "hoffmann_flops")
                  if step in by_tag.get(tag, {})}  # fmt: skip
        for kind in ("loss", "val_loss"):
            if step in by_tag.get(kind, {}):
                rows.append({"step": float(step), **shared, kind: by_tag[kind][step]})
    return rows
