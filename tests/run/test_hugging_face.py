"""Bases from Hugging Face: tiny models of transformers' own classes, in a folder and on a Hub of our own."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.utils import save_config
from safetensors.torch import load_file, save_file

from litgpt_warmstart.commands import warmstart, warmstart_grow
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import locked, partial_folder
from litgpt_warmstart.method.scales import read_config
from litgpt_warmstart.run import hugging_face
from litgpt_warmstart.run.resolve import read_base
from litgpt_warmstart.run.spec import TrainArgs
from tests.conftest import losses
from tests.data.hub_server import Hub, Repository, serve

SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, vocab_size=4096,
             max_position_embeddings=64, pad_token_id=None)  # fmt: skip
GROUPS = dict(num_key_value_heads=2)
ROTATION = dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=32)  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "pythia-tiny": ("GPTNeoX", {}),
    "Llama-3.2-tiny": ("Llama", GROUPS | dict(rope_parameters=ROTATION)),
    "SmolLM2-tiny": ("Llama", GROUPS | dict(tie_word_embeddings=True)),
    "Qwen2.5-tiny": ("Qwen2", GROUPS | dict(tie_word_embeddings=True)),
    "Qwen3-tiny": ("Qwen3", GROUPS | dict(head_dim=16)),
    "OLMo-2-tiny": ("Olmo2", {}),
    "phi-tiny": ("Phi", {}),
    "Phi-3-tiny": ("Phi3", {}),
}
"""Name -> transformers' class, without ForCausalLM, and what its config has beside the sizes."""


SHARD, INDEX = "model-00001-of-00002.safetensors", "model.safetensors.index.json"
"""Of a folder with several files."""


def contents(folder: Path) -> dict[str, bytes]:
    """Path -> bytes of every file beneath a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit(folder: Path, name: str = "config.json", **changes: object) -> None:
    """Change entries of a JSON file."""
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))


def made(kind: str, **settings: Any) -> Any:
    """A model of transformers' with random weights, gains and biases included."""
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**SIZES | settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.1 + 0.05)
    return model.eval()


def tokens() -> torch.Tensor:
    return torch.randint(4096, (2, 40), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def stock_logits(folder: Path) -> torch.Tensor:
    """As LitGPT computes them of a checkpoint folder."""
    model = GPT(Config.from_file(folder / "model_config.yaml")).eval()
    model.load_state_dict(torch.load(folder / "lit_model.pth", weights_only=True))
    return model(tokens())


@torch.no_grad()
def hf_logits(model: Any) -> torch.Tensor:
    return model(tokens()).logits


def assert_close(a: torch.Tensor, b: torch.Tensor, part: float = 1e-5) -> None:
    assert (a - b).abs().max() <= part * b.abs().max()


def wider(folder: Path, target: Path, **changes: int) -> Path:
    """A config of a checkpoint's kind, twice as wide or as changed."""
    config = read_config(folder / "model_config.yaml")
    changes = changes or {
        name: 2 * getattr(config, name) for name in ("n_embd", "n_head", "n_query_groups", "intermediate_size")
    }
    target.mkdir()
    save_config(replace(config, **changes), target)
    return target / "model_config.yaml"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the test stands, with checkpoints/ below it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A folder of transformers', of several files."""
    made("Llama").save_pretrained(tmp_path / "theirs/Llama-tiny", max_shard_size="600KB")
    return tmp_path / "theirs/Llama-tiny"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_told_of_and_nothing_is_left(llama, here, value):
    shard = sorted(llama.glob("*.safetensors"))[-1]
    tensors = load_file(shard)
    name = max(tensors)
    tensors[name].view(-1)[3] = value
    save_file(tensors, shard)
    with pytest.raises(UserError, match=rf"{shard.name}' holds NaN or Inf in {name}: take an earlier"):
        read_base(llama)
    assert list(here.iterdir()) == []
    tensors[name].view(-1)[3] = 0.0
    save_file(tensors, shard)
    assert read_base(llama).config.n_embd == 32


def test_a_mask_of_older_models_may_be_infinite(tmp_path):
    made("GPTNeoX").save_pretrained(tmp_path / "theirs/pythia-tiny")
    file = tmp_path / "theirs/pythia-tiny/model.safetensors"
    save_file(load_file(file) | {"gpt_neox.layers.0.attention.masked_bias": torch.tensor(float("-inf"))}, file)
    assert read_base(tmp_path / "theirs/pythia-tiny").config.n_embd == 32


@pytest.mark.parametrize("name", MODELS)
def test_each_family_grows_with_its_function_kept_and_trains(name, tmp_path, tiny_settings, capsys):
    kind, settings = MODELS[name]
    model, source = made(kind, **settings), tmp_path / name
    model.save_pretrained(source)
    expected = hf_logits(model)
    start = read_base(source)
    assert start.path == Path("checkpoints", name) and str(start.path) in capsys.readouterr().out
    assert_close(stock_logits(start.path), expected)
    target, deeper = wider(start.path, tmp_path / "wide"), wider(start.path, tmp_path / "deep", n_layer=4)
    for operator, into, perturb in (("tile", target, 1.0), ("fpi", target, 0.0), ("blank", deeper, 0.0)):
        growth = dict(operator=operator, shrink=1.0, perturb=perturb)
        warmstart_grow.setup(base=source, target=str(into), out_dir=tmp_path / operator, **growth)
        assert_close(stock_logits(tmp_path / operator), expected, 1e-4)
    train = TrainArgs(global_batch_size=8, micro_batch_size=4, max_steps=2)
    warmstart.setup(base=source, target=str(target), lr=0.01, train=train, out_dir=tmp_path / "run", **tiny_settings)
    assert len(losses(tmp_path / "run")) == 2


@pytest.mark.parametrize(("kind", "settings"), [("Llama", GROUPS), ("Qwen2", GROUPS | dict(tie_word_embeddings=True)),
                                                ("GPTNeoX", dict(tie_word_embeddings=True))])  # fmt: skip
def test_several_files_in_whatever_order_and_a_tied_readout_give_the_same_logits(kind, settings, tmp_path):
    """q, k and v lie in different files, and the embedding in the last."""
    model, source = made(kind, **settings), tmp_path / "tiny"
    model.save_pretrained(source, max_shard_size="8KB")
    index = json.loads((source / "model.safetensors.index.json").read_text())
    first = index["weight_map"][next(name for name in index["weight_map"] if "embed" in name)]
    (source / first).rename(source / "zzz.safetensors")
    renamed = {name: file.replace(first, "zzz.safetensors") for name, file in index["weight_map"].items()}
    (source / "model.safetensors.index.json").write_text(json.dumps(index | {"weight_map": renamed}))
    assert len({*renamed.values()}) > 5
    assert_close(stock_logits(read_base(source).path), hf_logits(model))


def test_weights_stay_in_their_dtype_and_a_config_of_earlier_transformers_is_read(tmp_path):
    model, source = made("Llama", rope_parameters=ROTATION).to(torch.bfloat16), tmp_path / "tiny"
    model.save_pretrained(source)
    content = json.loads((source / "config.json").read_text())
    rope = content.pop("rope_parameters")
    del content["head_dim"], content["num_key_value_heads"]
    older = content | {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    (source / "config.json").write_text(json.dumps(older))
    start = read_base(source)
    assert {weight.dtype for weight in torch.load(start.path / "lit_model.pth").values()} == {torch.bfloat16}
    assert (start.config.rope_base, start.config.n_query_groups, start.config.head_size) == (500_000, 4, 8)
    assert start.config.rope_adjustments == dict(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=32
    )


def test_a_folder_of_the_users_is_only_read_and_converted_once(llama, here, stdlib_path, capsys):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(stdlib_path / name, llama)
    before = contents(llama)
    start = read_base(llama)
    assert capsys.readouterr().out == (
        f"Converting {str(llama)!r} (LlamaForCausalLM) to LitGPT's format: 'checkpoints/Llama-tiny'\n"
    )
    assert contents(llama) == before and contents(here).keys() == {
        f"checkpoints/Llama-tiny/{name}"
        for name in ("lit_model.pth", "model_config.yaml", "config.json", "generation_config.json", "tokenizer.json",
                     "tokenizer_config.json", ".warmstart_converted")
    }  # fmt: skip
    assert start.tokenizer is not None and json.loads((start.path / "config.json").read_text())["eos_token_id"] == 0
    converted = contents(here)
    assert read_base(llama).path == start.path
    assert read_base("Llama-tiny").path == start.path  # LitGPT's short form
    assert contents(here) == converted and capsys.readouterr().out == ""


def test_another_model_of_the_same_name_is_not_taken_for_the_first(llama, tmp_path, here):
    read_base(llama)
    before = contents(here)
    other = tmp_path / "other/Llama-tiny"
    made("Llama", **GROUPS).save_pretrained(other)
    with pytest.raises(
        UserError, match="in 'checkpoints/Llama-tiny', which holds another model: rename one of the two"
    ):
        read_base(other)
    assert contents(here) == before


def test_a_model_in_checkpoints_is_converted_in_its_place(llama, here):
    place = here / "checkpoints/org/Llama-tiny"
    shutil.copytree(llama, place)
    before = contents(place)
    assert read_base("org/Llama-tiny").path == Path("checkpoints/org/Llama-tiny")
    after = contents(place)
    assert after.keys() - before.keys() == {"lit_model.pth", "model_config.yaml"} and before.items() <= after.items()


def test_ctrl_c_leaves_nothing_and_the_same_command_goes_on(llama, here, monkeypatch):
    def interrupted(path):
        raise KeyboardInterrupt

    place = here / "checkpoints/org/Llama-tiny"
    shutil.copytree(llama, place)
    before = contents(here)
    with monkeypatch.context() as patch:
        patch.setattr(hugging_face, "load_file", interrupted)
        for base in (llama, place):
            with pytest.raises(KeyboardInterrupt):
                read_base(base)
    assert contents(here) == before
    assert read_base(llama).path.is_dir() and read_base(place).path.is_dir()


def test_another_process_that_converts_the_same_model_is_waited_for(llama, here, monkeypatch):
    """As processes of torchrun are, which all begin with the base."""
    place, slept = here / "checkpoints/Llama-tiny", []
    partial = partial_folder(place)
    partial.mkdir(parents=True)

    def sleep(seconds):
        slept.append(seconds)
        monkeypatch.setattr(hugging_face.time, "sleep", lambda seconds: None)
        held.__exit__(None, None, None)

    monkeypatch.setattr(hugging_face.time, "sleep", sleep)
    held = locked(partial, "busy")
    held.__enter__()
    assert read_base(llama).path.is_dir() and len(slept) == 1


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (lambda f: (f / SHARD).write_bytes((f / SHARD).read_bytes()[:-10]), f"{SHARD}' cannot be read"),
    "no safetensors": (lambda f: (f / SHARD).write_bytes(b"PK\3\4" + bytes(100)), f"{SHARD}' cannot be read"),
    "missing": (lambda f: (f / SHARD).unlink(), f"lacks {SHARD}, which its model.safetensors.index.json names"),
    "outside": (lambda f: edit(f, INDEX, weight_map={"lm_head.weight": "../x.safetensors"}), "index.json' is damaged"),
    "absolute": (lambda f: edit(f, INDEX, weight_map={"lm_head.weight": "/x.safetensors"}), "index.json' is damaged"),
    "no map": (lambda f: edit(f, INDEX, weight_map=["x"]), "index.json' is damaged"),
    "no json": (lambda f: (f / INDEX).write_text("{"), "index.json' is damaged"),
    "config": (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json' is damaged"),
    "pickles": (lambda f: [p.rename(p.with_suffix(".bin")) for p in f.glob("*.safetensors")] + [(f / INDEX).unlink()],
                r"has no model.safetensors; pickles \(.bin\) are not read"),
    "unknown": (lambda f: edit(f, model_type="mamba"), "'mamba', known are gpt_neox, phi, phi3, llama, qwen2, qwen3, "),
    "no type": (lambda f: edit(f, model_type=["x"]), "known are gpt_neox, "),
    "no size": (lambda f: edit(f, hidden_size=None), "config.json' is damaged: hidden_size: "),
    "word": (lambda f: edit(f, rms_norm_eps="small"), "config.json' is damaged: rms_norm_eps: "),
    "other size": (lambda f: edit(f, intermediate_size=64), "are not those of its config.json: .* by config.json"),
    "layers": (lambda f: edit(f, num_hidden_layers=10**9), "num_hidden_layers is 1000000000, they are 2"),
    "other family": (lambda f: edit(f, model_type="gpt_neox", layer_norm_eps=1e-5, hidden_act="gelu"), "are not those"),
    "bias": (lambda f: edit(f, model_type="qwen2"), "are not those of its config.json: .*attn.qkv.bias"),
    "activation": (lambda f: edit(f, hidden_act="relu"), "config.json' has hidden_act 'relu': no llama known here"),
    "rotation": (lambda f: edit(f, rope_parameters=dict(rope_type="yarn", factor=2.0)), "has rope_type 'yarn'"),
    "rotated": (lambda f: edit(f, rope_parameters=dict(partial_rotary_factor=0.5)), "has rotary_percentage 0.5"),
    "window": (lambda f: edit(f, sliding_window=8), "has sliding_window 8"),
    "theta": (lambda f: edit(f, rope_parameters=dict(rope_theta=1e4 + 0.5)), "rope_base is 10000.5"),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "holds an adapter .*: merge it into its model"),
    "tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "the tokenizer in .* is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_what_cannot_be_read_is_told_before_anything_is_written(what, llama, here):
    damage, told = DAMAGE[what]
    damage(llama)
    before = contents(llama)
    with pytest.raises(UserError, match=told) as error:
        read_base(llama)
    assert "\n" not in str(error.value)
    assert contents(llama) == before and not any(here.iterdir())


def test_a_readout_that_is_missing_is_no_tied_one(tmp_path, here):
    made("Llama", tie_word_embeddings=True).save_pretrained(tmp_path / "tiny")
    edit(tmp_path / "tiny", tie_word_embeddings=False)
    with pytest.raises(UserError, match=r"lm_head.weight is missing"):
        read_base(tmp_path / "tiny")


@pytest.fixture
def hub(llama, tmp_path, monkeypatch) -> Iterator[Hub]:
    """A Hub with the model, its weights as pickles too, and an empty cache."""
    files = {path.name: path.read_bytes() for path in llama.iterdir()}
    others = {"pytorch_model.bin": b"pickled", "onnx/model.safetensors": b"x", "consolidated.safetensors": b"x"}
    with serve(Hub(models={"org/Llama-tiny": Repository(files | others)})) as served:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        yield served


def test_a_model_of_the_hub_is_fetched_and_converted_once(hub, here, capfd):
    start = read_base("org/Llama-tiny")
    assert start.path == Path("checkpoints/org/Llama-tiny")
    told = capfd.readouterr()
    assert "Fetching org/Llama-tiny" in told.out and f"format: {str(start.path)!r}" in told.out and not told.err
    assert_close(stock_logits(start.path), hf_logits(made("Llama")))
    fetched = " ".join(path for _, path, _ in hub.requests)
    assert ".bin" not in fetched and "onnx" not in fetched and "consolidated" not in fetched
    count = len(hub.requests)
    assert read_base("org/Llama-tiny").path == start.path and len(hub.requests) == count


def test_a_folder_with_the_tokenizer_alone_gets_the_weights(hub, here):
    """As ``litgpt download --tokenizer_only`` leaves it."""
    place = here / "checkpoints/org/Llama-tiny"
    place.mkdir(parents=True)
    (place / "mine.txt").write_text("mine")
    read_base("org/Llama-tiny")
    assert contents(place).keys() == {"mine.txt", "lit_model.pth", "model_config.yaml"}


def test_what_the_hub_does_not_give_is_told_with_the_remedy(hub, here, monkeypatch):
    hub.models["org/gated"] = Repository({"config.json": b"{}"}, gated=True, token="hf_x")
    files = hub.models["org/Llama-tiny"].files
    hub.models["org/pickles"] = Repository({name: files[name] for name in ("config.json", "pytorch_model.bin")})
    hub.models["org/mamba"] = Repository({"config.json": b'{"model_type": "mamba"}', "model.safetensors": b"x"})
    hub.models["org/none"] = Repository({"README.md": b"x"})
    for name, told in (
        ("org/gated", "accept its terms on the Hub and set HF_TOKEN"),
        ("org/nothing", r"--base 'org/nothing' \(no checkpoint folder here\) does not exist on .*HF_TOKEN"),
        ("org/pickles", r"has no model.safetensors on the Hub.*pickles \(.bin\) are not read"),
        ("org/mamba", "'mamba', known are"),
        ("org/none", "has no config.json on the Hub"),
    ):
        with pytest.raises(UserError, match=told):
            read_base(name)
    assert "model.safetensors" not in " ".join(path for _, path, _ in hub.requests)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    template = "http://127.0.0.1:1/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    for offline, told in ((False, "cannot reach http"), (True, "HF_HUB_OFFLINE is set: unset it")):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        with pytest.raises(UserError, match=f"{told}.*`litgpt download org/Llama-tiny`"):
            read_base("org/Llama-tiny")
    assert not any(here.iterdir())


def test_a_path_that_leads_nowhere_is_not_asked_of_the_hub(hub, here):
    (here / "out").mkdir()
    for base in ("out/bsae", "nowhere", "a/b/c", "/a/b", "checkpoints/x", "a/model_config.yaml"):
        with pytest.raises(UserError, match="does not exist"):
            read_base(base)
    assert not hub.requests
