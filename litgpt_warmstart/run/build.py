"""A run's model, loss and optimizer, made from its specification."""

from dataclasses import asdict, replace

import lightning as L
from torch import nn

from litgpt_warmstart.method import growth, parametrization
from litgpt_warmstart.method.growth import Grown
from litgpt_warmstart.method.loss import NextTokenLoss, choose, cpu_has_bf16
from litgpt_warmstart.method.model import MuGPT
from litgpt_warmstart.run import checkpoint, micro_batch
from litgpt_warmstart.run.compilation import compiled, why_not_compile
from litgpt_warmstart.run.record import Ancestor
from litgpt_warmstart.run.resume import Resumed, State
from litgpt_warmstart.run.spec import RunSpec


def build_state(
    fabric: L.Fabric,
    spec: RunSpec,
    source: checkpoint.Checkpoint | None,
    initial: checkpoint.Checkpoint | None,
    resumed: Resumed | None,
    lineage: tuple[Ancestor, ...] = (),
) -> tuple[RunSpec, State, str]:
    """Model, loss and optimizer, set up by Fabric, before the first or the next step.

    Returns:
        The specification with what was chosen for it (loss, micro-batch, whether to compile), the state, and the
        choices in words.
    """
    if spec.compile and (reason := why_not_compile(fabric.device)):
        fabric.print(f"Training without torch.compile: {reason}")
        spec = replace(spec, compile=False)
    before = resumed.record.training.get("loss_impl") if resumed else None
    tokens = (spec.train.micro_batch_size or 1) * spec.block_size
    impl, chosen_for = choose(spec.loss_impl, spec.config, spec.precision, fabric.device, tokens, before)
    if impl == "chunked" and fabric.device.type == "cpu" and "bf16" in spec.precision and not cpu_has_bf16():
        chosen_for += ", in fp32 as this CPU only emulates bf16"
    spec = replace(spec, loss_impl=impl, hyperparameters={**spec.hyperparameters, "loss_impl": impl})
    gpt, growth_record = build_model(fabric, spec, source, initial, resumed)
    loss: nn.Module = NextTokenLoss(gpt, impl)
    spec, found = with_micro_batch(fabric, spec, loss, resumed)
    if spec.compile:
        fabric.print("Compiling at the first step, which takes a while; --compile false for short runs")
        loss = compiled(loss, spec.compile)
    loss = fabric.setup(loss)
    optimizer = parametrization.build_optimizer(
        gpt,
        spec.optimizer.cls,
        # A fused step unscales gradients itself, too late for clipping.
        spec.optimizer.arguments(fused=spec.precision != "16-mixed"),
        spec.base_lr,
        spec.parametrization,
    )
    optimizer = fabric.setup_optimizers(optimizer)
    choices = f"loss {impl} ({chosen_for}); micro-batch {spec.train.micro_batch_size} ({found})"
    return spec, State(gpt, loss, optimizer, lineage, growth_record), choices


def build_model(
    fabric: L.Fabric,
    spec: RunSpec,
    source: checkpoint.Checkpoint | None,
    initial: checkpoint.Checkpoint | None,
    resumed: Resumed | None,
) -> tuple[MuGPT, Grown | None]:
    """The bare model on the device, with the weights that training starts from or goes on with.

    Returns:
        The model, and how its weights were grown.
    """
    with fabric.init_module(empty_init=True):
        width_mult = parametrization.width_mult(spec.config, spec.mup_base_config, spec.parametrization)
        gpt = MuGPT(spec.config, width_mult)
    gpt.max_seq_length = spec.block_size
    parametrization.set_base_shapes(gpt, spec.mup_base_config)
    if resumed:
        parametrization.load_weights(gpt, resumed.weights.items())
        return gpt, resumed.record.growth
    if initial:
        under = parametrization.folding(initial.config, spec.mup_base_config, spec.parametrization)
        parametrization.load_weights(gpt, initial.weights_under(under).items())
        only_grown = initial.record is not None and not initial.record.tokens
        return gpt, initial.record.growth if only_grown else None
    perturb = spec.growth.perturb if spec.growth else 1.0
    weights = parametrization.initial_weights(gpt, spec.mup_base_config, spec.seed, perturb, spec.parametrization)
    if source is None:
        parametrization.load_weights(gpt, weights)
        return gpt, None
    grown = growth.grow(
        source.weights_under(parametrization.folding(source.config, spec.mup_base_config)),
        weights,
        source.config,
        spec.config,
        spec.growth,
    )
    parametrization.load_weights(gpt, grown)
    return gpt, spec.growth.done(source.config, spec.config, source.path, spec.seed)


def with_micro_batch(
    fabric: L.Fabric, spec: RunSpec, loss: NextTokenLoss, resumed: Resumed | None
) -> tuple[RunSpec, str]:
    """The specification with its micro-batch size, and where that is from."""
    if not spec.find_micro_batch:
        return spec, "as asked"
    before = resumed.record.training["micro_batch_size"] if resumed else None
    if before and spec.train.global_batch_size % before == 0:
        size, found = before, "as before"
    else:
        size, found = micro_batch.find(fabric, spec, loss)
    train = replace(spec.train, micro_batch_size=size)
    return replace(spec, train=train, hyperparameters={**spec.hyperparameters, "train": asdict(train)}), found
