"""Small models of each family, prepared data, and a way to run commands in this process."""

import gc
import inspect
import logging
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from hypothesis import settings
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.utils import save_config

from litgpt_warmstart.commands import warmstart_scratch
from litgpt_warmstart.data import StdlibText
from litgpt_warmstart.data.loaders import start_method_kept
from litgpt_warmstart.method.growth import Growth, grow
from litgpt_warmstart.method.model import MuGPT
from litgpt_warmstart.method.parametrization import PARAMETRIZATIONS, folding, initial_weights, load_weights
from litgpt_warmstart.run import checkpoint
from litgpt_warmstart.run.build import build_model
from litgpt_warmstart.run.metrics import read_metrics
from litgpt_warmstart.run.spec import EvalArgs, TrainArgs

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
settings.register_profile("untimed", deadline=None)  # speed is a benchmark's, and machines are busy
settings.load_profile("untimed")
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as nohup has it, which commands here would take from us


@pytest.fixture(autouse=True)
def logging_free() -> Iterator[None]:
    """A signal that ends a command in this process may leave logging locked, for which others would wait for ever."""
    yield
    while logging._lock._is_owned():
        logging._lock.release()


REHEARSE = "WARMSTART_REHEARSE"
"""Set to run the tests marked gpu on a CPU, as far as they can be, to find mistakes in them."""
cuda_only = pytest.mark.skipif(REHEARSE in os.environ, reason="a CPU has nothing of it")
"""For those of them that cannot be."""


def shows_gpus(markers: str) -> bool:
    """Whether pytest's ``-m`` lets tests marked gpu run, and no others."""
    return " or " not in markers and "gpu" in markers.split(" and ")


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from all but ``-m gpu``, before anything has asked for them: these tests, and what they start."""
    if not shows_gpus(config.getoption("markexpr")):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_finish() -> None:
    """Have the collector of garbage pass over what is imported: a look at all of it takes longer than most tests."""
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Say of a test marked gpu why it is not run."""
    if item.get_closest_marker("gpu") is None:
        return
    if not shows_gpus(item.config.getoption("markexpr")):
        pytest.skip("run them with -m gpu")
    if not torch.cuda.is_available() and REHEARSE not in os.environ:
        pytest.skip("needs a CUDA device")


def neox(n_embd: int = 16, n_head: int = 2, **changes: object) -> Config:
    """GPT-NeoX, as the scales: parallel residual, LayerNorm, biases, rotary on a part of each head."""
    settings = dict(name=f"neox-{n_embd}", block_size=64, n_layer=2, n_embd=n_embd, n_head=n_head,
                    vocab_size=96, padded_vocab_size=96, rotary_percentage=0.5)  # fmt: skip
    return Config(**(settings | changes))


def llama(n_embd: int = 16, n_head: int = 4, **changes: object) -> Config:
    """LLaMA: RMSNorm, SwiGLU, query groups, no biases, rotary on whole heads."""
    settings = dict(name=f"llama-{n_embd}", n_query_groups=2, rotary_percentage=1.0, parallel_residual=False,
                    bias=False, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP",
                    intermediate_size=3 * n_embd)  # fmt: skip
    return neox(n_embd, n_head, **(settings | changes))


FAMILIES: dict[str, Callable[..., Config]] = {
    "neox": neox,
    "llama": llama,
    "qwen3": partial(llama, norm_qk=True),
    "olmo2": partial(llama, norm_qk=True, norm_qk_type="olmo2", post_attention_norm=True, post_mlp_norm=True,
                     norm_1=False, norm_2=False),
    "phi": partial(neox, lm_head_bias=True, shared_attention_norm=True),
}  # fmt: skip
"""Block types with a maker each: (n_embd, n_head) -> Config."""


def build(config: Config, mup_base: Config | None = None, seed: int = 0, **how: Any) -> MuGPT:
    """A MuGPT as training starts with it, on the CPU; its own config is muP's base unless another is given."""
    return build_model(config, mup_base or config, seed, **how)


def randomized(model: MuGPT, seed: int = 1) -> MuGPT:
    """The same model with every parameter random, gains and biases included, as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1 + 0.2)
    return model


def become(source: MuGPT, target: Config, how: Growth, mup_base: Config, name: str = "mup", seed: int = 3) -> MuGPT:
    """The model that training would start with, grown from one that was trained under the same muP base."""
    before, then = (c if PARAMETRIZATIONS[name].is_own_base else mup_base for c in (source.config, target))
    model = build(target, then, parametrization=name)
    foldings = folding(source.config, before, name), folding(model.config, then, name)
    initial = initial_weights(model, then, seed, how, name)
    load_weights(model, grow(source.state_dict(), initial, source.config, model.config, how, foldings, seed))
    return model


TRAIN = TrainArgs(global_batch_size=8, micro_batch_size=4, max_steps=6)
"""A run of seconds."""


def losses(out_dir: Path, column: str = "loss") -> list[float]:
    """A column of a run's metrics."""
    return [row[column] for row in read_metrics(out_dir / "metrics.csv") if column in row]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's weights, the readout unfolded."""
    return checkpoint.read_checkpoint(folder).weights


def assert_same_weights(a: Path, b: Path) -> None:
    """Compare two checkpoints bit for bit."""
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name].view(torch.int32), second[name].view(torch.int32)), name


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that all test processes of a session share; the first that asks for it makes what is in it.

    Args:
        tmp_path_factory: pytest's.
        name: Of the folder, for this session.
        make: Is given the folder, which is empty or not yet there.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, made = root / "shared" / name, root / "shared" / f".{name}.made"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(made.with_suffix(".lock")):
        if not made.exists():
            make(folder)
            made.touch()
    return folder


@pytest.fixture(autouse=True, scope="session")
def stack_without_sources() -> Iterator[None]:
    """jsonargparse 4.41 asks inspect.stack() who has called it, which would read the sources of pytest's 40 frames."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect, "stack", partial(inspect.stack, 0))
        yield


@pytest.fixture(autouse=True)
def starts_processes_as_before() -> Iterator[None]:
    """Stock LitGPT, which a test calls, would leave its way to start processes to the others."""
    with start_method_kept():
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """n_embd -> path of a model_config.yaml: two layers, block size 64, StdlibText's vocabulary."""
    paths = {}
    for n_embd, n_head in ((16, 2), (48, 4)):
        folder = tmp_path_factory.mktemp(f"tiny-{n_embd}")
        save_config(neox(n_embd, n_head, vocab_size=4096, padded_vocab_size=4096), folder)
        paths[n_embd] = str(folder / "model_config.yaml")
    return paths


@pytest.fixture(scope="session")
def tiny_settings(stdlib_path: Path) -> dict:
    """Arguments of ``warmstart`` and ``warmstart_scratch`` for a run of seconds."""
    return dict(data=StdlibText(stdlib_path), precision="32-true", compile=False, logger_name="csv",
                eval=EvalArgs(interval=4, max_iters=10))  # fmt: skip


@pytest.fixture(scope="session")
def base(tiny: dict[int, str], tiny_settings: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint folder of a base of width 16, trained for 10 steps of 8 x 64 tokens."""

    def train(out_dir: Path) -> None:
        steps = TrainArgs(global_batch_size=8, max_steps=10, save_interval=5)
        warmstart_scratch.setup(target=tiny[16], lr=0.02, train=steps, out_dir=out_dir, **tiny_settings)

    return made_once(tmp_path_factory, "base", train) / "final"


@pytest.fixture(scope="session")
def stdlib_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """StdlibText, prepared once."""
    return made_once(tmp_path_factory, "stdlib_text", lambda path: StdlibText(path).prepare_data())


def logits(config: Config, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of twelve tokens, shape (1, 12, classes), as stock LitGPT computes them."""
    model = GPT(config)
    model.load_state_dict(weights)
    return model(torch.arange(12).view(1, 12) % 90)


def made(config: Config) -> dict[str, torch.Tensor]:
    """Random weights of a model, the same at each call."""
    torch.manual_seed(0)
    return {name: torch.randn(w.shape) * 0.3 for name, w in GPT(config).state_dict().items()}


@pytest.fixture
def refused(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Call a command with what it refuses; gives the one line that it ends with."""

    def call(command: Callable[..., object], *given: object, **arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            command(*given, **arguments)
        (line,) = capsys.readouterr().err.splitlines()
        assert stopped.value.code == 1 and line.startswith("litgpt warmstart")
        return line

    return call
