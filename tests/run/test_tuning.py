"""The micro-batch and the loss are found by trying, once, where the run is long enough; the micro-batch divides it."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.exc import InternalTorchDynamoError

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import cache_file, remember, remembered
from litgpt_warmstart.method.scales import resolve_config
from litgpt_warmstart.run import tuning
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.resolve import default_micro_batch, resolve
from litgpt_warmstart.run.spec import RunArgs, RunSpec, TrainArgs
from litgpt_warmstart.run.tuning import Choice, _first, candidates, device_failed, find, tuned
from tests.conftest import weights

SIZES = [1, 2, 4, 8]


@given(batch=st.integers(1, 2000), largest=st.sampled_from([1, 4, 256]))
def test_candidates_divide_the_batch_and_at_least_double(batch, largest):
    sizes = candidates(batch, largest)
    assert sizes[0] == 1 and all(batch % size == 0 and size <= largest for size in sizes)
    assert all(later >= 2 * earlier for earlier, later in zip(sizes, sizes[1:], strict=False))
    assert batch % default_micro_batch(batch) == 0


@pytest.fixture
def spec(tiny, stdlib_path, tiny_settings) -> RunSpec:
    """A run of width 16, 8 x 64 tokens a step, that is long enough for any trial."""
    args = RunArgs(lr=0.02, train=TrainArgs(global_batch_size=8, max_tokens=10**12), **tiny_settings)
    return resolve("warmstart_scratch", tiny[16], None, None, Path("none"), args, {})


@pytest.fixture
def fabric() -> L.Fabric:
    return L.Fabric(accelerator="cpu", devices=1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def device(monkeypatch) -> Callable[[dict[str | int, float]], list[Choice]]:
    """A device on which a sequence takes given seconds, by micro-batch (and loss), or for which it has no memory.

    The list that is returned has what was tried on it, each for a tenth of a second.
    """

    def made(seconds: dict[str | int, float]) -> list[Choice]:
        tried, clock = [], [0.0]

        def measured(fabric: L.Fabric, spec: RunSpec) -> float:
            tried.append(Choice(spec.loss, spec.micro_batch_size))
            clock[0] += 0.1
            taken = seconds.get(f"{spec.loss} {spec.micro_batch_size}", seconds.get(spec.micro_batch_size))
            if taken is None:
                raise torch.OutOfMemoryError
            return taken

        monkeypatch.setattr(tuning, "_seconds_per_sequence", measured)
        monkeypatch.setattr(tuning.time, "perf_counter", lambda: clock[0])
        return tried

    return made


@pytest.mark.parametrize(
    ("seconds", "first", "tried", "found"),
    [
        ({4: 1.0, 2: 1.02, 1: 1.01}, 4, [4, 2, 1], 1),  # smaller is as fast
        ({4: 1.0, 2: 1.02, 1: 1.06}, 4, [4, 2, 1], 2),
        ({4: 1.0, 2: 1.2, 8: 0.99}, 4, [4, 2, 8], 4),  # larger is no faster
        ({4: 1.0, 2: 1.2, 8: 0.8}, 4, [4, 2, 8], 8),
        ({1: 1.0, 2: 0.8, 4: 0.6, 8: 0.59}, 1, [1, 2, 4, 8], 4),
        ({2: 1.0, 1: 1.2}, 4, [4, 2, 1], 2),  # 4 does not fit
        ({4: 1.0, 2: 1.2}, 4, [4, 2, 8], 4),  # 8 does not
    ],
)
def test_the_fastest_is_found_and_the_smallest_of_those_as_fast(fabric, spec, device, seconds, first, tried, found):
    trials = device(seconds)
    choice, told = find(fabric, spec, Choice("chunked", first), SIZES, ["chunked"])
    assert [trial.micro_batch_size for trial in trials] == tried and choice == Choice("chunked", found)
    assert told.startswith(f"tokens/s by size: {min(seconds)}: {64 / seconds[min(seconds)]:,.0f}")


def test_the_other_loss_is_tried_at_the_best_micro_batch_and_taken_where_it_is_faster(fabric, spec, device):
    for full, chosen in ((0.9, "full"), (0.98, "chunked"), (math.inf, "chunked")):
        trials = device({1: 1.5, 2: 1.0, 4: 1.0, "full 2": full})
        slower = replace(spec, max_steps=10**7 + round(min(full, 2) * 100))
        cache_file(tuning.CACHE).unlink(missing_ok=True)
        assert find(fabric, slower, Choice("chunked", 4), SIZES, ["chunked", "full"])[0] == Choice(chosen, 2)
        assert trials[-1] == Choice("full", 2)


def test_trials_end_where_they_would_take_too_much_of_the_run_and_are_gone_on_with_in_a_longer_one(
    fabric, spec, device, monkeypatch
):
    monkeypatch.setattr(tuning, "TRIAL_SECONDS", 0.0)
    spec = replace(spec, compile=True)
    seconds = tuning.WORTH * 0.1 * 2  # long enough for a second trial, not for a third
    short = replace(spec, max_steps=math.ceil(seconds))  # one second each
    for run, number in ((short, 2), (short, 2), (lasting(spec, seconds), 2), (spec, 3), (spec, 0)):
        trials = device({4: 1 / 8, 2: 1 / 8, 1: 1 / 8})
        find(fabric, run, Choice("chunked", 4), [1, 2, 4], ["chunked"])
        assert len(trials) == number


def test_eager_runs_are_not_tried_for_where_max_time_is_short_for_their_model(fabric, spec, device):
    wide = replace(spec, config=resolve_config("70M"))  # 42 sequences of 64 tokens: 7e11 FLOPs, 7 s at 1e11 a second
    for run, number in ((lasting(wide, 60.0), 0), (lasting(wide, 600.0), 3), (lasting(spec, 60.0), 3)):
        trials = device({4: 1.0, 2: 1.0, 1: 1.0})
        find(fabric, run, Choice("chunked", 4), [1, 2, 4], ["chunked"])
        assert len(trials) == number


def lasting(spec: RunSpec, max_time: float) -> RunSpec:
    """The same run with a limit in seconds."""
    return replace(spec, args=replace(spec.args, train=replace(spec.args.train, max_time=max_time)))


def test_a_second_run_of_the_same_model_tries_nothing_and_one_of_another_or_under_other_versions_does(
    fabric, spec, device, monkeypatch
):
    device({1: 1.0, 2: 0.5, 4: 0.6})
    first = find(fabric, spec, Choice("chunked", 4), [1, 2, 4], ["chunked"])[0]
    trials = device({1: 0.1, 2: 0.5, 4: 0.6})
    again, how = find(fabric, spec, Choice("chunked", 4), [1, 2, 4], ["chunked"])
    assert (
        again == first == Choice("chunked", 2) and not trials and how == f"measured before, {cache_file(tuning.CACHE)}"
    )
    other = replace(spec, config=replace(spec.config, n_query_groups=1))
    assert find(fabric, other, Choice("chunked", 4), [1, 2, 4], ["chunked"])[0].micro_batch_size == 1
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_float32_matmul_precision", lambda: "another")
        assert find(fabric, spec, Choice("chunked", 4), [1, 2, 4], ["chunked"])[0].micro_batch_size == 1
    monkeypatch.setattr(tuning, "installed_versions", lambda: {"litgpt": "another"})
    assert find(fabric, spec, Choice("chunked", 4), [1, 2, 4], ["chunked"])[0].micro_batch_size == 1


def test_what_others_have_found_meanwhile_stays_in_the_cache(fabric, spec, monkeypatch):
    def measured(fabric: L.Fabric, spec: RunSpec) -> float:
        remember(tuning.CACHE, {"another device": 4})
        return 1.0

    monkeypatch.setattr(tuning, "_seconds_per_sequence", measured)
    find(fabric, spec, Choice("chunked", 1), [1], ["chunked", "full"])
    assert "another device" in remembered(tuning.CACHE) and len(remembered(tuning.CACHE)) == 3  # size and loss


@pytest.mark.parametrize(
    "damage",
    [{"": 3}, {"": True}, {"": None}, {"": []}, {" loss": "torch"}, {" loss": 1}, {" loss": ["full"]}],
)
def test_what_the_cache_has_is_checked_when_it_is_read(fabric, spec, device, damage):
    trials, impls = device({1: 1.0, 2: 0.5, 4: 0.6, "full 2": 0.4}), ["chunked", "full"]
    assert find(fabric, spec, Choice("chunked", 4), [1, 2, 4], impls)[0] == Choice("full", 2)
    path, number = cache_file(tuning.CACHE), len(trials)
    assert find(fabric, spec, Choice("chunked", 4), [1, 2, 4], impls)[0] == Choice("full", 2) and len(trials) == number
    known = json.loads(path.read_text())
    key = next(iter(known))
    path.write_text(json.dumps(known | {key + what: wrong for what, wrong in damage.items()}))
    assert find(fabric, spec, Choice("chunked", 4), [1, 2, 4], impls)[0] == Choice("full", 2) and len(trials) > number


def test_where_not_even_one_sequence_fits_the_error_has_a_remedy(fabric, spec, device):
    device({})
    with pytest.raises(UserError, match="too small for a micro-batch of 1: take a smaller model"):
        find(fabric, spec, Choice("chunked", 4), SIZES, ["chunked"])


def test_where_the_one_asked_for_does_not_fit_the_error_names_it(fabric, spec, device):
    device({1: 1.0})
    with pytest.raises(UserError, match="too small for a micro-batch of 4: lower --train.micro_batch_size"):
        find(fabric, spec, Choice("chunked", 4), [4], ["chunked", "full"])


def test_a_compiler_that_fails_in_a_trial_is_one_line_and_a_bug_is_none(fabric, spec, monkeypatch):
    for error, told in (
        (InternalTorchDynamoError("no registers"), pytest.raises(UserError, match="no registers.*--compile false")),
        (RuntimeError("a bug"), pytest.raises(RuntimeError, match="a bug")),
    ):

        def measured(fabric: L.Fabric, spec: RunSpec, error: RuntimeError = error) -> float:
            raise error

        monkeypatch.setattr(tuning, "_seconds_per_sequence", measured)
        with told:
            find(fabric, spec, Choice("chunked", 4), SIZES, ["chunked"])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is not told")
def test_a_trial_leaves_no_memory_behind(fabric, spec, monkeypatch):
    def resident() -> int:
        told = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        return 1024 * int(told["VmRSS"].split()[0])

    def measured(fabric: L.Fabric, spec: RunSpec) -> float:
        torch.ones(2**28)  # 1 GiB
        return 1.0

    monkeypatch.setattr(tuning, "_seconds_per_sequence", measured)
    tuning.keep_memory(torch.device("cpu"))
    before = resident()
    find(fabric, spec, Choice("chunked", 1), [1, 2], ["chunked"])
    assert resident() < before + 2**29


def test_a_first_micro_batch_has_room_for_its_logits_on_a_gpu(spec, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (15 * 10**9, 16 * 10**9))
    large = replace(spec, config=resolve_config("5M"), num_classes=50304, block_size=1024, global_batch_size=64)
    gpu, sizes = torch.device("cuda"), candidates(64, 256)
    assert _first(large, "chunked", sizes, gpu) == 64
    assert _first(large, "full", sizes, gpu) == 4  # 2.5 GB of logits, in fp16 and fp32, and of their gradients
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (79 * 10**9, 80 * 10**9))
    assert _first(replace(large, config=resolve_config("70M")), "chunked", sizes, gpu) == 32  # it is busy


def test_a_short_run_or_a_batch_that_nothing_divides_is_not_tried_for_and_that_is_told(fabric, spec, device):
    trials = device({})
    prime, short = replace(spec, global_batch_size=7, micro_batch_size=1), replace(spec, max_steps=10)
    assert tuned(fabric, prime)[1].endswith("micro-batch 1 (no other size up to 4 divides 7)")
    assert tuned(fabric, short)[1].endswith("micro-batch 4 (the run is too short to measure)")
    ends_soon, first = lasting(replace(spec, compile=True), 60.0), Choice("chunked", 4)
    assert find(fabric, ends_soon, first, SIZES, ["chunked"]) == (first, "the run is too short to measure")
    assert not trials


def test_trying_runs_as_the_run_will_and_leaves_random_numbers_alone(fabric, spec):
    random_state = torch.get_rng_state()
    choice, how = find(fabric, spec, Choice("chunked", 4), [1, 2, 4], ["chunked"])
    assert choice.micro_batch_size in (1, 2, 4) and how.startswith("tokens/s by size: ")
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_run_records_what_was_found_and_a_resumed_one_keeps_it(scratch, device, monkeypatch, capsys):
    monkeypatch.setattr(tuning, "WORTH", 0)
    monkeypatch.setattr(
        tuning, "_seconds_per_sequence", lambda _, spec: {1: 3.0, 2: 1.0, 4: 2.0}[spec.micro_batch_size]
    )
    train = TrainArgs(global_batch_size=8, max_steps=2, save_interval=1)
    run = scratch(train=train)
    assert "micro-batch 2 (tokens/s by size" in capsys.readouterr().out
    record = Record.load(run / "final/warmstart.yaml")
    assert record.training["micro_batch_size"] == 2 and record.training["loss_impl"] == "chunked"
    hyperparameters = (run / "final/hyperparameters.yaml").read_text()
    assert "micro_batch_size: 2" in hyperparameters and "loss_impl: chunked" in hyperparameters

    before = weights(run / "final")
    monkeypatch.setattr(tuning, "_seconds_per_sequence", lambda *_: pytest.fail("tried again"))
    scratch(train=train, resume=run / "step-00000001")
    assert "loss chunked (as before); micro-batch 2 (as before)" in capsys.readouterr().out
    assert all(torch.equal(w, before[name]) for name, w in weights(run / "final").items())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_device_without_room_is_told_in_one_line_whoever_says_so(error):
    assert "too small for a micro-batch of 8: lower" in str(device_failed(error, 8))
    assert device_failed(RuntimeError("CUDA error: device-side assert triggered"), 8) is None


def test_a_cache_that_is_named_by_a_relative_path_is_the_homes(monkeypatch, tmp_path):
    """As the XDG Base Directory Specification has it; else each folder would have one of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert cache_file("x") == tmp_path / ".cache/litgpt_warmstart/x.json"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    assert cache_file("x") == tmp_path / "own/litgpt_warmstart/x.json"
