"""A base from Hugging Face: a folder of transformers', or a model of the Hub, made a LitGPT checkpoint in checkpoints/.

JSON and safetensors alone are read: nothing that comes with a model is run, so pickles (``.bin``) stay where they are.
LitGPT's own download prefers those, hence the Hub's client; weights are converted by LitGPT, file by file.
"""

import re
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from litgpt.model import GPT
from litgpt.utils import extend_checkpoint_dir, incremental_save, save_config
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from litgpt_warmstart.data.preparing.hub import model_config, model_files
from litgpt_warmstart.data.tokenizer_files import read_tokenizer_files
from litgpt_warmstart.errors import Busy, UserError, check_may_make, one_line
from litgpt_warmstart.files import atomic_folder, dump_yaml, entries, file_sha256
from litgpt_warmstart.method.model import check_supported
from litgpt_warmstart.parsing import FileName, Unreadable, parse, read_json, read_yaml
from litgpt_warmstart.run.checkpoint import CONFIG, WEIGHTS
from litgpt_warmstart.run.families import HF_CONFIG, HFModel, read_hf_config, write_hf_configs

CHECKPOINTS = Path("checkpoints")
"""Where LitGPT keeps what it has downloaded, below the folder that a command is started in."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MARK = ".warmstart_converted"
"""SHA-256 of the files that a folder was converted from: another model may have the same name."""
BESIDE = ".converted"
"""Where a model is converted whose folder is in checkpoints/ already."""
NO_PICKLES = (
    "pickles (.bin) are not read, as they can run code: save the model by transformers' save_pretrained, which writes"
    " safetensors"
)
ADAPTER = "adapter_config.json"
"""Of peft: what is beside it is added to a model's weights."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

Tensors = dict[str, torch.Tensor]


def litgpt_folder(base: Path, option: str) -> Path:
    """The LitGPT checkpoint folder that an option names; a model of Hugging Face's is converted to one, and that told.

    Args:
        base: A folder, LitGPT's short form of one below checkpoints/, or ORG/NAME on the Hub.
        option: As typed, for messages.

    Raises:
        UserError: The model cannot be had or read, or is none that can be converted; then nothing is written.
    """
    folder = extend_checkpoint_dir(base)
    if (folder / ADAPTER).is_file() and not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{option} {str(base)!r} holds an adapter ({ADAPTER}): merge it into its model by peft's merge_and_unload,"
            " save that, and give its folder"
        )
    if is_hugging_face(folder):
        if CHECKPOINTS.resolve() in folder.resolve().parents:  # fetched by LitGPT, which converts in place
            return _convert(folder, folder)
        destination = CHECKPOINTS / folder.resolve().name
        if destination.is_dir() and entries(destination) and not _made_of(folder, destination):
            raise UserError(
                f"{option} {str(base)!r} would be converted to LitGPT's format in {str(destination)!r}, which holds"
                " another model: rename one of the two folders"
            )
        return destination if (destination / WEIGHTS).is_file() else _convert(folder, destination)
    if (folder / WEIGHTS).is_file() or not names_hub_model(base):
        return folder
    repo_id, what = base.as_posix(), f"{option} {base.as_posix()!r} (no checkpoint folder here)"
    read_hf_config(model_config(repo_id, what), base.name)  # before gigabytes are fetched
    print(f"Fetching {repo_id} from the Hugging Face Hub")
    source = model_files(repo_id, what)
    if not is_hugging_face(source):
        raise UserError(f"{what} has no {SINGLE} on the Hub, or in its cache where that is away; {NO_PICKLES}")
    return _convert(source, CHECKPOINTS / base)


def is_hugging_face(folder: Path) -> bool:
    """Whether a folder holds a model of transformers', and not converted to LitGPT's format."""
    if (folder / WEIGHTS).is_file() or not (folder / HF_CONFIG).is_file():
        return False
    return any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "*.bin", INDEX))


def names_hub_model(base: Path) -> bool:
    """Whether ORG/NAME on the Hub is meant: neither a folder, nor a path into one, nor a file."""
    named = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", base.as_posix()) and base.suffix not in (".yaml", ".yml", ".pth")
    return bool(named) and not base.parent.exists() and base.parent != CHECKPOINTS


def _convert(source: Path, destination: Path) -> Path:
    """Convert a folder of transformers' to LitGPT's format; another process that is at it is waited for."""
    check_may_make(f"{str(source)!r} is converted to LitGPT's format")
    model = read_hf_config(source / HF_CONFIG, destination.name)
    check_supported(model.config)
    shards = _checked(model, _shards(source), source)
    tokenizer = read_tokenizer_files(source)
    to_write = destination / BESIDE if destination.is_dir() else destination
    while not (destination / WEIGHTS).is_file():
        try:
            with atomic_folder(to_write, lambda found: [] if (found / MARK).is_file() else entries(found)) as partial:
                print(
                    f"Converting {str(source)!r} ({model.family.architecture}) to LitGPT's format: {str(destination)!r}"
                )
                with incremental_save(partial / WEIGHTS) as file:
                    file.save(_weights(model, map(_finite, shards), file))
                if tokenizer:
                    tokenizer.write(partial)
                write_hf_configs(partial, model.config, tokenizer)
                save_config(model.config, partial)
                dump_yaml(_sha256(source), partial / MARK)
        except Busy:
            time.sleep(1)
            continue
        if to_write != destination:
            for name in (CONFIG, WEIGHTS):
                (to_write / name).replace(destination / name)
            shutil.rmtree(to_write)
    return destination


def _sha256(source: Path) -> dict[str, Any]:
    return {path.name: file_sha256(path) for path in (source / HF_CONFIG, *_shards(source))}


def _made_of(source: Path, destination: Path) -> bool:
    """Whether a folder was converted from these files."""
    sha256 = _sha256(source)
    with suppress(UserError):
        return (destination / WEIGHTS).is_file() and read_yaml(destination / MARK) == sha256
    return False


def _shards(folder: Path) -> list[Path]:
    """The files of weights that transformers would read; without an index, all."""
    names = [SINGLE] if (folder / SINGLE).is_file() else sorted(path.name for path in folder.glob("*.safetensors"))
    if SINGLE not in names and (folder / INDEX).is_file():
        try:
            names = sorted({*parse(dict[str, FileName], read_json(folder / INDEX).get("weight_map")).values()})
        except Unreadable as error:
            raise UserError(f"{str(folder / INDEX)!r} is damaged: {error.reason}") from error
    if not names:
        raise UserError(f"{str(folder)!r} has no {SINGLE}; {NO_PICKLES}")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(f"{str(folder)!r} lacks {', '.join(missing[:3])}, which its {INDEX} names: copy it again")
    return [folder / name for name in names]


def _weights(model: HFModel, files: Iterable[Tensors], saver: incremental_save | None = None) -> Tensors:
    """Weights by LitGPT's names, of those of several files by transformers'. A readout that was tied is a copy."""
    found: Tensors = {}
    add = model.family.reader(model.config)
    for tensors in files:
        add(found, tensors, saver=saver)
    if model.tied:
        found["lm_head.weight"] = found["transformer.wte.weight"]
    return found


def _checked(model: HFModel, shards: list[Path], source: Path) -> list[Path]:
    """The files in the order in which they can be converted, which is tried here without their values.

    Raises:
        UserError: One is damaged, or together they are not the model's weights.
    """
    held = {shard: _without_values(shard) for shard in shards}
    shards = sorted(shards, key=lambda shard: not any("embed" in name for name in held[shard]))
    told = f"the tensors in {str(source)!r} are not those of its {HF_CONFIG}"
    try:
        weights = _weights(model, (held[shard] for shard in shards))
        layers = {name.split(".")[2] for name in weights if name.startswith("transformer.h.")}
        if len(layers) != model.config.n_layer:
            raise UserError(f"{told}: num_hidden_layers is {model.config.n_layer}, they are {len(layers)}")
        with torch.device("meta"):
            expected = GPT(model.config).state_dict()
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{told}: {one_line(error, 120)}") from error
    readouts = {"lm_head.weight", "embed_out.weight"}
    if not model.tied and not any(readouts & held[shard].keys() for shard in shards):
        raise UserError(f"{told}: lm_head.weight is missing, and they are not tied")
    for name in sorted(expected.keys() | weights.keys()):
        has, wanted = (tensors[name].shape if name in tensors else None for tensors in (weights, expected))
        if has != wanted:
            shapes = [list(shape) if shape else "missing" for shape in (has, wanted)]
            raise UserError(f"{told}: {name} is {shapes[0]}, by {HF_CONFIG} {shapes[1]}")
        if weights[name].dtype not in DTYPES:
            raise UserError(f"{told}: {name} is of {weights[name].dtype}: quantized weights cannot be grown")
    return shards


def _finite(shard: Path) -> Tensors:
    """A file's tensors; a UserError where one that is converted has a NaN or Inf."""
    tensors = load_file(shard)
    for name, tensor in tensors.items():
        is_mask = name.endswith("masked_bias")  # of older GPT-NeoX, -inf in fp16, and no weight
        if tensor.dtype in DTYPES and not is_mask and not torch.isfinite(tensor).all():
            raise UserError(f"{str(shard)!r} holds NaN or Inf in {name}: take an earlier checkpoint of that model")
    return tensors


def _without_values(shard: Path) -> Tensors:
    """A file's tensors on the meta device: name, shape and dtype."""
    try:
        with safe_open(shard, "pt") as file:
            return {name: file.get_tensor(name).to("meta") for name in file.keys()}  # noqa: SIM118  # no dict
    except (SafetensorError, OSError) as error:
        raise UserError(f"{str(shard)!r} cannot be read, it seems cut off or damaged: copy it again") from error
