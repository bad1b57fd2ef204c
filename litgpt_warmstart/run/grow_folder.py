"""Grow a checkpoint folder into another, without training."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config
from litgpt.utils import num_parameters

from litgpt_warmstart.method import growth, parametrization
from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.method.model import MuGPT
from litgpt_warmstart.run import checkpoint
from litgpt_warmstart.run.record import Record


def grow_folder(
    source_dir: Path,
    asked: Growth,
    config: Config,
    mup_base: Config,
    tuned: Record | None,
    seed: int,
    out_dir: Path,
    arguments: dict[str, Any],
) -> Record:
    """Write the checkpoint folder that training under ``asked`` would start from.

    Args:
        source_dir: Checkpoint folder of the source.
        asked: How it grows.
        config: The target, before muP's attention scale.
        mup_base: Config of the model whose learning rate was tuned.
        tuned: The record that gives learning rate and batch size, to be carried on.
        seed: Seed of the perturbation.
        out_dir: The folder, written whole or not at all.
        arguments: The command's arguments, for hyperparameters.yaml.

    Returns:
        The new folder's record.
    """
    source = checkpoint.read_checkpoint(source_dir)
    config = parametrization.mup_config(config, mup_base)
    width_mult = parametrization.width_mult(config, mup_base)
    with torch.device("meta"):
        model = MuGPT(config, width_mult)
    parametrization.set_base_shapes(model, mup_base)
    initial = parametrization.initial_weights(model, mup_base, seed, asked.perturb)
    weights = growth.grow(
        source.weights_under(parametrization.folding(source.config, mup_base)),
        initial,
        source.config,
        config,
        asked,
    )
    record = Record(
        command="warmstart_grow",
        name=config.name,
        parameters=num_parameters(model),
        parametrization="mup",
        mup_base_config=asdict(mup_base),
        width_mult=width_mult,
        base_lr=tuned.base_lr if tuned else None,
        global_batch_size=tuned.global_batch_size if tuned else None,
        growth=asked.done(source.config, config, source_dir, seed),
        lineage=source.ancestors(),
        versions=checkpoint.installed_versions(),
    )
    checkpoint.save_checkpoint(out_dir, weights, config, record, arguments, source.tokenizer)
    return record
