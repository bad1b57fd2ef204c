"""Growth without training: a model in memory, or the checkpoint folder that training would start from."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config
from litgpt.utils import num_parameters

from litgpt_warmstart.edge import options
from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.method.model import MuGPT
from litgpt_warmstart.method.parametrization import ParametrizationName, branch_divisor, width_mult
from litgpt_warmstart.run.build import bare_model, build_model, first_weights
from litgpt_warmstart.run.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.resolve import Tuned, check_seed, read_base, resolve_models, resolve_parametrization


@options("growth", without=("moments",))
def grow(
    base: Path | None = None,
    target: str | None = None,
    growth: Growth = Growth(),
    mup_base: str | None = None,
    parametrization: ParametrizationName | None = None,
    seed: int = 42,
) -> MuGPT:
    """A wider model grown from a trained checkpoint, on the CPU in fp32, as training under muP would start with it.

    Args:
        base: The small trained checkpoint: a folder of ours, LitGPT's or of transformers' (config.json, safetensors),
            or ORG/NAME on the Hugging Face Hub; the last two are converted into checkpoints/.
        target: The wider model: 5M, 10M, 22M, 35M, 70M, a LitGPT name, or the path of a model_config.yaml.
        mup_base: Where the learning rate was tuned. Default: what the base's record says, else the base's own shapes.
        parametrization: What carries the learning rate from there, as in ``warmstart``.
        seed: The random seed of the perturbation.

    Raises:
        UserError: The base cannot be read, or cannot grow into the target.
    """
    start = read_base(base)
    config, tuned = resolve_models(target, start, growth, mup_base, None)
    name, tuned = resolve_parametrization(parametrization, config, tuned, mup_base)
    check_seed(start, config, growth, seed)
    return build_model(config, tuned.config, seed, growth, read_checkpoint(start.path), name)


def grow_folder(
    source: Checkpoint,
    config: Config,
    growth: Growth,
    tuned: Tuned,
    parametrization: ParametrizationName,
    seed: int,
    out_dir: Path,
    arguments: dict[str, Any],
) -> Record:
    """Write the checkpoint folder that training would start from, tensor by tensor, whole or not at all.

    Args:
        source: What is grown.
        config: The target.
        growth: How.
        tuned: Gives learning rate and batch size, to be carried on.
        parametrization: What carries the learning rate.
        seed: Of the perturbation.
        out_dir: The folder.
        arguments: The command's arguments, for hyperparameters.yaml.

    Returns:
        The new folder's record.
    """
    with torch.device("meta"):
        model = bare_model(config, tuned.config, parametrization)
    record = Record(
        command="warmstart_grow",
        name=config.name,
        parameters=num_parameters(model),
        parametrization=parametrization,
        mup_base_config=asdict(tuned.config),
        width_mult=width_mult(config, tuned.config, parametrization),
        branch_divisor=branch_divisor(config, tuned.config, parametrization),
        base_lr=tuned.record.base_lr if tuned.record else None,
        global_batch_size=tuned.record.global_batch_size if tuned.record else None,
        growth=growth.done(source.config, config, source.path, seed),
        lineage=source.ancestors(),
    )
    weights = first_weights(model, tuned.config, seed, growth, source, parametrization)
    save_checkpoint(out_dir, weights, model.config, record, arguments, source.tokenizer)
    return record
