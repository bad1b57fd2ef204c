"""litgpt warmstart_plan: what a warmstart will take, and whether growth that large pays, before it is begun."""

from contextlib import suppress
from json import dumps, loads
from pathlib import Path

from litgpt_warmstart.edge import command, options
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import write_whole
from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.run.resolve import read_base, resolve
from litgpt_warmstart.run.spec import RunArgs


@command
@options("growth", "run")
def setup(
    base: Path | None = None,
    target: str | None = None,
    growth: Growth = Growth(),
    out_dir: Path = Path("out/warmstart"),
    measure: bool = True,
    json: Path | None = None,
    run: RunArgs = RunArgs(),
) -> None:
    """Say what ``litgpt warmstart`` with the same arguments takes: tokens, Hoffmann FLOPs, memory, and time here.

    Time and memory come from a few steps of the real target on random tokens. Nothing is downloaded or prepared, and
    nothing is written but ``--json``. A warmstart's ``--config`` file is a plan's, too. Warns where growth is larger
    than what the literature found to pay, and names the stages instead.

    Arguments:
        base: Folder of the small trained checkpoint: one of ours, or any LitGPT checkpoint.
        target: The wider model: 5M, 10M, 22M, 35M, 70M, a LitGPT name, or the path of a model_config.yaml. A name
            takes the base's vocabulary.
        out_dir: A warmstart's; taken so that its arguments are a plan's, which writes nothing there.
        measure: Whether to build the target and time it; without, memory is that of weights, gradients and optimizer.
        json: Optional file to write the plan to, too.
    """
    from litgpt_warmstart.run.plan import make_plan

    start = read_base(base)
    spec = resolve("warmstart", target, start, growth, out_dir, run, {})
    if json is not None:
        _check_free(json)
    told, figures = make_plan(spec, start, measure)
    print(told)
    if json is not None:
        try:
            json.parent.mkdir(parents=True, exist_ok=True)
            write_whole(json, dumps(figures, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"cannot write --json {str(json)!r}: {error.strerror}: choose another file") from error


def _check_free(path: Path) -> None:
    """Raise a UserError for what a plan would replace and that is none."""
    if not path.exists():
        return
    with suppress(OSError, ValueError, TypeError):
        if {"base", "target", "steps", "parameter_growth"} <= set(loads(path.read_text(encoding="utf-8"))):
            return
    raise UserError(f"--json {str(path)!r} is there and holds no plan: choose another file")
