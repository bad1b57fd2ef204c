"""The few settings that pictures of experiments share."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from litgpt_warmstart.report.tables import write_picture


@contextmanager
def picture(path: Path, width: float = 7.0, height: float = 4.5, panels: int = 1) -> Iterator[Any]:
    """A figure's axes to draw on, saved at the end.

    Args:
        path: The image file.
        width: Inches of a panel.
        height: Inches.
        panels: Side by side.

    Yields:
        One Axes, or a sequence of as many as there are panels.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, panels, figsize=(width * panels, height), layout="constrained")
    try:
        yield axes
        for ax in figure.axes:
            ax.spines[["top", "right"]].set_visible(False)
        write_picture(figure, path, dpi=150)
    finally:
        plt.close(figure)
