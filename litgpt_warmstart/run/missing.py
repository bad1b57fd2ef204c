"""What a command cannot do without: all that is missing is said at once, with what to give."""

from litgpt_warmstart.errors import NotYet
from litgpt_warmstart.method.scales import SCALES

REMEDIES = {
    "base": "for --base give the folder of a trained LitGPT checkpoint, or ORG/NAME of a model on the Hugging Face Hub"
    " (litgpt download list has many); where there is none yet, litgpt warmstart_scratch --target 5M --out_dir out/5M"
    " trains one, out/5M/final",
    "checkpoint_dir": "for --checkpoint_dir give the folder of a trained LitGPT checkpoint",
    "target": f"for --target choose one of {', '.join(scale.short_name for scale in SCALES)}, or give a LitGPT name or"
    " a model_config.yaml",
    "out_dir": "for --out_dir give the folder to write",
}
"""What to give for an option that a command cannot do without."""


def check_given(**given: object) -> None:
    """Raise a NotYet that names all that a command cannot do without and that is None, and what to give."""
    if names := [name for name, value in given.items() if value is None]:
        raise missing(*names)


def missing(*names: str) -> NotYet:
    """What to say of options that a command cannot do without."""
    *others, last = (f"--{name}" for name in names)
    named = f"{', '.join(others)} and {last} are" if others else f"{last} is"
    return NotYet(f"{named} missing: {'; '.join(REMEDIES[name] for name in names)}")
