"""What a run is: the same from its specification, its record and an older version's record."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from litgpt_warmstart.commands import warmstart
from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.run.checkpoint import read_header
from litgpt_warmstart.run.identity import difference_in_words, first_difference, recorded_identity
from tests.conftest import TRAIN

UNTOLD = {"data.order_seed", "eval", "starts_from"}
"""What records of older versions do not tell, or not in these words."""


@pytest.fixture(scope="module")
def run(base, tiny, tiny_settings, tmp_path_factory) -> Path:
    out_dir = tmp_path_factory.mktemp("run")
    train = replace(TRAIN, max_steps=2)
    warmstart.setup(base=base, target=tiny[48], out_dir=out_dir, shrink=0.3, train=train, **tiny_settings)
    return out_dir


def test_an_older_record_tells_the_same_identity_but_for_what_it_does_not_tell(run):
    header = read_header(run / "final")
    told = header.record.identity
    assert told["growth"] == Growth(shrink=0.3).options
    derived = recorded_identity(replace(header.record, identity={}), header.config)
    assert derived == {name: value for name, value in told.items() if name not in UNTOLD}


def test_a_run_of_an_older_version_goes_on_and_is_refused_by_the_same_names(
    run, base, tiny, tiny_settings, refused, monkeypatch
):
    record = run / "final/warmstart.yaml"
    content = yaml.safe_load(record.read_text()) | {"format_version": 3}
    del content["identity"]
    record.write_text(yaml.safe_dump(content))
    given = dict(base=base, target=tiny[48], out_dir=run, resume=True, train=TRAIN, **tiny_settings)
    assert "--resume: shrink was 0.3, now 0.4: pass the settings" in refused(warmstart.setup, **given)
    warmstart.setup(**given, shrink=0.3)
    assert read_header(run / "final").record.step_count == TRAIN.max_steps


def test_a_difference_is_told_by_the_options_name():
    adam, radam = (dict(optimizer=dict(class_path=f"torch.optim.{name}", init_args={})) for name in ("Adam", "RAdam"))
    assert difference_in_words(adam, radam) == ("optimizer", "Adam", "RAdam")
    assert difference_in_words(dict(a=1, lr=2), dict(a=2, lr=3), ["lr"]) == ("lr", "2", "3")
    assert difference_in_words(dict(lr=2), dict(lr=2, growth={})) is None


GROWN = dict(growth=dict(shrink=0.4))


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        (dict(a=1, b=dict(c=2, d=[3]), gone=4), dict(a=1, b=dict(c=2, d=[3]), new=5), None),
        (dict(a=1, b=dict(c=2, d=[3])), dict(b=dict(c=2, d=[4]), a=2), ("b.d", [3], [4])),
        (dict(max_norm=None), dict(max_norm=1.0), ("max_norm", None, 1.0)),
        (dict(growth={}), GROWN, ("growth", {}, GROWN["growth"])),
        (GROWN, dict(growth={}), ("growth", GROWN["growth"], {})),
        (GROWN, dict(growth=dict(shrink=0.4, gains="shrunk")), None),  # of a later version
        (dict(optimizer=dict(init_args=dict(eps=1))), dict(optimizer=dict(init_args=dict(beta=1))),
         ("optimizer", dict(init_args=dict(eps=1)), dict(init_args=dict(beta=1)))),
    ],
)  # fmt: skip
def test_the_first_difference_is_named_within_dicts_and_what_one_alone_tells_is_none(before, now, told):
    assert first_difference(before, now) == told
