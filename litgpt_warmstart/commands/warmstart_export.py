"""litgpt warmstart_export: a checkpoint for transformers."""

from pathlib import Path

from litgpt_warmstart.commands.folders import check_apart, folder_to_write
from litgpt_warmstart.edge import command, options
from litgpt_warmstart.errors import UserError
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
    license: str | None = None,
    push_to_hub: str | None = None,
    private: bool = False,
) -> Path:
    """Write a checkpoint that transformers loads with the same logits, with a model card, and push it to the Hub.

    Stock ``litgpt convert_from_litgpt`` does the same from a run's folder, but for OLMo 2, of which it dies, and for
    folders of version 0.1 of this package, whose attention scale it does not know.

    Arguments:
        checkpoint_dir: A LitGPT checkpoint folder, such as a run's final/.
        out_dir: The folder to write.
        format: ``transformers`` (GPT-NeoX, Phi, Llama, Qwen 2.5 and 3, OLMo 2: config.json, model.safetensors,
            tokenizer files), or ``litgpt``, a plain LitGPT checkpoint of any family, for folders of version 0.1.
        overwrite: Replace an earlier export in ``out_dir``; nothing else is.
        license: The model's licence on its card, by the Hub's identifier, such as ``apache-2.0``. Default: none is
            named.
        push_to_hub: Upload the export to this repository of the Hugging Face Hub, ``USER/NAME``, which is made where
            there is none. An earlier export there is replaced, as long as its card was not edited; nothing else is.
            HF_TOKEN, or ``hf auth login``, says who you are.
        private: Have the repository be a private one.
    """
    from litgpt_warmstart.run.card import checked_license
    from litgpt_warmstart.run.export import MARK, MODEL_FILES, export, foreign_to_export
    from litgpt_warmstart.run.push import check_push, push

    check_given(checkpoint_dir=checkpoint_dir, out_dir=out_dir)
    license = license and checked_license(license)
    if push_to_hub:
        check_push(push_to_hub)
    elif private:
        raise UserError("--private is for --push_to_hub: give USER/NAME there")
    source = read_base(checkpoint_dir, "--checkpoint_dir")
    out_dir = folder_to_write(out_dir, foreign_to_export, overwrite)
    check_apart(out_dir, {"the checkpoint": source})
    made = export(source.path, out_dir, format, license, push_to_hub)
    print(f"Wrote {str(out_dir)!r}: {source.config.name}, for {made}")
    if push_to_hub:
        address = push(out_dir, push_to_hub, private, MODEL_FILES, MARK)
        print(f"Pushed to {address}" + ("" if license else "; its card names no licence (--license apache-2.0)"))
    return out_dir
