"""litgpt warmstart_plan: what a warmstart will take, and whether growth that large pays, before it is begun."""

from contextlib import suppress
from json import dumps, loads
from pathlib import Path
from typing import Any

from litgpt_warmstart.commands.warmstart import specify
from litgpt_warmstart.data import PreparedText
from litgpt_warmstart.edge import command, options
from litgpt_warmstart.errors import UserError, check_above_zero
from litgpt_warmstart.files import removed_if_empty, write_whole
from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.run.checkpoint import read_header
from litgpt_warmstart.run.spec import RunArgs


def _filled_in(max_flops: float | None, **arguments: Any) -> dict[str, Any]:
    """A warmstart's arguments; nothing of proposals."""
    names = ("base", "target", "growth", "out_dir", "run")
    return specify(**{name: arguments[name] for name in names}).hyperparameters if max_flops is None else {}


@command
@options("growth", "run", filled_in=_filled_in)
def setup(
    base: Path | None = None,
    target: str | None = None,
    growth: Growth = Growth(),
    max_flops: float | None = None,
    out_dir: Path = Path("out/warmstart"),
    measure: bool = True,
    device_memory_gb: float | None = None,
    interconnect_gb_per_sec: float | None = None,
    json: Path | None = None,
    run: RunArgs = RunArgs(),
) -> None:
    """Say what ``litgpt warmstart`` with the same arguments takes: tokens, Hoffmann FLOPs, memory, and time here.

    Time and memory come from a few steps of the real target on random tokens. No data is downloaded or prepared; what
    is written is ``--json``, a base that has to be converted, and, in the user's cache, the micro-batch that was the
    fastest. A warmstart's ``--config`` file is a plan's, too. Warns where growth is larger than what the literature
    found to pay, and names the stages instead.

    Arguments:
        base: The small trained checkpoint: a folder of ours, LitGPT's or of transformers' (config.json, safetensors),
            or ORG/NAME on the Hugging Face Hub; the last two are converted into checkpoints/.
        target: The wider model: 5M, 10M, 22M, 35M, 70M, a LitGPT name, or the path of a model_config.yaml. A name
            takes the base's vocabulary.
        max_flops: Instead of ``base`` and ``target``: a budget of Hoffmann FLOPs, the base's training included, for
            which pairs of scales are proposed, how much each grows, when to grow, and what it can save.
        out_dir: A warmstart's; taken so that its arguments are a plan's, which writes nothing there.
        device_memory_gb: Memory of a device, in GB, by which several share the model. Default: of this machine's.
        interconnect_gb_per_sec: What a device can send to others, in GB/s, for the time that sending takes.
        measure: Whether to build the target and time it; without, memory is that of weights, gradients and optimizer.
        json: Optional file to write the plan to, too.
    """
    from litgpt_warmstart.run.plan import make_plan

    if json is not None:
        _check_free(json)
    check_above_zero(dict(device_memory_gb=device_memory_gb, interconnect_gb_per_sec=interconnect_gb_per_sec))
    memory = None if device_memory_gb is None else int(device_memory_gb * 1e9)
    rate = None if interconnect_gb_per_sec is None else interconnect_gb_per_sec * 1e9
    if max_flops is not None:
        told, figures = _proposals(max_flops, base, target, growth, run)
    else:
        spec = specify(base, target, growth, out_dir, run)
        told, figures = make_plan(spec, read_header(Path(spec.own["base"])), measure, memory, rate)
    print(told)
    if json is not None:
        try:
            with removed_if_empty(json.parent):
                json.parent.mkdir(parents=True, exist_ok=True)
                write_whole(json, dumps(figures, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"cannot write --json {str(json)!r}: {error.strerror}: choose another file") from error


def _proposals(
    max_flops: float, base: Path | None, target: str | None, growth: Growth, run: RunArgs
) -> tuple[str, dict[str, Any]]:
    """What a budget is proposed to be spent on, in lines and as plain values."""
    from litgpt_warmstart.run.budget import propose, told

    check_above_zero(dict(max_flops=max_flops))
    if base is not None or target is not None:
        raise UserError("--max_flops proposes base and target: leave --base and --target out")
    data = run.data
    names = ("padded_vocab_size", "vocab_size")
    vocabulary = {name: getattr(data, name) for name in names} if isinstance(data, PreparedText) else {}
    given = {"--data": data is not None, "options of growth": growth != Growth()}
    typed = [what for what, is_given in given.items() if is_given]
    return told(max_flops, propose(max_flops, growth, run.train.max_seq_length, **vocabulary), typed)


def _check_free(path: Path) -> None:
    """Raise a UserError for what a plan would replace and that is none."""
    if not path.exists():
        return
    with suppress(OSError, ValueError, TypeError):
        held = set(loads(path.read_text(encoding="utf-8")))
        if {"base", "target", "steps", "parameter_growth"} <= held or held == {"max_flops", "proposals"}:
            return
    raise UserError(f"--json {str(path)!r} is there and holds no plan: choose another file")
