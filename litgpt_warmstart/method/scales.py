"""Table 1 of arXiv 2411.07340 as LitGPT configs, and their registration with LitGPT.

All five are LitGPT's pythia block (GPT-NeoX: parallel residual, LayerNorm, biases, rotary on a quarter of each head)
with 6 layers, block size 1024 and GPT-2's 50,257 tokens padded to 50,304. Only the width differs.
"""

import os
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from litgpt.config import Config, configs, name_to_config

from litgpt_warmstart.errors import NotYet, UserError, nearest, one_line
from litgpt_warmstart.parsing import Unreadable, parse, read_yaml

PACKAGE = Path(__file__).parents[1]
"""Where configs/study/cpu/models/ and others lie for those who have no sources."""


class Sizes(NamedTuple):
    """A config's sizes as the numbers they are: LitGPT declares some as ``int | None``, and fills them all in."""

    n_embd: int
    n_head: int
    n_query_groups: int
    head_size: int
    intermediate_size: int
    padded_vocab_size: int
    rope_n_elem: int
    """Channels of a head that are rotated."""

    @classmethod
    def of(cls, config: Config) -> "Sizes":
        """Those of a config."""
        return cls(*(getattr(config, name) for name in cls._fields))

    @property
    def queries_per_group(self) -> int:
        """Heads that share keys and values."""
        return self.n_head // self.n_query_groups

    @property
    def q_rows(self) -> int:
        """Rows of all queries in attn.qkv."""
        return self.n_head * self.head_size

    @property
    def kv_rows(self) -> int:
        """Rows of all keys in attn.qkv, and of all values."""
        return self.n_query_groups * self.head_size


@dataclass(frozen=True)
class Scale:
    """One row of Table 1."""

    short_name: str
    """As typed after ``--target``."""
    n_embd: int
    n_head: int
    base_lr: float | None = None
    """Learning rate tuned at this scale; None where the paper tuned none."""
    global_batch_size: int | None = None
    """Sequences per optimizer step that ``base_lr`` was tuned with."""

    @property
    def name(self) -> str:
        """The LitGPT config name, e.g. ``warmstart-70m``."""
        return f"warmstart-{self.short_name.lower()}"

    @property
    def config(self) -> dict:
        """Arguments of :class:`litgpt.config.Config`."""
        return dict(
            name=self.name,
            hf_config=dict(org="litgpt-warmstart", name=self.name),
            block_size=1024,
            n_layer=6,
            n_embd=self.n_embd,
            n_head=self.n_head,
            vocab_size=50257,
            padded_vocab_size=50304,
        )


SCALES = (
    Scale("5M", n_embd=48, n_head=2, base_lr=0.03, global_batch_size=64),
    Scale("10M", n_embd=96, n_head=6, base_lr=0.01, global_batch_size=64),
    Scale("22M", n_embd=192, n_head=8, base_lr=0.003, global_batch_size=256),
    Scale("35M", n_embd=288, n_head=12),
    Scale("70M", n_embd=512, n_head=16),
)


def register() -> None:
    """Make the scales known to ``litgpt.config``, once: ``Config.from_name`` and ``litgpt pretrain list`` see them."""
    for scale in SCALES:
        if scale.name not in name_to_config:
            configs.append(scale.config)
            name_to_config[scale.name] = scale.config


def find_scale(name: str) -> Scale | None:
    """The scale with this short name or LitGPT name, in any case; None if there is none."""
    return next((s for s in SCALES if name.lower() in (s.short_name.lower(), s.name)), None)


def short_name(name: str) -> str:
    """A scale's name as Table 1 has it; others as they are."""
    return scale.short_name if (scale := find_scale(name)) else name


def resolve_config(target: str, padded_vocab_size: int | None = None, vocab_size: int | None = None) -> Config:
    """The config that ``--target`` names.

    Args:
        target: A short name (``70M``), a LitGPT name, a ``model_config.yaml``, or a folder that holds one.
        padded_vocab_size: Vocabulary of the base or of the data; replaces that of a name. A file keeps its own.
        vocab_size: Tokens in use of ``padded_vocab_size``.

    Raises:
        UserError: Nothing of that name is known, or the file holds no LitGPT config.
    """
    register()
    vocabulary = {}
    if padded_vocab_size is not None:
        vocabulary = dict(padded_vocab_size=padded_vocab_size, vocab_size=vocab_size or padded_vocab_size)
    scale = find_scale(target)
    with suppress(ValueError):
        config: Any = Config.from_name(scale.name if scale else target, **vocabulary)
        return config
    path = Path(target)
    if path.is_dir():
        path = path / "model_config.yaml"
    if path.suffix in (".yaml", ".yml"):
        if not os.path.exists(path) and (PACKAGE / path).is_file():
            path = PACKAGE / path
        if not os.path.exists(path):
            raise NotYet(f"no model config at {str(path)!r}: give a LitGPT name or an existing model_config.yaml")
        return read_config(path)
    scales = [scale.short_name for scale in SCALES]
    kind = NotYet if os.sep in target else UserError  # the folder of a run, perhaps, that is to come
    raise kind(
        f"unknown scale {target!r}: choose one of {', '.join(scales)}, a name from `litgpt pretrain list`, or give the"
        f" path of a model_config.yaml{nearest(target, [*name_to_config, *scales])}"
    )


def read_config(path: Path) -> Config:
    """Read a ``model_config.yaml``.

    Raises:
        UserError: There is no such file, it cannot be read, or it holds no LitGPT config.
    """
    try:
        return checked_config(read_yaml(path), repr(str(path)))
    except Unreadable as error:
        raise UserError(f"{str(path)!r} is not a LitGPT model_config.yaml: {error.reason}") from error


LARGEST_SIZE = 2**31 - 1
LONGEST_NAME = 100
MAY_BE_0 = {"rotary_percentage", "n_expert", "n_shared_expert", "n_expert_per_token", "first_k_dense_replace",
            "n_expert_groups", "n_topk_groups", "n_topk_scores_per_group", "routed_scaling_factor"}  # fmt: skip
"""Numbers of a config that may be 0; none is negative."""
OTHER_TYPES = {
    "attention_scores_scalar": int | float | None,  # muP's may be a fraction, for which LitGPT's own hint is too narrow
    "gelu_approximate": Literal["none", "tanh"],
}


def checked_config(content: dict[str, Any], where: str, kind: str = "a LitGPT model_config.yaml") -> Config:
    """Make a LitGPT config of what a file holds, every field of the type that LitGPT declares, and of a possible size.

    Raises:
        UserError: It has a key or a value that a config has not, or its sizes contradict one another.
    """
    hints = get_type_hints(Config) | OTHER_TYPES

    def wrong(reason: str) -> UserError:
        return UserError(f"{where} is not {kind}: {reason}")

    for name, value in content.items():
        told = f"{name} is {one_line(repr(value), 60)}"
        if name not in hints:
            raise wrong(f"it has no field {one_line(repr(name), 60)}")
        try:
            parse(hints[name], value)
        except Unreadable:
            raise wrong(f"{told}: give {_described(hints[name])}") from None
        if isinstance(value, int | float) and not isinstance(value, bool):
            if value < 0 or (value == 0 and name not in MAY_BE_0):
                raise wrong(f"{told}: give a number above 0")
            if value > LARGEST_SIZE:
                raise wrong(f"{told}: no model is that large")
    if not content.get("rotary_percentage", 0) <= 1:
        raise wrong(f"rotary_percentage is {content['rotary_percentage']}: give a part, at most 1")
    name = content.get("name", "")
    if not name.isprintable() or set(name) & set("/\\") or name.startswith(".") or len(name) > LONGEST_NAME:
        raise wrong(f"name is {one_line(repr(name), 60)}: folders are called by it, so give a plain word")
    given: dict[str, Any] = {field.name: field.default for field in fields(Config)} | content
    for whole, part, needed in (
        ("n_embd", "n_head", given["head_size"] is None),
        ("n_head", "n_query_groups", given["n_query_groups"] is not None),
    ):
        if needed and given[whole] % given[part]:
            raise wrong(f"{whole} {given[whole]} is no multiple of {part} {given[part]}: change one")
    try:
        return Config(**content)
    except Exception as error:  # assertions, and what rarer families demand
        raise wrong(f"{type(error).__name__}: {one_line(error, 120)}") from error


def _described(hint: Any) -> str:
    """A declared type in a user's words."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    if get_origin(hint) is not list and (parts := get_args(hint)):
        return " or ".join(map(_described, parts))
    named = {int: "a whole number", float: "a number (1.0e-05 has a dot)", str: "a word", bool: "true or false",
             dict: "names and values", type(None): "null"}  # fmt: skip
    return named.get(hint, "a list of whole numbers")
