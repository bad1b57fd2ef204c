"""litgpt warmstart: grow a small trained checkpoint into a wider model, then pretrain it."""

from pathlib import Path

from litgpt_warmstart.edge import command, options
from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.run.devices import check_here
from litgpt_warmstart.run.missing import check_given
from litgpt_warmstart.run.resolve import read_base, resolve
from litgpt_warmstart.run.spec import RunArgs, RunSpec


def specify(base: Path | None, target: str | None, growth: Growth, out_dir: Path, run: RunArgs) -> RunSpec:
    """The run that the arguments come to."""
    check_given(base=base, target=target)
    start = read_base(base)
    own = dict(base=str(start.path), target=target) | growth.options
    return resolve("warmstart", target, start, growth, out_dir, run, own)


@command
@options("growth", "run", filled_in=lambda **arguments: specify(**arguments).hyperparameters)
def setup(
    base: Path | None = None,
    target: str | None = None,
    growth: Growth = Growth(),
    out_dir: Path = Path("out/warmstart"),
    run: RunArgs = RunArgs(),
) -> Path:
    """Grow a small trained checkpoint into a wider model and pretrain it, with the base's learning rate.

    Every weight of the target starts as shrink * Pad0(base) + N(0, sigma_muP^2), eq. (1) of arXiv 2411.07340, and muP
    carries the base's learning rate to the target's width.

    Arguments:
        base: The small trained checkpoint: a folder of ours, LitGPT's or of transformers' (config.json, safetensors),
            or ORG/NAME on the Hugging Face Hub; the last two are converted into checkpoints/.
        target: The wider model: 5M, 10M, 22M, 35M, 70M, a LitGPT name, or the path of a model_config.yaml. A name
            takes the base's vocabulary.
        out_dir: Directory in which to save checkpoints and logs.
    """
    from litgpt_warmstart.run.train import setup as train

    check_here(run)
    return train(specify(base, target, growth, out_dir, run))
