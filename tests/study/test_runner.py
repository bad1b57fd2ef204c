"""Runs of an experiment: each once, also after a stop, a change or a divergence."""

import os
import shutil
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from litgpt.data import TextFiles

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.run import train as pretrain
from litgpt_warmstart.run.checkpoint import read_header
from litgpt_warmstart.run.folder import step_folders
from litgpt_warmstart.run.identity import first_difference
from litgpt_warmstart.study import StudyArgs, runner
from litgpt_warmstart.study.outcomes import StudyRun, read_outcome, settings
from litgpt_warmstart.study.runner import carry_out
from tests.conftest import assert_same_weights, losses


@pytest.fixture
def started(monkeypatch) -> list[str]:
    """Names of the folders of the runs that were started, in order."""
    names, setup = [], pretrain.setup

    def noting(spec):
        names.append(spec.out_dir.name)
        return setup(spec)

    monkeypatch.setattr(pretrain, "setup", noting)
    return names


def test_a_finished_run_is_read_and_not_run_again(make_spec, started):
    runs = [StudyRun("a", make_spec("a")), StudyRun("b", make_spec("b", seed=2))]
    first = carry_out(runs)
    assert started == ["a", "b"] and [o.status for o in first.values()] == ["finished"] * 2
    assert first["a"].val_loss == losses(runs[0].spec.out_dir, "val_loss")[-1]
    assert first["a"].tokens == 4 * 4 * 64 and first["a"].step_count == 4 and first["a"].hoffmann_flops > 0
    again = carry_out([*runs, StudyRun("c", make_spec("c", seed=3))])
    assert started == ["a", "b", "c"]
    assert again["a"] == first["a"]


def test_a_run_that_was_killed_goes_on_from_its_checkpoint_and_ends_the_same(make_spec, tmp_path):
    whole = StudyRun("whole", make_spec("whole", max_steps=6))
    cut = StudyRun("cut", make_spec("cut", max_steps=6, save_interval=2))
    pretrain.setup(replace(cut.spec, max_steps=2))  # as far as a killed run got
    (cut.spec.out_dir / "final").rename(cut.spec.out_dir / "step-00000002")
    assert read_outcome(cut) is None
    ended = carry_out([whole, cut])
    assert ended["cut"].val_loss == ended["whole"].val_loss
    assert losses(cut.spec.out_dir) == losses(whole.spec.out_dir)


def test_a_fork_ends_as_a_run_of_its_own_schedule_would_also_where_it_was_killed(make_spec, started):
    trunk = StudyRun("trunk", replace(make_spec("trunk", max_steps=6), save_at=(3,)))
    cooled = dict(schedule="wsd", cooldown_steps=2, max_steps=5)
    fork = StudyRun("fork", make_spec("fork", **cooled), {}, ("trunk",), fork_of=trunk.spec.out_dir)
    alone = StudyRun("alone", make_spec("alone", **cooled))
    assert (fork.forks_at, fork.tokens, alone.tokens) == (3, 2 * 4 * 64, 5 * 4 * 64)
    carry_out([trunk])
    assert [f.name for f in step_folders(trunk.spec.out_dir)] == ["step-00000003"]
    begun = runner.begun_by_fork(fork.spec, trunk.spec.out_dir, 3)
    assert begun.args.resume == trunk.spec.out_dir / "step-00000003"
    pretrain.setup(replace(begun, save_at=(4,)))
    shutil.rmtree(fork.spec.out_dir / "final")  # as far as a killed fork got
    ended = carry_out([trunk, fork, alone])
    assert ended["fork"].val_loss == ended["alone"].val_loss and ended["fork"].tokens == ended["alone"].tokens
    assert losses(fork.spec.out_dir) == losses(alone.spec.out_dir) != losses(trunk.spec.out_dir)
    assert_same_weights(fork.spec.out_dir / "final", alone.spec.out_dir / "final")
    assert started == ["trunk", "fork", "fork", "alone"]


def test_a_fork_begins_at_the_nearest_checkpoint_before_or_at_its_start(make_spec):
    trunk = StudyRun("trunk", make_spec("trunk", max_steps=6, save_interval=2))
    carry_out([trunk])
    resumed = {at: runner.begun_by_fork(make_spec("fork"), trunk.spec.out_dir, at).args.resume for at in (1, 3, 4)}
    folders = {at: where.name if isinstance(where, Path) else where for at, where in resumed.items()}
    assert folders == {1: "auto", 3: "step-00000002", 4: "step-00000004"}


def test_a_diverged_run_is_a_result_and_what_needs_its_checkpoint_is_skipped(make_spec, started):
    bad = StudyRun("bad", make_spec("bad", lr=1e6))
    grown = replace(make_spec("next"), start_dir=bad.spec.out_dir / "final", growth=Growth())
    runs = [bad, StudyRun("next", grown, after=("bad",), data_after=bad.spec.out_dir / "final")]
    ended = carry_out(runs)
    assert ended["bad"].status == "diverged" and "loss is" in ended["bad"].reason
    assert ended["next"].status == "skipped" and ended["next"].reason == "bad diverged"
    carry_out(runs)
    assert started == ["bad"]


def test_a_folder_that_holds_a_run_with_other_settings_is_refused_by_name(make_spec):
    carry_out([StudyRun("a", make_spec("a"))])
    for changed, named in ((make_spec("a", lr=0.01), "lr 0.02, now 0.01"), (make_spec("a", seed=5), "seed 1, now 5")):
        with pytest.raises(UserError, match=named):
            carry_out([StudyRun("a", changed)])


def test_data_that_is_too_short_for_a_later_run_is_told_before_the_first(make_spec, started):
    runs = [
        StudyRun("short", make_spec("short")),
        StudyRun("long", make_spec("long", max_steps=20_000, tokens_per_param=100.0)),
    ]
    runs[0].spec.data.prepare_data()
    with pytest.raises(UserError, match="long: the data is too short"):
        carry_out(runs)
    assert started == []


def test_data_of_other_arguments_is_another_run(make_spec, tmp_path):
    given = (("one", 4), ("two", 4), ("two", 8))
    specs = [make_spec("a", data=TextFiles(tmp_path / name, num_workers=workers)) for name, workers in given]
    found = [settings(StudyRun("a", spec)) for spec in specs]
    assert first_difference(found[0], found[1])[0] == "data.init_args.train_data_path"
    assert first_difference(found[1], found[2]) is None


@pytest.mark.parametrize("given", [dict(ray_address="auto"), dict(cpus_per_run=2), dict(gpus_per_run=0.5)])
def test_two_runs_of_one_name_and_options_of_ray_without_ray_are_refused(make_spec, given):
    with pytest.raises(UserError, match="two runs would both be called 'a'"):
        carry_out([StudyRun("a", make_spec("a")), StudyRun("a", make_spec("b"))])
    with pytest.raises(UserError, match="are for --executor ray"):
        carry_out([], StudyArgs(**given))


def test_ray_is_asked_before_data_is_prepared(make_spec, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr(runner, "prepare_data", lambda spec: pytest.fail("prepared"))
    with pytest.raises(UserError, match="--ray_address 127.0.0.1:1 does not answer"):
        carry_out([StudyRun("a", make_spec("a"))], StudyArgs(executor="ray", ray_address="127.0.0.1:1"))


def test_a_run_that_reads_on_after_anothers_checkpoint_repeats_no_token(make_spec):
    first = StudyRun("first", make_spec("first"))
    second = StudyRun("second", make_spec("second"), after=("first",), data_after=first.spec.out_dir / "final")
    carry_out([first, second])
    a, b = (read_header(run.spec.out_dir / "final").record.data for run in (first, second))
    assert (a.start_token, a.stop_token) == (0, 16 * 65) and b.start_token == a.stop_token


def kill_a_worker_after(checkpoint: Path, killed: list[int]) -> None:
    """SIGKILL a process that carries out a run, which Ray names after its task, once that has saved a checkpoint."""
    while not checkpoint.exists():
        time.sleep(0.01)
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"ray::work_in_a_worker" in (folder / "cmdline").read_bytes():
                killed.append(int(folder.name))
    os.kill(killed[0], signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="no /proc to find the worker in")
def test_a_local_ray_gives_the_results_of_this_process_also_when_a_worker_is_killed(make_spec):
    pytest.importorskip("ray")

    def runs(where: str) -> list[StudyRun]:
        first = StudyRun("first", make_spec(f"{where}-first", max_steps=40, save_interval=5))
        grown = make_spec(f"{where}-second")
        source = first.spec.out_dir / "final"
        second = StudyRun(
            "second", replace(grown, start_dir=source, growth=Growth()), after=("first",), data_after=source
        )
        return [first, second, StudyRun("bad", make_spec(f"{where}-bad", lr=1e6))]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what a run on Ray has by default
    try:
        here = carry_out(runs("here"))
    finally:
        torch.set_num_threads(threads)
    killed: list[int] = []
    ours, lines = runs("ray"), []
    saved = ours[0].spec.out_dir / "step-00000005"
    threading.Thread(target=kill_a_worker_after, args=(saved, killed), daemon=True).start()
    on_sigterm = signal.signal(signal.SIGTERM, lambda *_: None)
    mine = signal.getsignal(signal.SIGTERM)
    try:
        there = carry_out(ours, StudyArgs(executor="ray"), say=lines.append)
        assert signal.getsignal(signal.SIGTERM) is mine  # as a study here has it, not Ray's, which ends it at once
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)
    assert killed and list(there) == list(here)
    assert [o.status for o in there.values()] == ["finished", "finished", "diverged"]
    for one, other in list(zip(runs("here"), ours, strict=True))[:2]:
        a, b = one.spec.out_dir, other.spec.out_dir
        assert losses(a) == losses(b) and losses(a, "val_loss") == losses(b, "val_loss")
        assert_same_weights(a / "final", b / "final")
    lines.clear()
    assert carry_out(ours, StudyArgs(executor="ray"), say=lines.append) == there
    assert lines == ["3 of 3 runs have ended before"]


@pytest.mark.drill
def test_ray_runs_runs_of_two_devices(make_spec, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 2, "GPU": 2}')  # two of the study's devices, here processes
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # Ray counts what is in it
    one = StudyRun("one", make_spec("one", micro_batch_size=2))
    ended = carry_out([one])["one"]
    for name, args in (("there", StudyArgs(executor="ray", gpus_per_run=2)), ("here", StudyArgs())):
        run = StudyRun(name, make_spec(name, micro_batch_size=2).on_devices(2 if name == "here" else 1))
        assert carry_out([run], args)[name].val_loss == pytest.approx(ended.val_loss, rel=1e-5)
        assert read_header(run.spec.out_dir / "final").record.training["devices"] == 2
        assert losses(run.spec.out_dir) == pytest.approx(losses(one.spec.out_dir), rel=1e-5)
