"""Grow a checkpoint folder into another, without training."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config
from litgpt.utils import num_parameters

from litgpt_warmstart.method import growth, parametrization
from litgpt_warmstart.method.model import MuGPT
from litgpt_warmstart.run import checkpoint
from litgpt_warmstart.run.record import GrowthRecord, Record
from litgpt_warmstart.run.spec import Growth


def record_growth(asked: Growth, source: Config, target: Config, seed: int) -> GrowthRecord:
    """What is done to the source's weights, with the alignment that is possible."""
    alignment, reason = growth.resolve_alignment(source, target, asked.alignment)
    return GrowthRecord(
        source_dir=str(asked.source_dir),
        shrink=asked.shrink,
        alignment=alignment,
        asked_alignment=asked.alignment,
        alignment_reason=reason,
        perturb=asked.perturb,
        gains=asked.gains,
        seed=seed,
    )


def grow_folder(
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
        asked: Source folder, shrink, alignment, perturbation.
        config: The target, before muP's attention scale.
        mup_base: Config of the model whose learning rate was tuned.
        tuned: The record that gives learning rate and batch size, to be carried on.
        seed: Seed of the perturbation.
        out_dir: The folder, written whole or not at all.
        arguments: The command's arguments, for hyperparameters.yaml.

    Returns:
        The new folder's record.
    """
    source = checkpoint.read_checkpoint(asked.source_dir)
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
        asked.shrink,
        asked.alignment,
        asked.gains,
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
        growth=record_growth(asked, source.config, config, seed),
        lineage=source.ancestors(),
        versions=checkpoint.installed_versions(),
    )
    checkpoint.save_checkpoint(out_dir, weights, config, record, arguments, source.tokenizer)
    return record
