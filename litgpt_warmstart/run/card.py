"""README.md of an exported folder: the model card that the Hub shows, made from the checkpoint's record.

It tells nothing of the machine: no path, no name of a user, no command line.
"""

import hashlib
import re
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # pyright: ignore[reportPrivateImportUsage]

from litgpt_warmstart.data.use import DataUse
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.schedule import recorded_schedule
from litgpt_warmstart.run.checkpoint import Header
from litgpt_warmstart.run.metrics import FILE_NAME, read_metrics
from litgpt_warmstart.run.optimizer import recorded_optimizer
from litgpt_warmstart.run.record import Ancestor, Record

CARD = "README.md"
LITGPT = "LitGPT"
"""Stands for transformers' class where the folder is one of LitGPT's."""
UNKNOWN = "not known"
_SEAL = "\n<!-- sha256 of what stands above: "

_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{where}")
model = AutoModelForCausalLM.from_pretrained("{where}")
print(tokenizer.decode(model.generate(**tokenizer("Once", return_tensors="pt"), max_new_tokens=40)[0]))
```
"""
_USE_LITGPT = """\
A LitGPT checkpoint folder: `litgpt generate FOLDER --prompt "Once"`, where FOLDER is this one, downloaded.
"""
_PAPER = ", after [Warmstarting for Scaling Language Models](https://arxiv.org/abs/2411.07340)"


def checked_license(name: str) -> str:
    """A licence by the Hub's identifier; a UserError where it cannot be one. The Hub has the list of them."""
    identifier = name.lower()
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", identifier):
        raise UserError(f"--license {name!r} is no identifier of a licence: give one such as apache-2.0, mit or other")
    return identifier


def model_card(header: Header, parameters: int, architecture: str, license: str | None, repo_id: str | None) -> str:
    """The card of a checkpoint, whose last line is the SHA-256 of what stands above it.

    Args:
        header: The checkpoint.
        parameters: How many it has.
        architecture: transformers' class that loads what is exported, or :data:`LITGPT`.
        license: The Hub's identifier, lower-case.
        repo_id: Where it will be pushed.
    """
    record, config = header.record, header.config
    uses = record.data_uses if record else ()
    data = ModelCardData(
        library_name="litgpt" if architecture == LITGPT else "transformers",
        pipeline_tag="text-generation",
        license=license,
        base_model=hub_name(record.lineage[0]) if record and record.lineage else None,
        datasets=list(dict.fromkeys(filter(None, map(_dataset, uses)))) or None,
        tags=["litgpt", "litgpt-warmstart"],
    )
    told = (
        f"A language model of {parameters:,} parameters ({architecture}: {config.n_layer} layers of width"
        f" {config.n_embd:,}, {config.n_head} heads, {config.padded_vocab_size:,} tokens, context"
        f" {config.block_size:,})."
    )
    use = _USE_LITGPT if architecture == LITGPT else _USE.format(where=repo_id or "FOLDER")
    rest = _of_record(record, _val_loss(header.path, record)) if record else ["It has no record of its training.\n"]
    text = "\n".join([f"---\n{data.to_yaml()}\n---\n", f"# {' '.join(config.name.split())}\n", f"{told}\n", use, *rest])
    return f"{text}{_SEAL}{hashlib.sha256(text.encode()).hexdigest()} -->\n"


def is_as_written(card: Path) -> bool:
    """Whether a card is one of :func:`model_card`, and nobody has changed it since."""
    above, _, digest = card.read_bytes().rpartition(_SEAL.encode())
    return bool(above) and digest.decode(errors="replace") == f"{hashlib.sha256(above).hexdigest()} -->\n"


def hub_name(ancestor: Ancestor) -> str | None:
    """A checkpoint's name on the Hub, where ``litgpt download`` has it from there: its folder is checkpoints/ORG/NAME.

    None of one that a run of this package has made, wherever it lies.
    """
    *_, above, organization, name = ("", "", *PurePath(ancestor.path).parts)
    return repository(f"{organization}/{name}") if above == "checkpoints" and ancestor.data is None else None


def repository(name: Any) -> str | None:
    """A name that a repository on the Hub may have, as it is; None of anything else."""
    with suppress(HFValidationError):
        validate_repo_id(name)
        return name
    return None


def _dataset(use: DataUse) -> str | None:
    return repository(use.init_args.get("repo_id"))


def _of_record(record: Record, val_loss: float | None) -> list[str]:
    """The sections that a record tells: where the weights come from, how they were trained, with what."""
    training, data = record.training, record.data
    tuned_at = f", tuned at n_embd {record.mup_base_config['n_embd']:,}"
    rows: dict[str, Any] = {
        "parametrization": record.parametrization + (tuned_at if record.parametrization != "sp" else ""),
        "learning rate": record.base_lr and f"{record.base_lr:g}",
    }
    if training and data:
        spent = [record.hoffmann_flops, *(ancestor.hoffmann_flops for ancestor in record.lineage)]
        in_all = f", with its lineage's {sum(spent):.4g}" if len(spent) > 1 and all(spent) else ""
        per_param = f"{record.tokens / record.parameters:.2f} per parameter"
        rows |= {
            "schedule": recorded_schedule(training["schedule"]).words,
            "optimizer": recorded_optimizer(training["optimizer"]),
            "batch": f"{record.global_batch_size:,} sequences of {training['block_size']:,} tokens",
            "budget": f"{record.tokens:,} tokens ({per_param}) in {record.step_count:,} steps",
            "Hoffmann FLOPs": f"{record.hoffmann_flops:.4g}{in_all}",
            "data": _source(data),
            "prepared tokens": data.fingerprint and f"{data.fingerprint}, {data.start_token} to {data.stop_token}",
            "precision": training["precision"],
            "seed": training["seed"],
            "validation loss": val_loss and f"{val_loss:.4f} nats per token",
        }
    paper = _PAPER if any(model.growth for model in (*record.lineage, record)) else ""
    pretrained = "The model was pretrained to continue text. " if training else ""
    versions = ", ".join(f"{package} {version}" for package, version in record.versions.items())
    return [
        "## Lineage\n",
        _table(("model", "parameters", "first weights", "tokens", "data", "Hoffmann FLOPs"), _lineage(record)),
        "## Training\n",
        _table(("", ""), [(name, str(value)) for name, value in rows.items() if value is not None]),
        "## Made with\n",
        f"litgpt-warmstart, on LitGPT{paper}. {pretrained}What muP multiplies by while training is in the weights.\n",
        f"Versions: {versions}\n",
    ]


def _lineage(record: Record) -> list[tuple[str, ...]]:
    """A row for each model whose weights are in this one, the oldest first, and one for itself."""
    rows, before = [], ""
    for model in (*record.lineage, record):
        first, tokens, flops = f"those of {before}" if before else "from scratch", "0", "0"
        if model.growth:
            first = f"grown from {before}: {model.growth.told}"
        if model.data:
            tokens, flops = f"{model.tokens:,}", f"{model.hoffmann_flops:.4g}" if model.hoffmann_flops else UNKNOWN
        elif model is not record:  # trained by another program
            first = tokens = flops = UNKNOWN
        rows.append((model.name, f"{model.parameters:,}", first, tokens, _source(model.data), flops))
        before = model.name
    return rows


def _source(use: DataUse | None) -> str:
    """What was read: a repository on the Hub, at its revision, or the kind of data."""
    if use is None:
        return UNKNOWN
    revision = use.init_args.get("revision")
    return (_dataset(use) or use.class_path.rpartition(".")[2]) + (f" at {revision}" if revision else "")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in row)} |\n" for row in cells)


def _val_loss(folder: Path, record: Record | None) -> float | None:
    """The loss at this checkpoint's step, where metrics.csv lies beside its folder as the run has left it."""
    rows = read_metrics(folder.parent / FILE_NAME) if record and record.training else []
    at_its_end = [row for row in rows if record and (row["step"], row["tokens"]) == (record.step_count, record.tokens)]
    return next((row["val_loss"] for row in at_its_end if "val_loss" in row), None)
