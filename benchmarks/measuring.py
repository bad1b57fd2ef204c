"""What every benchmark here needs: the machine in words, memory, and a result file."""

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def machine(*packages: str) -> dict[str, object]:
    """What the figures were measured on.

    Args:
        packages: Further packages whose versions matter.
    """
    from litgpt_warmstart.run.checkpoint import installed_versions

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    has_cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if has_cuda else "CPU",
        **({"device_gigabytes": torch.cuda.mem_get_info()[1] / 1e9, "cuda": torch.version.cuda} if has_cuda else {}),
        "cpu": f"{cpu}, {torch.backends.cpu.get_cpu_capability()}",
        "cores": os.cpu_count(),
        "versions": installed_versions() | {package: version(package) for package in packages},
        "date": date.today().isoformat(),
    }


def write_result(out: Path | None, command: str, figures: dict[str, object], *packages: str) -> None:
    """Write figures as JSON with the machine and the command; nothing without ``--out``."""
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"command": command, **machine(*packages), **figures}, indent=1) + "\n")


def command_line() -> str:
    """This process's command line without where its result goes."""
    words = sys.argv[1:]
    if "--out" in words:
        at = words.index("--out")
        words = words[:at] + words[at + 2 :]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def positive(text: str) -> int:
    """A count of at least one, for argparse."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def result_file(text: str) -> Path:
    """Where a result goes, for argparse: found out before anything is measured."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder: name a file in it")
    return path


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def least_seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """The least time of a few repeats after one that does not count."""
    import time

    def once() -> float:
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    return min(once() for _ in range(repeats))


def resident_gigabytes(peak: bool = True) -> float:
    """Resident memory of this process, at its peak since :func:`forget_peak` or now."""
    field = "VmHWM" if peak else "VmRSS"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1e6


def forget_peak() -> None:
    """Begin a new peak of resident memory."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    print(json.dumps(machine()))
