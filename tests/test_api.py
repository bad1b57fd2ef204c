"""The Python API: what docs/api.md shows is run as it stands there, and what is wrong is raised."""

import re
from pathlib import Path
from typing import Literal

import pytest
import torch

import litgpt_warmstart
from litgpt_warmstart import SCALES, Growth, UserError, grow, warmstart
from litgpt_warmstart.edge import options
from litgpt_warmstart.method.model import MuGPT
from litgpt_warmstart.run.checkpoint import read_checkpoint
from tests.conftest import TRAIN, weights

EXAMPLE = Path(__file__).parents[1] / "docs/api.md"


def test_the_documents_example_runs_as_it_stands_there(base, tiny, tiny_settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?from litgpt_warmstart import.*?)```", EXAMPLE.read_text(), re.DOTALL)
    assert len(example.splitlines()) <= 20
    for typed, here in (('"out/5M/final"', repr(str(base))), ('"10M"', repr(tiny[48])), ("50257", "4096")):
        assert typed in example
        example = example.replace(typed, here)
    example = example.replace('out_dir="out/10M"', 'out_dir="out/10M", train=TRAIN, **tiny_settings')
    names: dict = dict(TRAIN=TRAIN, tiny_settings=tiny_settings)
    exec(example, names)
    assert isinstance(names["model"], MuGPT) and names["logits"].shape == (1, 16, 4096)
    run = names["run"]
    assert run.folder == Path("out/10M/final") and run.record.growth.shrink == 0.4
    assert run.metrics[-1]["step"] == TRAIN.max_steps == run.record.step_count
    assert (tmp_path / "out/10M-transformers/model.safetensors").is_file()


def test_a_grown_model_is_the_one_that_a_warmstart_trains(base, tiny, tmp_path):
    from litgpt_warmstart.commands import warmstart_grow

    model = grow(base, tiny[48], shrink=0.3, gains="added", seed=7)
    warmstart_grow.setup(base=base, target=tiny[48], out_dir=tmp_path / "grown", shrink=0.3, gains="added", seed=7)
    written = weights(tmp_path / "grown")
    assert all(torch.equal(parameter, written[name]) for name, parameter in model.named_parameters())
    assert read_checkpoint(tmp_path / "grown").config == model.config


def test_text_is_a_path_where_an_argument_is_declared_one_and_a_word_stays_a_word(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")

    @options()
    def given(
        runs: list[Path],
        one: Path | None = None,
        resume: bool | Literal["auto"] | Path = False,
        either: str | Path = "",
    ) -> tuple:
        return runs, one, resume, either

    found = given(["~/b", Path("c")], "a", "~/d/step-00000002", "e")
    assert found == ([Path("/home/me/b"), Path("c")], Path("a"), Path("/home/me/d/step-00000002"), "e")
    assert [given([], resume=value)[2] for value in ("auto", True, False)] == ["auto", True, False]
    with pytest.raises(UserError, match="--resume is empty"):
        given([], resume=" ")


def test_what_is_wrong_is_raised(base, tiny, tmp_path):
    with pytest.raises(UserError, match=r"--shrink must lie in \[0, 1\]"):
        grow(base, tiny[48], shrink=2.0)
    with pytest.raises(UserError, match="unknown scale '71M'"):
        warmstart(base=base, target="71M", out_dir=tmp_path)
    with pytest.raises(UserError, match="--out_dir is missing"):
        litgpt_warmstart.export(base, None)
    with pytest.raises(AttributeError, match="no attribute 'shrink'"):
        litgpt_warmstart.shrink  # noqa: B018
    assert Growth(0.4).label == "shrink 0.4" and SCALES[-1].short_name == "70M"
