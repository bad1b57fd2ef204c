"""The micro-batch is found by trying, once, where the run is long enough; it divides the batch."""

import lightning as L
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.loss import NextTokenLoss
from litgpt_warmstart.run import tuning
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.resolve import default_micro_batch
from litgpt_warmstart.run.spec import TrainArgs
from litgpt_warmstart.run.tuning import candidates, find
from tests.conftest import build, neox, weights


@given(batch=st.integers(1, 2000), largest=st.sampled_from([1, 4, 256]))
def test_candidates_divide_the_batch_and_at_least_double(batch, largest):
    sizes = candidates(batch, largest)
    assert sizes[0] == 1 and all(batch % size == 0 and size <= largest for size in sizes)
    assert all(later >= 2 * earlier for earlier, later in zip(sizes, sizes[1:], strict=False))
    assert batch % default_micro_batch(batch) == 0


class Spec:
    """What :func:`find` reads of a run."""

    def __init__(self, max_steps: int, batch: int = 8) -> None:
        self.global_batch_size, self.max_steps, self.loss = batch, max_steps, "full"
        self.block_size, self.precision, self.config, self.compile = 64, "32-true", neox(), False


@pytest.fixture
def fabric() -> L.Fabric:
    return L.Fabric(accelerator="cpu", devices=1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Timed(NextTokenLoss):
    """A loss that takes a given time for a sequence of each size; memory ends above ``fits``."""

    def __init__(self, seconds: dict[int, float], clock: list[float], fits: int = 10**9) -> None:
        super().__init__(build(neox()))
        self.seconds, self.clock, self.fits, self.calls = seconds, clock, fits, []

    def forward(self, input_ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        size = len(input_ids)
        self.calls.append(size)
        if size > self.fits:
            raise torch.OutOfMemoryError
        self.clock[0] += self.seconds[size] * size
        return self.gpt.lm_head.weight.sum()


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(tuning, "now", lambda device: now[0])
    return now


def test_the_fastest_is_taken_and_the_smallest_of_those_as_fast(fabric, clock):
    assert find(fabric, Spec(10_000), lambda: Timed({1: 2.0, 2: 1.0, 4: 0.99}, clock))[0] == 2
    assert find(fabric, Spec(10_000, 12), lambda: Timed({1: 2.0, 2: 1.0, 4: 0.5}, clock))[0] == 4


def test_what_does_not_fit_is_left_out(fabric, clock):
    loss = Timed({1: 2.0, 2: 1.0}, clock, fits=2)
    assert find(fabric, Spec(10_000), lambda: loss)[0] == 2
    assert loss.calls.count(4) == 1  # not tried again
    assert all(p.grad is None for p in loss.parameters())


def test_a_second_run_of_the_same_model_does_not_measure(fabric, clock):
    first = find(fabric, Spec(10_000), lambda: Timed({1: 1.0, 2: 0.5, 4: 0.6}, clock))
    again = Timed({}, clock)
    assert find(fabric, Spec(20_000), lambda: again)[0] == first[0] == 2 and not again.calls


def test_another_model_is_measured_anew(fabric, clock):
    find(fabric, Spec(10_000), lambda: Timed({1: 1.0, 2: 0.5, 4: 0.6}, clock))
    other = Spec(10_000)
    other.config = neox(n_query_groups=1)
    assert find(fabric, other, lambda: Timed({1: 0.1, 2: 0.5, 4: 0.6}, clock))[0] == 1


def test_where_not_even_one_sequence_fits_the_error_has_a_remedy(fabric, clock):
    with pytest.raises(UserError, match="too small for a micro-batch of 1: take a smaller model"):
        find(fabric, Spec(10_000), lambda: Timed({}, clock, fits=0))


def test_a_short_run_or_a_batch_that_nothing_divides_is_not_measured_for_and_that_is_told(fabric):
    never = lambda: pytest.fail("measured")  # noqa: E731
    assert find(fabric, Spec(10_000, batch=7), never) == (1, "no other size up to 4 divides 7")
    assert find(fabric, Spec(10), never) == (4, "the run is too short to measure")


def test_trying_leaves_weights_and_random_numbers_of_the_run_alone(fabric):
    loss = NextTokenLoss(build(neox()))
    before = {name: p.clone() for name, p in loss.named_parameters()}
    random_state = torch.get_rng_state()
    size, how = find(fabric, Spec(10_000), lambda: loss)
    assert size in (1, 2, 4) and how.startswith("tokens/s by size, eagerly: 1: ")
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in loss.named_parameters())


def test_a_run_records_what_was_found_and_a_resumed_one_keeps_it(scratch, monkeypatch, capsys):
    monkeypatch.setattr(tuning, "WORTH", 0)
    monkeypatch.setattr(tuning, "_seconds_per_sequence", lambda *_: {1: 3.0, 2: 1.0, 4: 2.0})
    train = TrainArgs(global_batch_size=8, max_steps=2, save_interval=1)
    run = scratch(train=train)
    assert "micro-batch 2 (tokens/s by size" in capsys.readouterr().out
    record = Record.load(run / "final/warmstart.yaml")
    assert record.training["micro_batch_size"] == 2 and record.training["loss_impl"] == "chunked"
    hyperparameters = (run / "final/hyperparameters.yaml").read_text()
    assert "micro_batch_size: 2" in hyperparameters and "loss_impl: chunked" in hyperparameters

    before = weights(run / "final")
    monkeypatch.setattr(tuning, "_seconds_per_sequence", lambda *_: pytest.fail("measured again"))
    scratch(train=train, resume=run / "step-00000001")
    assert "loss chunked (as before); micro-batch 2 (as before)" in capsys.readouterr().out
    assert all(torch.equal(w, before[name]) for name, w in weights(run / "final").items())
