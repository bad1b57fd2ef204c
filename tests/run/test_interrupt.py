"""The first signal asks, the second acts; forked processes ignore both."""

import os
import signal

import pytest

from litgpt_warmstart.run.interrupt import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_kept_and_the_handlers_are_put_back(number, capsys):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop and stop.signal == number and stop.exit_status == 128 + number
        assert signal.getsignal(number) == before  # a second one acts as ever
    assert "stopping after this optimizer step" in capsys.readouterr().err


def test_a_forked_worker_ignores_the_signal():
    with StopRequest():
        worker = os.fork()
        if worker == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 7
