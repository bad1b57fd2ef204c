"""litgpt warmstart_export: a checkpoint for transformers."""

from pathlib import Path

from litgpt_warmstart.edge import checked
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import theirs_at
from litgpt_warmstart.run.export import Format
from litgpt_warmstart.run.resolve import read_base


@checked
def setup(
    checkpoint_dir: Path | None = None,
    out_dir: Path | None = None,
    format: Format = "transformers",
    overwrite: bool = False,
) -> None:
    """Write a checkpoint that transformers loads with the same logits.

    Stock ``litgpt convert_from_litgpt`` does the same from a run's folder, but for OLMo 2, of which it dies, and for
    folders of version 0.1 of this package, whose attention scale it does not know.

    Arguments:
        checkpoint_dir: A LitGPT checkpoint folder, such as a run's final/.
        out_dir: The folder to write.
        format: ``transformers`` (GPT-NeoX, Phi, Llama, Qwen 2.5 and 3, OLMo 2: config.json, model.safetensors,
            tokenizer files), or ``litgpt``, a plain LitGPT checkpoint of any family, for folders of version 0.1.
        overwrite: Replace an earlier export in ``out_dir``; nothing else is.
    """
    from litgpt_warmstart.run.export import export, foreign_to_export
    from litgpt_warmstart.run.folder import check_writable

    source = read_base(checkpoint_dir, "--checkpoint_dir")
    if out_dir is None:
        raise UserError("--out_dir is missing: give the folder to write")
    out_dir = Path(out_dir)
    check_writable(out_dir)
    if out_dir.resolve() in (source.path.resolve(), *source.path.resolve().parents):
        raise UserError(f"--out_dir {str(out_dir)!r} holds the checkpoint: choose another folder")
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        if theirs := theirs_at(out_dir, foreign_to_export):
            raise UserError(
                f"--out_dir {str(out_dir)!r} was not written by warmstart_export alone: it holds"
                f" {', '.join(theirs[:3])}; choose another"
            )
        if not overwrite:
            raise UserError(f"--out_dir {str(out_dir)!r} exists: pass --overwrite true, or another folder")
    made = export(source.path, out_dir, format)
    print(f"Wrote {str(out_dir)!r}: {source.config.name}, for {made}")
