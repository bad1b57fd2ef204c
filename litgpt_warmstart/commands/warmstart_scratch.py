"""litgpt warmstart_scratch: train a scale from scratch; makes bases, and the runs to compare a warmstart with."""

from pathlib import Path

from litgpt_warmstart.edge import command, options
from litgpt_warmstart.run.devices import check_here
from litgpt_warmstart.run.resolve import read_base, resolve
from litgpt_warmstart.run.spec import RunArgs, RunSpec


def specify(target: str | None, initial_checkpoint_dir: Path | None, out_dir: Path, run: RunArgs) -> RunSpec:
    """The run that the arguments come to."""
    start = read_base(initial_checkpoint_dir, "--initial_checkpoint_dir") if initial_checkpoint_dir else None
    own = dict(target=target, initial_checkpoint_dir=str(start.path) if start else None)
    return resolve("warmstart_scratch", target, start, None, out_dir, run, own)


@command
@options("run", filled_in=lambda **arguments: specify(**arguments).hyperparameters)
def setup(
    target: str | None = None,
    initial_checkpoint_dir: Path | None = None,
    out_dir: Path = Path("out/warmstart_scratch"),
    run: RunArgs = RunArgs(),
) -> Path:
    """Pretrain a model from scratch, or from weights as they are.

    With ``--mup_base`` set to a trained checkpoint this is the run to compare a warmstart from it with: the same
    learning rate, and the same batches in the same order.

    Arguments:
        target: The model: 5M, 10M, 22M, 35M, 70M, a LitGPT name, or the path of a model_config.yaml. A name takes the
            vocabulary of the data or of the muP base where they have one.
        initial_checkpoint_dir: Optional path to a checkpoint directory to start from as it is, for example one that
            ``warmstart_grow`` wrote.
        out_dir: Directory in which to save checkpoints and logs.
    """
    from litgpt_warmstart.run.train import setup as train

    check_here(run)
    return train(specify(target, initial_checkpoint_dir, out_dir, run))
