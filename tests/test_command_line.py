"""The command line before a command runs: Ctrl-C while modules are imported."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what is imported shows in Linux's /proc")
def test_ctrl_c_while_modules_are_imported_is_quiet():
    command = [sys.executable, "-m", "litgpt_warmstart", "warmstart", "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "torch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "")
