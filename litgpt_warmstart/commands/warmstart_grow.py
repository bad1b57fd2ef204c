"""litgpt warmstart_grow: the transform alone, into a checkpoint folder."""

from pathlib import Path

from litgpt_warmstart.edge import checked, flat
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import theirs_at
from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.run.checkpoint import RECORD, foreign_entries, read_checkpoint
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.resolve import check_seed, read_base, resolve_models


@checked
@flat("growth")
def setup(
    base: Path | None = None,
    target: str | None = None,
    out_dir: Path | None = None,
    growth: Growth = Growth(),
    mup_base: str | None = None,
    seed: int = 42,
    overwrite: bool = False,
) -> None:
    """Grow a small trained checkpoint into a wider one without training it.

    ``warmstart_scratch --initial_checkpoint_dir`` trains on the result as ``warmstart`` would.

    Arguments:
        base: Folder of the small trained checkpoint: one of ours, or any LitGPT checkpoint.
        target: The wider model: 5M, 10M, 22M, 35M, 70M, a LitGPT name, or the path of a model_config.yaml. A name
            takes the base's vocabulary.
        out_dir: The checkpoint folder to write.
        mup_base: Where the learning rate was tuned: a scale, a LitGPT name, a model_config.yaml, or a checkpoint
            folder. Default: what the base's record says, else the base's own shapes.
        seed: The random seed of the perturbation.
        overwrite: Replace what ``warmstart_grow`` wrote into ``out_dir``; never a trained checkpoint, nor your files.
    """
    from litgpt_warmstart.run.folder import check_writable
    from litgpt_warmstart.run.grow import grow_folder

    if out_dir is None:
        raise UserError("--out_dir is missing: give the checkpoint folder to write")
    out_dir = Path(out_dir)
    check_writable(out_dir)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        if theirs := theirs_at(out_dir, foreign_entries):
            raise UserError(
                f"--out_dir {str(out_dir)!r} exists and is no checkpoint of ours: it holds {', '.join(theirs[:3])};"
                " choose another"
            )
        if not overwrite:
            raise UserError(f"--out_dir {str(out_dir)!r} exists: pass --overwrite true, or another folder")
    start = read_base(base)
    config, tuned = resolve_models(target, start, growth, mup_base, None)
    for held, what in ((start, "the base"), (tuned.header, "--mup_base")):
        if held and out_dir.resolve() in (held.path.resolve(), *held.path.resolve().parents):
            raise UserError(f"--out_dir {str(out_dir)!r} holds {what}: choose another folder")
    if (out_dir / RECORD).is_file() and Record.load(out_dir / RECORD).training:
        raise UserError(f"--out_dir {str(out_dir)!r} is a trained checkpoint: choose another")
    check_seed(start, config, growth, seed)
    arguments = dict(base=str(start.path), target=target, out_dir=str(out_dir), mup_base=mup_base, seed=seed)
    arguments |= growth.options
    record = grow_folder(read_checkpoint(start.path), config, growth, tuned, seed, out_dir, arguments)
    told = growth.done(start.config, config, start.path, seed).told
    print(
        f"Grew {start.config.name} (n_embd {start.config.n_embd}) into {record.name} (n_embd {config.n_embd},"
        f" {record.parameters:,} parameters): {told}; wrote {str(out_dir)!r}"
    )
