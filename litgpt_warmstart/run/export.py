"""A checkpoint for other tools: transformers' names and config, or a plain LitGPT folder of one that is not."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from litgpt.utils import save_config
from safetensors import SafetensorError
from safetensors.torch import save_file

from litgpt_warmstart import files
from litgpt_warmstart.data.tokenizer_files import NAMES, for_transformers
from litgpt_warmstart.errors import one_line
from litgpt_warmstart.method.folding import Folding
from litgpt_warmstart.method.model import check_supported
from litgpt_warmstart.run import checkpoint
from litgpt_warmstart.run.card import CARD, LITGPT, is_as_written, model_card
from litgpt_warmstart.run.families import GENERATION_CONFIG, HF_CONFIG, known_family, litgpt_name, write_hf_configs

Format = Literal["transformers", "litgpt"]
SAFETENSORS = "model.safetensors"
MARK = ".warmstart_export"
"""Tells what is exported here from a model that somebody has downloaded."""
MODEL_FILES = (checkpoint.WEIGHTS, SAFETENSORS, checkpoint.CONFIG, HF_CONFIG, GENERATION_CONFIG, *NAMES)
"""What an export may have beside its card and its mark."""


def export(source: Path, out_dir: Path, format: Format, license: str | None = None, repo_id: str | None = None) -> str:
    """Write a LitGPT checkpoint folder, ours or stock, for other tools, whole or not at all; with a model card.

    Args:
        source: The checkpoint folder.
        out_dir: What is written.
        format: For which tools.
        license: For the card, the Hub's identifier.
        repo_id: Where it will be pushed, for the card.

    Returns:
        transformers' class that loads it, or LitGPT's.

    Raises:
        UserError: No family of transformers' can hold the model, or it has a part that warmstarting does not support.
    """
    header = checkpoint.read_header(source, "checkpoint")
    header.check_files()
    check_supported(header.config)
    config = replace(header.config, attention_scores_scalar=None)
    family = known_family(config, ": pass --format litgpt") if format == "transformers" else None
    weights, tokenizer = checkpoint.stored_weights(header), header.tokenizer
    if header.folded.config.attention_scores_scalar != header.config.attention_scores_scalar:  # of version 0.1
        weights = {name: Folding(header.config).fold(name, weight) for name, weight in weights.items()}
    with files.atomic_folder(out_dir, foreign_to_export) as partial:
        (partial / MARK).touch()
        parameters = sum(weight.numel() for weight in weights.values())
        made = family.architecture if family else LITGPT
        (partial / CARD).write_text(model_card(header, parameters, made, license, repo_id), encoding="utf-8")
        if tokenizer:
            (for_transformers(tokenizer, config.block_size) if family else tokenizer).write(partial)
        write_hf_configs(partial, config, tokenizer, str(weights["lm_head.weight"].dtype).removeprefix("torch."))
        if family is None:
            torch.save(weights, partial / checkpoint.WEIGHTS)
            save_config(replace(config, name=litgpt_name(config)), partial)
            return made
        named = family.named(weights, config)
        whole = {name: weight.contiguous().clone() for name, weight in named.items()}  # views share storage
        try:
            save_file(whole, partial / SAFETENSORS, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(one_line(error)) from error  # what a full disk is to atomic_folder
        # safetensors makes its file the owner's alone.
        shutil.copymode(partial / HF_CONFIG, partial / SAFETENSORS)
        return made


def foreign_to_export(folder: Path) -> list[str]:
    """What in a folder is not as :func:`export` writes it, a card that was changed included; all without its mark."""
    if not (folder / MARK).is_file():
        return files.entries(folder)
    card = (CARD,) if (folder / CARD).is_file() and is_as_written(folder / CARD) else ()
    return files.others(folder, (MARK, *card, *MODEL_FILES))
