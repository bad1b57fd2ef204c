"""litgpt warmstart_grow: the transform alone, into a checkpoint folder."""

from pathlib import Path
from typing import Any

from litgpt_warmstart.commands.folders import check_apart, folder_to_write
from litgpt_warmstart.edge import command, options
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.method.parametrization import ParametrizationName
from litgpt_warmstart.run.checkpoint import RECORD, Header, foreign_entries, read_checkpoint
from litgpt_warmstart.run.missing import check_given
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.resolve import check_seed, read_base, resolve_models, resolve_parametrization

NOT_GROWN = ("moments",)
"""Options of a growth that only training has."""


def _filled_in(
    base: Path | None, target: str | None, growth: Growth, mup_base: str | None,
    parametrization: ParametrizationName | None, **others: Any,
) -> dict[str, Any]:  # fmt: skip
    """What is left out, with the growth in its one way to write it."""
    check_given(base=base, target=target)
    start = read_base(base)
    config, tuned = resolve_models(target, start, growth, mup_base, None)
    carried_by, _ = resolve_parametrization(parametrization, config, tuned, mup_base)
    return _plain(start, growth, carried_by)


def _plain(start: Header, growth: Growth, parametrization: ParametrizationName) -> dict[str, Any]:
    """As hyperparameters.yaml has them."""
    options = {name: value for name, value in growth.options.items() if name not in NOT_GROWN}
    return dict(base=str(start.path)) | options | dict(parametrization=parametrization)


@command
@options("growth", without=NOT_GROWN, filled_in=_filled_in)
def setup(
    base: Path | None = None,
    target: str | None = None,
    out_dir: Path | None = None,
    growth: Growth = Growth(),
    mup_base: str | None = None,
    parametrization: ParametrizationName | None = None,
    seed: int = 42,
    overwrite: bool = False,
) -> None:
    """Grow a small trained checkpoint into a wider one without training it.

    ``warmstart_scratch --initial_checkpoint_dir`` trains on the result as ``warmstart`` would.

    Arguments:
        base: The small trained checkpoint: a folder of ours, LitGPT's or of transformers' (config.json, safetensors),
            or ORG/NAME on the Hugging Face Hub; the last two are converted into checkpoints/.
        target: The wider model: 5M, 10M, 22M, 35M, 70M, a LitGPT name, or the path of a model_config.yaml. A name
            takes the base's vocabulary.
        out_dir: The checkpoint folder to write.
        mup_base: Where the learning rate was tuned: a scale, a LitGPT name, a model_config.yaml, or a checkpoint
            folder. Default: what the base's record says, else the base's own shapes.
        parametrization: What carries the learning rate from the muP base, as in ``warmstart``.
        seed: The random seed of the perturbation.
        overwrite: Replace what ``warmstart_grow`` wrote into ``out_dir``; never a trained checkpoint, nor your files.
    """
    from litgpt_warmstart.run.grow import grow_folder

    check_given(base=base, target=target, out_dir=out_dir)
    out_dir = folder_to_write(out_dir, foreign_entries, overwrite)
    start = read_base(base)
    config, tuned = resolve_models(target, start, growth, mup_base, None)
    carried_by, tuned = resolve_parametrization(parametrization, config, tuned, mup_base)
    check_apart(out_dir, {"the base": start, "--mup_base": tuned.header})
    if (out_dir / RECORD).is_file() and Record.load(out_dir / RECORD).training:
        raise UserError(f"--out_dir {str(out_dir)!r} is a trained checkpoint: choose another")
    check_seed(start, config, growth, seed)
    arguments = _plain(start, growth, carried_by)
    arguments |= dict(target=target, out_dir=str(out_dir), mup_base=mup_base, seed=seed)
    record = grow_folder(read_checkpoint(start.path), config, growth, tuned, carried_by, seed, out_dir, arguments)
    told = growth.done(start.config, config, start.path, seed).told
    print(
        f"Grew {start.config.name} (n_embd {start.config.n_embd}) into {record.name} (n_embd {config.n_embd},"
        f" {record.parameters:,} parameters): {told}; wrote {str(out_dir)!r}"
    )
