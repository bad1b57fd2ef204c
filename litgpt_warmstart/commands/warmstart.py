"""litgpt warmstart: grow a small trained checkpoint into a wider model, then pretrain it."""

from pathlib import Path

from litgpt_warmstart.edge import checked
from litgpt_warmstart.errors import told_in_one_line
from litgpt_warmstart.run.models import read_base
from litgpt_warmstart.run.resolve import resolve
from litgpt_warmstart.run.spec import Alignment, Gains, Growth


@checked
def setup(
    base: Path | None = None,
    target: str | None = None,
    shrink: float = 0.4,
    alignment: Alignment = "heads",
    perturb: float = 1.0,
    gains: Gains = "shrunk",
    out_dir: Path = Path("out/warmstart"),
    **kwargs,
) -> None:
    """Grow a small trained checkpoint into a wider model and pretrain it, with the base's learning rate.

    Every weight of the target starts as shrink * Pad0(base) + N(0, sigma_muP^2), eq. (1) of arXiv 2411.07340, and muP
    carries the base's learning rate to the target's width.

    Arguments:
        base: Folder of the small trained checkpoint: one of ours, or any LitGPT checkpoint.
        target: The wider model: 5M, 10M, 22M, 35M, 70M, a LitGPT name, or the path of a model_config.yaml. A name
            takes the base's vocabulary.
        shrink: lambda_shrink in [0, 1]; 0 trains from scratch under muP, on the same batches.
        alignment: Where the rows of attention go: ``heads`` keeps each head, ``blocks`` each of q, k and v, and
            ``literal`` pads the fused tensor as it stands, for comparison only.
        perturb: Multiplier of the standard deviation sigma_muP that is added.
        gains: What becomes of norm gains: ``shrunk`` towards 1, ``added`` to 1 after shrinking (eq. (1) as it stands),
            ``copied``, or ``reset`` to 1.
        out_dir: Directory in which to save checkpoints and logs.
    """
    with told_in_one_line("litgpt warmstart"):
        from litgpt_warmstart.run.train import setup as train

        start = read_base(base)
        growth = Growth(start.path, shrink, alignment, perturb, gains)
        own = dict(
            base=str(start.path), target=target, shrink=shrink, alignment=alignment, perturb=perturb, gains=gains
        )
        train(resolve("warmstart", target, start, growth, "mup", Path(out_dir), own, **kwargs))
