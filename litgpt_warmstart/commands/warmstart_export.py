"""litgpt warmstart_export: a checkpoint for transformers."""

from pathlib import Path

from litgpt_warmstart.commands.folders import check_apart, folder_to_write
from litgpt_warmstart.edge import command, options
from litgpt_warmstart.run.export import Format
from litgpt_warmstart.run.missing import check_given
from litgpt_warmstart.run.resolve import read_base


@command
@options()
def setup(
    checkpoint_dir: Path | None = None,
    out_dir: Path | None = None,
    format: Format = "transformers",
    overwrite: bool = False,
) -> Path:
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

    check_given(checkpoint_dir=checkpoint_dir, out_dir=out_dir)
    source = read_base(checkpoint_dir, "--checkpoint_dir")
    out_dir = folder_to_write(out_dir, foreign_to_export, overwrite)
    check_apart(out_dir, {"the checkpoint": source})
    made = export(source.path, out_dir, format)
    print(f"Wrote {str(out_dir)!r}: {source.config.name}, for {made}")
    return out_dir
