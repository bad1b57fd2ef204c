"""LitGPT checkpoint folders plus our record: safe loads, atomic writes.

final/
  lit_model.pth          plain LitGPT weights in fp32, what muP changes folded in: stock LitGPT reads them (folding.py)
  model_config.yaml      their LitGPT config, its name beginning as its family's do (families.py)
  config.json, generation_config.json    the same for transformers, where it has the family
  hyperparameters.yaml   the command's arguments, for --config
  tokenizer files        as LitGPT has them
  warmstart.yaml         the record: where the weights come from and what they have seen
  training_state.pth     what only training needs: what was folded, as trained; optimizer, counters, random states
"""

import math
import platform
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from litgpt.config import Config
from litgpt.scripts.convert_hf_checkpoint import qkv_reassemble
from litgpt.utils import incremental_save, save_config

from litgpt_warmstart.data.tokenizer_files import NAMES as TOKENIZER_FILES
from litgpt_warmstart.data.tokenizer_files import TokenizerFiles, read_tokenizer_files
from litgpt_warmstart.errors import NotYet, UserError
from litgpt_warmstart.files import atomic_folder, dump_yaml, entries, file_sha256, others
from litgpt_warmstart.method.folding import Folding, attention_scores_scalar, without_attention
from litgpt_warmstart.method.parametrization import PARAMETRIZATIONS, branch_divisor, width_mult
from litgpt_warmstart.method.scales import read_config
from litgpt_warmstart.run.families import GENERATION_CONFIG, HF_CONFIG, litgpt_name, write_hf_configs
from litgpt_warmstart.run.record import Ancestor, Record

WEIGHTS, CONFIG, RECORD, STATE = "lit_model.pth", "model_config.yaml", "warmstart.yaml", "training_state.pth"
HYPERPARAMETERS = "hyperparameters.yaml"
DECISIVE = (WEIGHTS, STATE, CONFIG)
"""Files whose SHA-256 the record has: a flipped bit in one of them would be trained on."""
FILES = (
    WEIGHTS, CONFIG, RECORD, STATE, HYPERPARAMETERS, HF_CONFIG, GENERATION_CONFIG, *TOKENIZER_FILES,
    "special_tokens_map.json",
)  # fmt: skip
"""What a checkpoint folder of ours may hold."""


@dataclass(frozen=True)
class Header:
    """What a checkpoint folder says of itself, without its weights; ours or stock LitGPT's."""

    path: Path
    config: Config
    """The model, with the ``attention_scores_scalar`` that its weights were trained under."""
    record: Record | None
    """None for a folder that this package did not write."""

    @property
    def mup_base_config(self) -> Config:
        """Where the learning rate was tuned; a foreign checkpoint's own shapes."""
        return Config(**self.record.mup_base_config) if self.record else self.config

    @property
    def tokenizer(self) -> TokenizerFiles | None:
        """The folder's tokenizer, read; None where it has none. Raises a UserError where it is damaged."""
        return read_tokenizer_files(self.path, self.record and self.record.tokenizer_sha256)

    @property
    def trained_under(self) -> Folding:
        """What the model's forward pass did beside LitGPT's while it was trained."""
        record = self.record
        return Folding(self.config, record.width_mult, record.branch_divisor) if record else Folding(self.config)

    @property
    def folded(self) -> Folding:
        """What of that is in ``lit_model.pth``: all; the readout alone by a record of version 2; else nothing."""
        if self.record is None:
            return without_attention(Folding(self.config))
        return self.trained_under if self.record.format_version > 2 else without_attention(self.trained_under)

    def check_files(self) -> None:
        """See :func:`check_files`; of a folder that this package did not write nothing is known."""
        if self.record:
            check_files(self.path, self.record)


@dataclass(frozen=True)
class Checkpoint(Header):
    """A checkpoint folder, read."""

    weights: dict[str, torch.Tensor]
    """By LitGPT name, as trained: nothing is folded in. Memory-mapped where nothing was."""

    def weights_under(self, other: Folding) -> dict[str, torch.Tensor]:
        """The weights for training on under another folding, as of another muP base: the same logits."""
        return {name: self.trained_under.under(other, name, weight) for name, weight in self.weights.items()}

    def ancestors(self) -> tuple[Ancestor, ...]:
        """The lineage of a run that starts from this checkpoint: this one last, unless it was only grown."""
        earlier = self.record.lineage if self.record else ()
        if self.record and not self.record.tokens:
            return earlier
        told = ("tokens", "matmul_flops", "hoffmann_flops", "data", "growth")
        this = Ancestor(
            name=self.config.name,
            path=str(self.path),
            sha256=file_sha256(self.path / WEIGHTS),
            parameters=sum(weight.numel() for weight in self.weights.values()),
            **({name: getattr(self.record, name) for name in told} if self.record else {}),
        )
        return (*earlier, this)


def check_files(folder: Path, record: Record) -> None:
    """Raise a UserError where a file has changed since it was saved; one that was deleted is not missed."""
    for name, sha256 in record.sha256.items():
        path = folder / name
        if name in DECISIVE and path.is_file() and file_sha256(path) != sha256:
            if path.suffix == ".pth":
                load_tensors(path)  # raises where it can tell more
            raise UserError(
                f"{str(path)!r} is not as it was saved (its SHA-256 differs from {RECORD}'s): restore it, or delete"
                f" {RECORD} to use the folder as a plain LitGPT checkpoint"
            )


def read_header(path: Path, what: str = "base") -> Header:
    """Read a checkpoint folder's config and record; ``what`` it is to the user goes into messages.

    Raises:
        UserError: The folder is missing, no checkpoint, or one of the two files is damaged or may not be read.
    """
    try:
        if not path.is_dir():
            raise NotYet(
                f"{what} folder {str(path)!r} does not exist: give a checkpoint's folder, LitGPT's or transformers', or"
                " ORG/NAME of a model on the Hugging Face Hub"
            )
        missing = [name for name in (WEIGHTS, CONFIG) if not (path / name).is_file()]
        if missing:
            hint = "give its final/ or step-*/ folder" if any(path.glob("*/" + WEIGHTS)) else "give a LitGPT checkpoint"
            raise UserError(f"{what} {str(path)!r} is not a checkpoint folder, {missing[0]} is missing: {hint}")
        config = read_config(path / CONFIG)
        if not (path / RECORD).is_file():
            return Header(path, config, None)
    except OSError as error:  # a folder that may not be searched
        raise UserError(f"{what} {str(path)!r} is unreadable: {error.strerror}") from error
    record = Record.load(path / RECORD)
    mup_base = Config(**record.mup_base_config)
    scalar = record.attention_scores_scalar if record.format_version > 2 else config.attention_scores_scalar
    expected_scalar = attention_scores_scalar(config, mup_base, PARAMETRIZATIONS[record.parametrization].scores)
    for name, has, told in (
        ("width_mult", width_mult(config, mup_base, record.parametrization), record.width_mult),
        ("branch_divisor", branch_divisor(config, mup_base, record.parametrization), record.branch_divisor),
        ("attention_scores_scalar", expected_scalar, scalar or config.head_size or 0),
    ):
        if not math.isclose(has, told):
            raise UserError(
                f"{str(path / RECORD)!r} is damaged: {name} is {told:g}, by {CONFIG} and mup_base_config {has:g}:"
                " restore it, or delete it to use the folder as a plain LitGPT checkpoint"
            )
    return Header(path, replace(config, name=record.name, attention_scores_scalar=scalar), record)


def weights_sha256(path: Path) -> str | None:
    """SHA-256 of a checkpoint folder's weights; None where there are none yet."""
    weights = path / WEIGHTS
    return file_sha256(weights) if weights.is_file() else None


def read_checkpoint(path: Path, what: str = "base") -> Checkpoint:
    """Read a checkpoint folder: config, record, and the weights as they were trained; see :func:`read_header`.

    Raises:
        UserError: As :func:`read_header`; or a file has changed since it was saved, the weights are cut off, carry
            pickled code, or hold a NaN or Inf.
    """
    header = read_header(path, what)
    header.check_files()
    folded = stored_weights(header)
    for name, weight in folded.items():
        if not torch.isfinite(weight).all():
            raise UserError(f"{what} {str(path / WEIGHTS)!r} holds NaN or Inf in {name}: take an earlier checkpoint")
    state = load_tensors(path / STATE) if (path / STATE).is_file() else {}
    kept = {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    weights = {name: header.folded.unfold(name, weight, kept.get(name)) for name, weight in folded.items()}
    return Checkpoint(header.path, header.config, header.record, weights)


def stored_weights(header: Header) -> dict[str, torch.Tensor]:
    """The weights as ``lit_model.pth`` has them, memory-mapped, by LitGPT name of today.

    Raises:
        UserError: They are cut off, carry pickled code, or are no weights.
    """
    path = header.path / WEIGHTS
    weights = dict(_litgpt_names(load_tensors(path), header.config))
    for name, weight in weights.items():
        if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
            raise UserError(f"{str(path)!r} holds {name!r}, which is no weight: give a LitGPT checkpoint")
    return weights


def _litgpt_names(content: dict[str, Any], config: Config) -> Iterator[tuple[str, torch.Tensor]]:
    """A state dict's entries by LitGPT's names of today, without what compiling and wrapping put before them."""
    content = content.get("model", content)
    for name, weight in content.items() if isinstance(content, dict) else ():
        name = str(name).replace("_orig_mod.", "").removeprefix("module.")
        if legacy := re.fullmatch(r"(.*\.attn)\.attn\.(weight|bias)", name):  # older LitGPT
            name, weight = f"{legacy[1]}.qkv.{legacy[2]}", torch.as_tensor(qkv_reassemble(weight, config))
        yield name, weight


def load_tensors(path: Path) -> dict[str, Any]:
    """``torch.load`` of tensors and plain values alone, memory-mapped.

    Raises:
        UserError: The file is missing, cut off, no checkpoint, or carries pickled code.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if len(start) == 4 and not start.startswith((b"PK", b"\x80")):  # a zip archive or, before torch 1.6, a pickle
            raise UserError(f"{str(path)!r} is no file of torch's: give a checkpoint that torch.save wrote")
        try:
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except RuntimeError:  # the format before torch 1.6 cannot be memory-mapped
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError) as error:
        raise UserError(f"{str(path)!r} is unreadable: {error.strerror}") from error
    except UnpicklingError as error:
        raise UserError(
            f"{str(path)!r} carries pickled code besides tensors, which is not run: if you trust it, load it yourself"
            " and save its state dict alone"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        raise UserError(f"{str(path)!r} cannot be read, it seems cut off or damaged: copy it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{str(path)!r} holds a {type(content).__name__}, not a state dict")
    return content


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages whose code decides a run."""
    found = {"python": platform.python_version(), "litgpt-warmstart": "not installed"}  # run from a source tree
    for package in ("litgpt-warmstart", "litgpt", "lightning", "mup", "torch"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def save_checkpoint(
    path: Path,
    weights: Iterable[tuple[str, torch.Tensor]],
    config: Config,
    record: Record,
    hyperparameters: dict[str, Any],
    tokenizer: TokenizerFiles | None,
    training_state: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder, whole or not at all.

    Args:
        path: The folder.
        weights: The model's weights as trained, with their LitGPT names, on any device. Each is written before the next
            one is asked for, so that they need not be in memory together.
        config: The model, with the ``attention_scores_scalar`` that the weights were trained under.
        record: Goes into ``warmstart.yaml``; what it says of config, versions and files is filled in here.
        hyperparameters: The command's arguments.
        tokenizer: Copied, if there is one.
        training_state: What only training needs; tensors and plain values.
    """
    folding = Folding(config, record.width_mult, record.branch_divisor)
    plain = replace(config, attention_scores_scalar=None, name=litgpt_name(config))
    with atomic_folder(path, foreign_entries) as partial:
        with incremental_save(partial / WEIGHTS) as file:
            written = {}
            for name, weight in weights:
                weight = weight.detach().cpu().contiguous()
                folded = folding.fold(name, weight)
                if folded.untyped_storage().nbytes() > folded.nbytes:  # all of a storage is written
                    folded = folded.clone()
                written[name] = file.store_early(folded)
                if (kept := folding.rows_as_trained(name, weight)) is not None:
                    training_state = {name: kept.clone(), **(training_state or {})}
            file.save(written)
        if training_state:
            torch.save(training_state, partial / STATE)
        if tokenizer is not None:
            tokenizer.write(partial)
        write_hf_configs(partial, plain, tokenizer)
        save_config(plain, partial)
        sha256 = {name: file_sha256(partial / name) for name in DECISIVE if (partial / name).is_file()}
        told = dict(attention_scores_scalar=config.attention_scores_scalar, versions=installed_versions())
        replace(record, tokenizer_sha256=tokenizer and tokenizer.sha256, sha256=sha256, **told).save(partial / RECORD)
        dump_yaml(hyperparameters, partial / HYPERPARAMETERS)


def foreign_entries(folder: Path) -> list[str]:
    """What in a folder is no part of a checkpoint of ours; without a record, all of it."""
    return others(folder, FILES) if (folder / RECORD).is_file() else entries(folder)
