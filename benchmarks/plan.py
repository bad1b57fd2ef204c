"""``warmstart_plan`` against the run that it plans: predicted over measured time of a step and peak memory.

    python benchmarks/plan.py [--target 22M] [--steps 12] [--rounds 3] [--compile true] [--out FILE.json]

Both are the commands, whole and unchanged, each in a process of its own and in turn, on a base and StdlibText that are
made first. See docs/speed.md for what the figures mean.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measuring import command_line, positive, resident_gigabytes, result_file, spread, write_result

BATCH, BLOCK_SIZE = 8, 256


def work(words: list[str]) -> None:
    """A command of ours in this process; the last line is its peak memory."""
    from litgpt_warmstart.__main__ import main

    sys.argv = ["litgpt-warmstart", *words]
    main()
    print(torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else resident_gigabytes())


def run(*words: object) -> float:
    """Run a command of ours; its peak memory in GB."""
    command = [sys.executable, __file__, "--work", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[1])
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    """Parse, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="22M")
    parser.add_argument(
        "--steps", type=positive, default=12, help="optimizer steps of the run; the first does not count"
    )
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--compile", default="false")
    parser.add_argument("--data_path", type=Path, help="StdlibText as prepared before")
    parser.add_argument("--out", type=result_file)
    arguments = parser.parse_args()

    from litgpt_warmstart.run.metrics import read_metrics

    predicted, measured = [], []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        shared = [
            "--train.global_batch_size",
            BATCH,
            "--train.max_seq_length",
            BLOCK_SIZE,
            "--logger_name",
            "csv",
            "--eval.max_iters",
            4,
        ]
        base = [
            "--data",
            "StdlibText",
            "--data.data_path",
            arguments.data_path or folder / "data",
            "--lr",
            0.01,
            "--compile",
            "false",
        ]
        run("warmstart_scratch", "--target", "5M", "--train.max_steps", 3, *base, *shared, "--out_dir", folder / "base")
        start = ["--base", folder / "base/final", "--target", arguments.target, "--train.max_steps", arguments.steps,
                 "--compile", arguments.compile]  # fmt: skip
        for number in range(arguments.rounds):
            file, out_dir = folder / f"{number}.json", folder / f"run-{number}"
            run("warmstart_plan", *start, *shared[:4], "--json", file)
            peak = run("warmstart", *start, *shared, "--out_dir", out_dir)
            plan = json.loads(file.read_text())["measurement"]
            rows = [row for row in read_metrics(out_dir / "metrics.csv") if "tokens_per_sec" in row][1:]
            seconds = BATCH * BLOCK_SIZE / statistics.median(row["tokens_per_sec"] for row in rows)
            predicted.append({"step_seconds": plan["step_seconds"], "gigabytes": plan["peak_bytes"] / 1e9})
            measured.append({"step_seconds": seconds, "gigabytes": peak})
            print(f"plan {predicted[-1]}, run {measured[-1]}", flush=True)

    def ratios(name: str) -> dict[str, float]:
        return spread([plan[name] / run[name] for plan, run in zip(predicted, measured, strict=True)])

    figures = {"predicted": predicted, "measured": measured, "time_ratio": ratios("step_seconds"),
               "memory_ratio": ratios("gigabytes")}  # fmt: skip
    for name in ("time_ratio", "memory_ratio"):
        found = figures[name]
        print(f"{name}, predicted over measured: {found['median']:.2f} ({found['min']:.2f} to {found['max']:.2f})")
    write_result(arguments.out, command_line(), figures)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2:])
    else:
        main()
