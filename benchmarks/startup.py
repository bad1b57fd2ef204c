"""Start-up: help, the hook in other processes, and a second start of the same run.

python benchmarks/startup.py [--pairs 5] [--out FILE.json]
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measuring import command_line, positive, result_file, spread, write_result

LITGPT = Path(sys.executable).with_name("litgpt")
ROOT = Path(__file__).resolve().parents[1]


def seconds(*command: str | Path, **environment: str) -> float:
    """Wall time of a command that must succeed."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        raise SystemExit(f"{command} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def help_pairs(pairs: int) -> dict[str, object]:
    """Seconds of ``litgpt --help`` and ``litgpt warmstart --help``, in turn."""
    commands = {"litgpt": [LITGPT, "--help"], "warmstart": [LITGPT, "warmstart", "--help"]}
    for command in commands.values():
        seconds(*command)
    taken = {name: [] for name in commands}
    for pair in range(pairs):
        for name in commands if pair % 2 == 0 else reversed(commands):
            taken[name].append(seconds(*commands[name]))
    ratios = [ours / stock for ours, stock in zip(taken["warmstart"], taken["litgpt"], strict=True)]
    return {f"{name}_help_seconds": spread(values) for name, values in taken.items()} | {"help_ratio": spread(ratios)}


def hook_milliseconds() -> dict[str, float]:
    """What the .pth line costs a process not named litgpt: its own time, and the imports that it causes."""
    line = (ROOT / "litgpt_warmstart.pth").read_text()
    runs = 10_000
    own = 1000 * timeit.timeit(lambda: exec(line), number=runs) / runs
    listing = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "pass"], capture_output=True, text=True, check=True
    ).stderr
    imported = [int(m[1]) for m in re.finditer(r"import time:\s+(\d+) \|\s+\d+ \|\s+\S*litgpt\S*", listing)]
    return {"hook_line_milliseconds": own, "hook_imports_milliseconds": sum(imported) / 1000,
            "hook_imports": len(imported)}  # fmt: skip


def starts(rounds: int) -> dict[str, float]:
    """Seconds of a run of one step at 5M with an empty compile cache, and of the same run again."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def run(cache: Path) -> float:
            cache.mkdir(exist_ok=True)
            return seconds(
                sys.executable, "-m", "litgpt_warmstart", "warmstart_scratch", "--target", "5M", "--data", "StdlibText",
                "--data.data_path", folder / "data", "--lr", "0.01", "--train.global_batch_size", "4",
                "--train.max_steps", "1", "--train.max_tokens", "1000000", "--eval.initial_validation", "false",
                "--eval.final_validation", "false", "--out_dir", folder / "run", "--overwrite", "true",
                TORCHINDUCTOR_CACHE_DIR=str(cache), TMPDIR=str(cache),  # inductor's compiled headers are in the latter
            )  # fmt: skip

        run(folder / "any")  # prepares the data
        first, second = [], []
        for number in range(rounds):
            first.append(run(folder / f"cache-{number}"))
            second.append(run(folder / f"cache-{number}"))
    return {"first_start_seconds": statistics.median(first), "second_start_seconds": statistics.median(second)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=positive, default=5)
    parser.add_argument("--out", type=result_file, help="JSON file to write")
    args = parser.parse_args()
    figures = help_pairs(args.pairs)
    print(
        f"litgpt --help {figures['litgpt_help_seconds']['median']:.1f} s, litgpt warmstart --help"
        f" {figures['warmstart_help_seconds']['median']:.1f} s; ratio {figures['help_ratio']['median']:.2f} (pairs"
        f" {figures['help_ratio']['min']:.2f} to {figures['help_ratio']['max']:.2f})",
        flush=True,
    )
    figures |= hook_milliseconds()
    print(
        f"the hook in another Python process: {figures['hook_line_milliseconds']:.4f} ms, and"
        f" {figures['hook_imports']} imports of {figures['hook_imports_milliseconds']:.3f} ms",
        flush=True,
    )
    figures |= starts(3)
    print(
        f"a run of one step: {figures['first_start_seconds']:.0f} s with an empty compile cache, then"
        f" {figures['second_start_seconds']:.0f} s"
    )
    write_result(args.out, command_line(), figures)


if __name__ == "__main__":
    main()
