"""The README's way from a checkpoint and text of one's own to the answer, as it stands there, on a small model."""

import shutil

import pytest

from tests.guards.conftest import STEP
from tests.test_documents import ROOT, command_lines


@pytest.mark.slow
def test_the_way_from_a_checkpoint_and_text_of_ones_own_ends_in_an_answer(command, texts, base, models, tmp_path):
    readme = (ROOT / "README.md").read_text()
    section = readme[readme.index("## Your own checkpoint") : readme.index("## What to expect")]
    (_, folder), *commands = [words[1:] for words in command_lines(section)]
    (tmp_path / "TEXTS").symlink_to(texts)
    checkpoint = tmp_path / "checkpoints" / folder
    checkpoint.mkdir(parents=True)
    for name in ("lit_model.pth", "model_config.yaml", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, checkpoint)
    shorter = ("--train.max_steps", 2, "--train.micro_batch_size", 8, *STEP)
    told = {}
    for name, *words in commands:
        words = [models[48] if word == "pythia-31m" else word for word in words]
        told[name] = command(name, *words, *(shorter if "--target" in words else ()), cwd=tmp_path)
        assert told[name].status == 0, told[name].err
    assert list(told) == [f"warmstart{name}" for name in ("_prepare_data", "_plan", "", "_scratch", "_report")]
    answer = told["warmstart_report"].out
    assert "To the scratch run's last loss" in answer, answer
    assert (tmp_path / "out/report/index.html").is_file()
