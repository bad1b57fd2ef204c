"""Every file in configs/ is a valid command line; the table's scales and pairs and the paper's figures are there."""

import re
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser, set_parsing_settings
from litgpt.config import Config

from litgpt_warmstart.commands import COMMANDS
from litgpt_warmstart.commands.study import as_list
from litgpt_warmstart.data import SlimPajama6B
from litgpt_warmstart.data.preparing.request import TOKENIZER
from litgpt_warmstart.method.scales import SCALES, find_scale
from litgpt_warmstart.study.arms import expand

ROOT = Path(__file__).parents[2] / "configs"
STUDY = ROOT / "study"
MODELS = sorted((STUDY / "cpu/models").glob("*.yaml"))
FILES = sorted(set(ROOT.rglob("*.yaml")) - set(MODELS))


def command_of(path: Path) -> str:
    """The command that a config file is for: its folder, or, for the study, what its comment says."""
    if STUDY not in path.parents:
        return path.parent.name
    command, named = re.fullmatch(r"#   litgpt (\w+) --config (\S+)", path.read_text().splitlines()[1]).groups()
    assert ROOT.parent / named == path
    return command


def load(path: Path) -> dict:
    """A config file's arguments as the command gets them."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser()
    parser.add_function_arguments(COMMANDS[command_of(path)])
    return parser.instantiate_classes(parser.parse_path(str(path)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT).with_suffix("")))
def test_a_config_says_what_it_is_and_names_models_that_there_are(path):
    """That its command takes it holds guards/test_mission.py."""
    content = yaml.safe_load(path.read_text())
    assert path.read_text().startswith("# ")
    named = [name for key in ("target", "scales") if key in content for name in as_list(content[key], str, key)]
    assert all(find_scale(name) is not None or ROOT.parent / name in MODELS for name in named)
    if command_of(path) == "warmstart_ablations":
        defaults = {key: as_list(content.get(key, "5M"), str, key) for key in ("base", "target")}
        arms = expand(content["arms"], defaults)
        assert {arm.scratch for arm in arms} <= set(arms)


def test_the_three_grids_stand_around_the_papers_tuned_settings():
    for scale in SCALES[:3]:
        arguments = load(ROOT / "warmstart_grid_search" / f"{scale.short_name}.yaml")
        assert scale.base_lr in arguments.lrs and scale.global_batch_size in arguments.batch_sizes
        assert min(arguments.lrs) < scale.base_lr < max(arguments.lrs)


def test_every_scale_has_a_config_from_scratch_with_the_papers_tuned_settings():
    for scale in SCALES:
        arguments = load(ROOT / "warmstart_scratch" / f"{scale.short_name}.yaml")
        tuned = scale if scale.base_lr else find_scale(arguments.mup_base)
        assert (arguments.lr, arguments.train.global_batch_size) == (tuned.base_lr, tuned.global_batch_size)
        assert arguments.data == SlimPajama6B()
        assert arguments.tokens_per_param == 20 and arguments.schedule == "constant"


def test_every_base_has_a_config_to_each_larger_scale():
    names = [scale.short_name for scale in SCALES]
    for i, base in enumerate(names[:3]):
        for target in names[i + 1 :]:
            arguments = load(ROOT / "warmstart" / f"{base}-{target}.yaml")
            assert arguments.target == target and arguments.shrink == 0.4
            made = load(ROOT / "warmstart_scratch" / f"{base}.yaml").out_dir
            assert str(arguments.base) == f"{made}/final"


def test_the_preparation_of_slimpajama_is_what_the_datamodule_asks_for():
    arguments, data = load(ROOT / "warmstart_prepare_data" / "slimpajama-6b.yaml"), SlimPajama6B()
    names = ("repo_id", "revision", "data_path")
    assert [getattr(arguments, name) for name in names] == [getattr(data, name) for name in names]
    assert arguments.tokenizer == TOKENIZER


def test_every_figure_of_the_paper_has_a_config_and_the_tuned_settings_lie_within_the_grid():
    names = sorted(path.stem for path in STUDY.glob("*.yaml"))
    assert names == [*(f"figure-{number:02d}" for number in range(1, 12)), "table-1"]
    grid = load(STUDY / "table-1.yaml")
    for scale in SCALES[:3]:
        assert scale.short_name in grid.target
        assert min(grid.lrs) < scale.base_lr < max(grid.lrs) and scale.global_batch_size in grid.batch_sizes


def test_studies_in_one_folder_have_tables_of_their_own_names():
    named = [(str(a.out_dir), a.name) for p in FILES if command_of(p) == "warmstart_ablations" for a in (load(p),)]
    assert len(set(named)) == len(named)


def test_the_coordinate_checks_of_the_paper_read_the_base_that_figure_2_trains():
    widths, scales = (load(STUDY / f"figure-{number}.yaml") for number in ("03", "07"))
    assert str(widths.base) == str(scales.base) == f"{load(STUDY / 'figure-02.yaml').out_dir}/runs/base-5M/final"
    assert widths.shrink == scales.shrink == "0.2,0.4,0.6,0.8,1.0"
    assert all(find_scale(name) for name in scales.scales.split(","))


def test_the_cpu_study_grows_the_grids_winner_into_models_of_the_width_that_their_names_say():
    arguments = [load(path) for path in sorted((STUDY / "cpu").glob("*.yaml"))]
    makefile = (ROOT.parent / "Makefile").read_text()
    assert len(arguments) == 7 and all(path.stem in makefile for path in (STUDY / "cpu").glob("*.yaml"))
    assert {str(a.base) for a in arguments[1:]} == {f"{arguments[0].out_dir}/best"}
    for path in MODELS:
        config = Config.from_file(path)
        assert f"width-{config.n_embd}" in path.stem
        assert config.head_size == (16 if "heads-16" in path.stem else 24)
