"""warmstart.yaml: where a checkpoint's weights come from and what they have seen."""

import hashlib
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, with_config
from typing_extensions import TypedDict  # the standard library's, which pydantic takes from Python 3.12 on

from litgpt_warmstart.data.use import DataUse
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import dump_yaml, file_sha256
from litgpt_warmstart.method.growth import Grown
from litgpt_warmstart.method.parametrization import ParametrizationName
from litgpt_warmstart.method.scales import checked_config
from litgpt_warmstart.method.schedule import recorded_schedule
from litgpt_warmstart.parsing import Count, Finite, Positive, Size, Unreadable, parse, read_yaml

FORMAT_VERSION = 5
"""3: the attention factor is folded into lit_model.pth, and the record has the files' SHA-256. 4: it has the run's
identity. 5: a growth has an operator, says which entries are perturbed, and may be shrunk by class; branches may be
divided, which lit_model.pth then has folded in, too."""
OLDEST_VERSION = 1
_STRICT = {"extra": "forbid"}


@dataclass(frozen=True)
class Ancestor:
    """A checkpoint that a run's weights come from."""

    __pydantic_config__ = _STRICT

    name: str
    path: str
    sha256: str
    """Of its lit_model.pth."""
    parameters: Size
    tokens: Count = 0
    matmul_flops: int = 0
    data: DataUse | None = None
    growth: Grown | None = None
    """How its own first weights came from the ancestor before it."""
    hoffmann_flops: int = 0
    """0 where an older version wrote the record."""


def _is_schedule(content: dict[str, Any]) -> dict[str, Any]:
    recorded_schedule(content)
    return content


class GridSearch(TypedDict):
    """The grid that a checkpoint has won."""

    lrs: list[Positive]
    batch_sizes: list[Size]
    seeds: Size
    val_loss: Finite
    run: str


@with_config({"extra": "allow"})
class Training(TypedDict, total=False):
    """What decided a run's course; nothing where a checkpoint was only grown."""

    command_line: list[str]
    schedule: Annotated[dict[str, Any], AfterValidator(_is_schedule)]
    """Of :class:`litgpt_warmstart.method.schedule.Schedule`."""
    optimizer: str | dict[str, Any]
    scale_eps: bool
    max_norm: Positive | None
    block_size: Size
    micro_batch_size: Size
    loss_impl: str
    max_tokens: Count
    precision: str
    seed: int
    devices: Size
    device: str
    grid_search: GridSearch


def _is_training(content: dict[str, Any]) -> dict[str, Any]:
    parse(Training, content)
    return content


@dataclass(frozen=True)
class Record:
    """``warmstart.yaml``: what a later run has to know about a checkpoint."""

    __pydantic_config__ = _STRICT

    command: str
    name: str
    parameters: Size
    parametrization: ParametrizationName
    mup_base_config: dict[str, Any]
    """LitGPT config of the model whose learning rate was tuned."""
    width_mult: Positive
    """n_embd over that of ``mup_base_config``; lit_model.pth's readout is divided by it."""
    base_lr: Positive | None
    global_batch_size: Size | None
    """Sequences per optimizer step."""
    attention_scores_scalar: Positive | None = None
    """What the model's scores were divided by the root of while training; lit_model.pth has it folded in, and its
    model_config.yaml none. None for head_size, and in a record of format version 2, whose config has it."""
    branch_divisor: Positive = 1.0
    """What attention and MLP added to the residual stream was divided by while training; lit_model.pth has it folded
    in."""
    tokens: Count = 0
    """Tokens trained on in this run."""
    step_count: Count = 0
    matmul_flops: int = 0
    """FLOPs spent in this run, by :func:`litgpt_warmstart.method.flops.matmul_flops_per_token`."""
    hoffmann_flops: int = 0
    """By :func:`litgpt_warmstart.method.flops.hoffmann_flops_per_token`; 0 where an older version wrote the record."""
    data: DataUse | None = None
    growth: Grown | None = None
    lineage: tuple[Ancestor, ...] = ()
    """Oldest first, without this run."""
    training: Annotated[dict[str, Any], AfterValidator(_is_training)] = field(default_factory=dict)
    """Schedule, optimizer, precision, seed and the like of this run."""
    identity: dict[str, Any] = field(default_factory=dict)
    """What the run is, see :meth:`litgpt_warmstart.run.spec.RunSpec.identity`, for whoever reads the file. Older
    versions wrote none, so :func:`litgpt_warmstart.run.identity.recorded_identity` tells it from the other entries."""
    versions: dict[str, str] = field(default_factory=dict)
    tokenizer_sha256: str | None = None
    """Of what the folder's tokenizer gives, see :attr:`litgpt_warmstart.data.tokenizer_files.TokenizerFiles.sha256`."""
    sha256: dict[str, str] = field(default_factory=dict)
    """Of the folder's files that decide what it is, by name; nothing where an older version wrote the record."""
    format_version: int = FORMAT_VERSION

    @property
    def data_uses(self) -> tuple[DataUse, ...]:
        """Everything that these weights have seen, oldest first."""
        return tuple(d for d in (*(a.data for a in self.lineage), self.data) if d)

    @property
    def lineage_hoffmann_flops(self) -> float:
        """Of all training before this run; NaN where an older version's entry does not tell."""
        return sum((ancestor.hoffmann_flops or math.nan for ancestor in self.lineage), 0.0)

    def save(self, path: Path) -> None:
        """Write the record as YAML, and below it, as a comment, the SHA-256 of all that stands above."""
        dump_yaml(asdict(self) | {"lineage": [asdict(ancestor) for ancestor in self.lineage]}, path)
        digest = file_sha256(path)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{_DIGEST}{digest}\n")

    @classmethod
    def load(cls, path: Path) -> "Record":
        """Read a record, and check its types: what it says may then be relied on.

        Raises:
            UserError: The file is damaged, may not be read, or is of a newer format version.
        """
        try:
            content = read_yaml(path)
            found = content.get("format_version")
            if not isinstance(found, int) or found < OLDEST_VERSION:
                raise Unreadable(f"format_version: {found!r}")
            if found > FORMAT_VERSION:
                raise UserError(
                    f"{str(path)!r} has format version {found}, this litgpt-warmstart reads up to {FORMAT_VERSION}:"
                    " upgrade it"
                )
            record = parse(cls, content)
            if _changed(path):
                raise Unreadable(
                    f"it is not as it was saved; if you meant to change it, remove its last line, {_DIGEST}…"
                )
            if record.training and (missing := _NEEDED - record.training.keys()):
                raise Unreadable(f"training lacks {', '.join(sorted(missing))}")
            if record.training and None in (record.data, record.base_lr, record.global_batch_size):
                raise Unreadable("it was trained without data, base_lr or global_batch_size")
            mup_base = checked_config(record.mup_base_config, f"mup_base_config in {str(path)!r}")
            return replace(record, mup_base_config=asdict(mup_base))  # with what it leaves out
        except Unreadable as error:
            raise UserError(
                f"{str(path)!r} is damaged ({error.reason}): restore it, or delete it to use the folder as a plain"
                " LitGPT checkpoint"
            ) from error


_DIGEST = "# sha256: "


def _changed(path: Path) -> bool:
    """Whether the comment at the end of a record tells of other content; one that was written anew has none."""
    above, _, digest = path.read_bytes().rpartition(_DIGEST.encode())
    return bool(above) and digest.strip() != hashlib.sha256(above).hexdigest().encode()


_NEEDED = {"schedule", "optimizer", "max_norm", "block_size", "micro_batch_size", "max_tokens", "precision", "seed"}
"""What the record of a run that has trained has said from the beginning."""
