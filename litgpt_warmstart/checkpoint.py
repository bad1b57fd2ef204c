"""LitGPT checkpoint folders plus our record: safe loads, atomic writes.

final/
  lit_model.pth          raw LitGPT weights, the readout's 1/width_mult folded in: stock LitGPT reads them
  model_config.yaml      carries muP's attention_scores_scalar
  hyperparameters.yaml   the command's arguments, for --config
  tokenizer files        as LitGPT has them
  warmstart.yaml         the record: where the weights come from and what they have seen
  training_state.pth     what only training needs: unfolded readout, optimizer, counters, random states
"""

import pickle
import platform
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config
from litgpt.scripts.convert_hf_checkpoint import qkv_reassemble
from litgpt.utils import copy_config_files, incremental_save, save_config

from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.files import atomic_folder, dump_yaml, entries, file_sha256, older_folder, others
from litgpt_warmstart.record import Ancestor, Record

WEIGHTS, CONFIG, RECORD, STATE = "lit_model.pth", "model_config.yaml", "warmstart.yaml", "training_state.pth"
HYPERPARAMETERS = "hyperparameters.yaml"
FILES = (
    WEIGHTS, CONFIG, RECORD, STATE, HYPERPARAMETERS, "config.json", "generation_config.json", "tokenizer.json",
    "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
)  # fmt: skip
"""What a checkpoint folder of ours may hold."""
UNFOLDED_READOUT = "lm_head.weight"


@dataclass(frozen=True)
class Header:
    """What a checkpoint folder says of itself, without its weights; ours or stock LitGPT's."""

    path: Path
    config: Config
    record: Record | None
    """None for a folder that this package did not write."""

    @property
    def mup_base_config(self) -> Config:
        """Where the learning rate was tuned; a foreign checkpoint's own shapes."""
        return Config(**self.record.mup_base_config) if self.record else self.config

    @property
    def tokenizer_dir(self) -> Path | None:
        """The folder itself if it holds a tokenizer."""
        return (
            self.path if any((self.path / name).is_file() for name in ("tokenizer.json", "tokenizer.model")) else None
        )


@dataclass(frozen=True)
class Checkpoint(Header):
    """A checkpoint folder, read."""

    weights: dict[str, torch.Tensor]
    """Memory-mapped, by LitGPT name, with the readout unfolded under :attr:`mup_base_config`."""

    def weights_under(self, mup_base: Config) -> dict[str, torch.Tensor]:
        """The weights for training under a muP base: the same logits, whichever base they were trained under.

        MuGPT divides logits by ``n_embd / mup_base.n_embd``; under another base the readout is rescaled to match.
        """
        if mup_base.n_embd == self.mup_base_config.n_embd:
            return self.weights
        readout = self.weights[UNFOLDED_READOUT] * (self.mup_base_config.n_embd / mup_base.n_embd)
        return {**self.weights, UNFOLDED_READOUT: readout}

    def ancestors(self) -> tuple[Ancestor, ...]:
        """The lineage of a run that starts from this checkpoint: this one last, unless it was only grown."""
        earlier = self.record.lineage if self.record else ()
        if self.record and not self.record.tokens:
            return earlier
        this = Ancestor(
            name=self.config.name,
            path=str(self.path),
            sha256=file_sha256(self.path / WEIGHTS),
            parameters=sum(weight.numel() for weight in self.weights.values()),
            tokens=self.record.tokens if self.record else 0,
            matmul_flops=self.record.matmul_flops if self.record else 0,
            hoffmann_flops=self.record.hoffmann_flops if self.record else 0,
            data=self.record.data if self.record else None,
            growth=self.record.growth if self.record else None,
        )
        return (*earlier, this)


def read_header(path: Path, what: str = "base") -> Header:
    """Read a checkpoint folder's config and record.

    Args:
        path: The folder.
        what: What the folder is to the user, for messages.

    Raises:
        UserError: The folder is missing, no checkpoint, or one of the two files is damaged.
    """
    if not path.is_dir():
        raise UserError(f"{what} folder {str(path)!r} does not exist: give the folder of a LitGPT checkpoint")
    missing = [name for name in (WEIGHTS, CONFIG) if not (path / name).is_file()]
    if missing:
        hint = "give its final/ or step-*/ folder" if any(path.glob("*/" + WEIGHTS)) else "give a LitGPT checkpoint"
        raise UserError(f"{what} {str(path)!r} is not a checkpoint folder, {missing[0]} is missing: {hint}")
    try:
        config = Config.from_file(path / CONFIG)
    except Exception as error:  # yaml, TypeError of an unknown key, assertions of Config
        raise UserError(f"{str(path / CONFIG)!r} is not a LitGPT config: {one_line(error)}") from error
    return Header(path, config, Record.load(path / RECORD) if (path / RECORD).is_file() else None)


def read_checkpoint(path: Path, what: str = "base") -> Checkpoint:
    """Read a checkpoint folder: config, record, and weights memory-mapped, with the readout unfolded.

    Args:
        path: The folder.
        what: What the folder is to the user, for messages.

    Raises:
        UserError: As :func:`read_header`; or the weights are cut off, carry pickled code, or hold a NaN or Inf.
    """
    header = read_header(path, what)
    weights = stored_weights(header)
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise UserError(f"{what} {str(path / WEIGHTS)!r} holds NaN or Inf in {name}: take an earlier checkpoint")
    if header.record and header.record.width_mult != 1.0:
        weights[UNFOLDED_READOUT] = _unfolded_readout(path, weights[UNFOLDED_READOUT], header.record.width_mult)
    return Checkpoint(header.path, header.config, header.record, weights)


def stored_weights(header: Header) -> dict[str, torch.Tensor]:
    """The weights as ``lit_model.pth`` has them, the readout folded, memory-mapped, by LitGPT name of today.

    Raises:
        UserError: They are cut off or carry pickled code.
    """
    return dict(_litgpt_names(load_tensors(header.path / WEIGHTS), header.config))


def _unfolded_readout(path: Path, folded: torch.Tensor, width_mult: float) -> torch.Tensor:
    """The readout as trained: exact where the training state is at hand and belongs to the weights."""
    if (path / STATE).is_file():
        unfolded = load_tensors(path / STATE).get(UNFOLDED_READOUT)
        if unfolded is not None and torch.equal(unfolded / width_mult, folded):
            return unfolded
    return folded * width_mult


def _litgpt_names(content: dict[str, Any], config: Config) -> Iterator[tuple[str, torch.Tensor]]:
    content = content.get("model", content)
    for name, weight in content.items():
        name = name.replace("_orig_mod.", "").removeprefix("module.")
        if legacy := re.fullmatch(r"(.*\.attn)\.attn\.(weight|bias)", name):  # older LitGPT
            name, weight = f"{legacy[1]}.qkv.{legacy[2]}", qkv_reassemble(weight, config)
        yield name, weight


def load_tensors(path: Path) -> dict[str, Any]:
    """``torch.load`` of tensors and plain values alone, memory-mapped.

    Raises:
        UserError: The file is missing, cut off, or carries pickled code.
    """
    try:
        try:
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except RuntimeError:  # the format before torch 1.6 cannot be memory-mapped
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{str(path)!r} does not exist") from None
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{str(path)!r} carries pickled code besides tensors, which is not run: if you trust it, load it yourself"
            " and save its state dict alone"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read, it seems cut off or damaged: copy it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{str(path)!r} holds a {type(content).__name__}, not a state dict")
    return content


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages whose code decides a run."""
    found = {"python": platform.python_version()}
    for package in ("litgpt-warmstart", "litgpt", "lightning", "mup", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree
            found[package] = "not installed"
    return found


def save_checkpoint(
    path: Path,
    weights: Iterable[tuple[str, torch.Tensor]],
    config: Config,
    record: Record,
    hyperparameters: dict[str, Any],
    tokenizer_dir: Path | None,
    fold: Callable[[str, torch.Tensor, float], torch.Tensor],
    training_state: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder, whole or not at all.

    Args:
        path: The folder.
        weights: The model's weights as trained, with their LitGPT names, on any device. Each is written before the next
            one is asked for, so that they need not be in memory together.
        config: The model.
        record: Goes into ``warmstart.yaml``.
        hyperparameters: The command's arguments.
        tokenizer_dir: Where tokenizer files are copied from, if there are any.
        fold: Folds the readout's 1/width_mult into a weight.
        training_state: What only training needs; tensors and plain values.
    """
    with atomic_folder(path, foreign_entries) as partial:
        with incremental_save(partial / WEIGHTS) as file:
            written = {}
            for name, weight in weights:
                weight = weight.detach().cpu().contiguous()
                if weight.untyped_storage().nbytes() > weight.nbytes:  # all of a storage is written
                    weight = weight.clone()
                written[name] = file.store_early(fold(name, weight, record.width_mult))
                if name == UNFOLDED_READOUT and record.width_mult != 1.0:
                    training_state = {name: weight, **(training_state or {})}
            file.save(written)
        if training_state:
            torch.save(training_state, partial / STATE)
        if tokenizer_dir is not None:
            copy_config_files(tokenizer_dir, partial)
        save_config(config, partial)
        record.save(partial / RECORD)
        dump_yaml(hyperparameters, partial / HYPERPARAMETERS)


def foreign_entries(folder: Path) -> list[str]:
    """What in a folder is no part of a checkpoint of ours; without a record, all of it."""
    return others(folder, FILES) if (folder / RECORD).is_file() else entries(folder)


def step_folders(out_dir: Path) -> list[Path]:
    """The folders step-<digits>, by their steps; step-best is a user's own."""
    numbered = [(int(f.name[5:]), f) for f in out_dir.glob("step-*") if re.fullmatch(r"step-[0-9]+", f.name)]
    return [folder for _, folder in sorted(numbered)]


def newest_checkpoint(out_dir: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The checkpoint of a run with the most optimizer steps that training can go on from; None without one.

    Folders without a record, and those that were only grown, are no part of a run.

    Returns:
        The folder, and those that cannot be read, each with the reason.
    """
    final = out_dir / "final"
    older = older_folder(final)
    if older.is_dir() and not older.is_symlink() and not final.exists():  # killed between atomic_folder's two renames
        older.rename(final)
    found, unread = [], []
    for folder in (*step_folders(out_dir), final):
        if not (folder / STATE).is_file() or not (folder / RECORD).is_file():
            continue
        try:
            record = Record.load(folder / RECORD)
            if record.training:
                found.append((record.step_count, folder))
        except (UserError, OSError) as error:
            unread.append((folder, one_line(error)))
    return max(found, key=lambda one: (one[0], one[1] == final), default=(0, None))[1], unread
