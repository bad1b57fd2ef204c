"""Training speed: stock ``litgpt pretrain`` and this package in turn, on the same model, data, precision and batch.

    python benchmarks/train.py [--scales 5M 22M 70M] [--precisions 32-true bf16-mixed] [--pairs 5] [--out FILE.json]

Both trainers run whole and unchanged, each in a process of its own; a DataModule that waits for a word lets them make
rounds of steps in turn. See docs/speed.md for what the figures mean.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measuring import command_line, machine, positive, result_file, spread, write_result
from trainers import Ended, Work, Worker, micro_batch_of, result_of

DENSE_BF16_FLOPS = {"H100": 989.4e12, "H200": 989.4e12}
"""Peak rates for the model FLOPs utilization, without sparsity (NVIDIA's data sheets)."""


def compare_devices(work: Work, pairs: int, folder: Path) -> dict[str, object]:
    """Several processes of one thread each with one of them, in turn."""
    folder.mkdir(parents=True)
    numbers = (1, work.devices)
    environment = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    environment |= {"JSONARGPARSE_DEPRECATION_WARNINGS": "off"}
    rates: dict[int, list[float]] = {number: [] for number in numbers}
    for pair in range(pairs):
        for number in numbers if pair % 2 == 0 else reversed(numbers):
            one_turn = folder / f"{number}-{pair}"
            found = result_of("devices", replace(work, devices=number), 1, one_turn, **environment)
            rates[number].append(found["tokens_per_sec"])
    ratios = [many / one for one, many in zip(*rates.values(), strict=True)]
    spreads = {f"tokens_per_sec_{number}": spread(of) for number, of in rates.items()}
    print(f"{work.scale}, {work.precision}, batch {work.batch} x {work.block_size}, micro-batch 1")
    for number, of in rates.items():
        print(f"  {number} devices: {statistics.median(of):,.0f} tokens/s ({min(of):,.0f} to {max(of):,.0f})")
    ratio = spread(ratios)
    print(f"  ratio {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})", flush=True)
    return {"scale": work.scale, "precision": work.precision, "global_batch_size": work.batch,
            "block_size": work.block_size, "devices": work.devices, "ratio": ratio, **spreads}  # fmt: skip


def compare(
    work: Work, stock_sizes: list[int], pairs: int, round_steps: int, folder: Path, together: bool, held: ExitStack
) -> dict[str, object]:
    """All figures of one scale and precision; ``together`` starts the trainers at once, and ``held`` ends them."""
    folder.mkdir(parents=True)

    def begin(what: str, micro: int | None, keep_memory: bool = False) -> Worker:
        worker = Worker(what, work, micro, folder, keep_memory)
        held.callback(worker.stop)
        return worker

    first: dict[str, float] = {}
    begun: dict[tuple[str, int | None], Worker] = {}
    sizes = [size for size in stock_sizes if work.batch % size == 0]
    if together:
        begun = {("stock", size): begin("stock", size) for size in sizes}
        begun["ours", None] = begin("ours", None)
        micro = micro_batch_of(begun["ours", None].choices())
        begun["body", micro] = begin("body", micro, keep_memory=True)

    def started(what: str, micro: int | None, keep_memory: bool = False) -> Worker:
        worker = begun.pop((what, micro), None) or begin(what, micro, keep_memory)
        (seconds,) = worker.told()["seconds"]
        first.setdefault(f"stock-{micro}" if what == "stock" else what, seconds)
        return worker

    candidates = {micro: started("stock", micro) for micro in sizes}
    trials = {micro: [] for micro in sizes}
    for _ in range(3 if len(sizes) > 1 else 1):  # of one size there is nothing to choose
        for micro, worker in candidates.items():
            trials[micro].append(worker.round(round_steps))
    seconds = {micro: statistics.median(step["seconds"] for step in steps) for micro, steps in trials.items()}
    peaks = {micro: max(step["gigabytes"] for step in steps) for micro, steps in trials.items()}
    best = min(seconds, key=seconds.get)
    for micro in sizes:
        speed = work.tokens / seconds[micro]
        print(f"  stock, micro-batch {micro}: {speed:,.0f} tokens/s, peak {peaks[micro]:.2f} GB", flush=True)
        if micro != best:
            candidates[micro].stop()

    workers = {"stock": candidates[best], "ours": started("ours", None)}
    if not torch.cuda.is_available():
        workers["stock keeping memory"] = started("stock", best, keep_memory=True)
    described = workers["ours"].choices()
    ours_micro = micro_batch_of(described)
    workers["body"] = started("body", ours_micro, keep_memory=True)
    steps = {what: [] for what in workers}
    for pair in range(pairs):
        for what in workers if pair % 2 == 0 else reversed(workers):
            steps[what].append(workers[what].round(round_steps))
    held.close()  # what follows measures the machine

    first["stock"] = first[f"stock-{best}"]
    micros = {"stock": best, "ours": ours_micro}
    figures = summary(work, micros, first, steps, machine_rates(work, folder))
    figures["choices"] = described
    figures["stock"]["tokens_per_sec_by_micro_batch_size"] = {m: work.tokens / s for m, s in seconds.items()}
    figures["stock"]["peak_gigabytes_by_micro_batch_size"] = peaks
    return figures


RATES: dict[str, dict[str, float]] = {}
"""By precision."""


def machine_rates(work: Work, folder: Path) -> dict[str, float]:
    """What :func:`measure_machine` finds, once for a precision, in a process of its own."""
    if work.precision not in RATES:
        RATES[work.precision] = result_of("machine", work, None, folder / "machine")
    return RATES[work.precision]


def summary(
    work: Work,
    micros: dict[str, int],
    first: dict[str, float],
    steps: dict[str, list[dict[str, float]]],
    best: dict[str, float],
) -> dict[str, object]:
    """Figures from raw times; ratios and shares are those of the rounds."""
    from litgpt.utils import num_parameters

    from litgpt_warmstart.method.flops import matmul_flops_per_token
    from litgpt_warmstart.method.model import MuGPT

    config, tokens = work.config, work.tokens
    with torch.device("meta"):
        parameters = num_parameters(MuGPT(config))
    flops = matmul_flops_per_token(config, work.block_size)
    # fp32 weights read twice, gradients written and read, Adam's moments read and written, weights written: once a step
    step_bytes = 4 * parameters * 9
    roofline = tokens / max(tokens * flops / best["matmul_flops_per_sec"], step_bytes / best["bytes_per_sec"])
    seconds = {what: [step["seconds"] for step in of] for what, of in steps.items()}

    def ratio(over: str, under: str) -> list[float]:
        return [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]

    figures = {"scale": work.scale, "precision": work.precision, "global_batch_size": work.batch}
    figures["block_size"] = work.block_size
    figures |= {"ratio": spread(ratio("stock", "ours")), "roofline_tokens_per_sec": roofline, **best}
    figures["body_tokens_per_sec"] = spread([tokens / s for s in seconds["body"]])
    if "stock keeping memory" in steps:
        keeping = {"tokens_per_sec": spread([tokens / s for s in seconds["stock keeping memory"]])}
        figures["stock_keeping_memory"] = keeping | {"ratio": spread(ratio("stock keeping memory", "ours"))}
    for what, micro in micros.items():
        speed = spread([tokens / s for s in seconds[what]])
        figures[what] = {
            "micro_batch_size": micro,
            "tokens_per_sec": speed,
            "peak_gigabytes": max(step["gigabytes"] for step in steps[what]),
            "first_step_seconds": first[what],
            "head_and_loss_share": 1 - statistics.median(ratio("body", what)),
            "roofline_share": speed["median"] / roofline,
            "flops_per_sec": speed["median"] * flops,
            "seconds": seconds[what],
        }
    return figures


def show(figures: dict[str, object]) -> None:
    """Print one scale and precision."""
    peak = next((rate for name, rate in DENSE_BF16_FLOPS.items() if name in str(machine()["device"])), None)
    print(f"{figures['scale']}, {figures['precision']}, batch {figures['global_batch_size']} x {figures['block_size']}")
    for what in ("stock", "ours"):
        f = figures[what]
        mfu = f", MFU {f['flops_per_sec'] / peak:.1%}" if peak and "bf16" in figures["precision"] else ""
        print(
            f"  {what:5} {f['tokens_per_sec']['median']:10,.0f} tokens/s ({f['tokens_per_sec']['min']:,.0f} to"
            f" {f['tokens_per_sec']['max']:,.0f}), micro-batch {f['micro_batch_size']}, peak"
            f" {f['peak_gigabytes']:.2f} GB, head and loss {f['head_and_loss_share']:.0%} of the step,"
            f" {f['roofline_share']:.0%} of the roofline{mfu}; first step {f['first_step_seconds']:.0f} s"
        )
    ratio = figures["ratio"]
    sizes = figures["stock"]["peak_gigabytes_by_micro_batch_size"]
    default = f" (micro-batch 4: {figures['ours']['peak_gigabytes'] / sizes[4]:.2f})" if 4 in sizes else ""
    print(
        f"  ratio {ratio['median']:.2f} (pairs {ratio['min']:.2f} to {ratio['max']:.2f}); memory ours/stock"
        f" {figures['ours']['peak_gigabytes'] / figures['stock']['peak_gigabytes']:.2f}{default}; roofline"
        f" {figures['roofline_tokens_per_sec']:,.0f} tokens/s at {figures['matmul_flops_per_sec'] / 1e9:,.0f} GFLOP/s"
        f" and {figures['bytes_per_sec'] / 1e9:,.0f} GB/s\n  {figures['choices']}",
        flush=True,
    )
    if keeping := figures.get("stock_keeping_memory"):
        speed, ratio = keeping["tokens_per_sec"], keeping["ratio"]
        print(
            f"  stock with glibc told to keep its memory: {speed['median']:,.0f} tokens/s, ratio {ratio['median']:.2f}"
            f" ({ratio['min']:.2f} to {ratio['max']:.2f})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scales", nargs="+", choices=["5M", "10M", "22M", "35M", "70M"], default=["5M", "22M", "70M"])
    parser.add_argument(
        "--precisions", nargs="+", choices=["32-true", "bf16-mixed", "bf16-true"], default=["32-true", "bf16-mixed"]
    )
    parser.add_argument("--global_batch_size", type=positive, default=8, help="sequences per optimizer step")
    parser.add_argument("--block_size", type=positive, default=1024, help="tokens per sequence")
    parser.add_argument(
        "--stock_micro_batch_sizes", type=positive, nargs="+", default=[1, 2, 4, 8], help="the fastest is taken"
    )
    parser.add_argument("--pairs", type=positive, default=5, help="rounds of each")
    parser.add_argument("--round_steps", type=positive, default=3, help="optimizer steps of a round that count")
    parser.add_argument(
        "--together",
        action="store_true",
        help="start a scale's trainers at once: sooner done on many cores, but first steps wait for each other",
    )
    parser.add_argument(
        "--devices", type=positive, default=1, help="compare so many processes of one thread with one, and no stock"
    )
    parser.add_argument("--out", type=result_file, help="JSON file to write")
    args = parser.parse_args()
    if not any(args.global_batch_size % size == 0 for size in args.stock_micro_batch_sizes):
        parser.error("no --stock_micro_batch_sizes divides --global_batch_size")
    if args.block_size > 1024:
        parser.error("--block_size is above the scales' 1,024")
    results, failed = [], False
    with tempfile.TemporaryDirectory() as folder:
        for scale in args.scales:
            for precision in args.precisions:
                work = Work(scale, precision, args.global_batch_size, args.block_size, args.devices)
                own = Path(folder) / f"{scale}-{precision}"
                if args.devices > 1:
                    results.append(compare_devices(work, args.pairs, own))
                    write_result(args.out, command_line(), {"results": results})
                    continue
                try:
                    with ExitStack() as held:
                        sizes = args.stock_micro_batch_sizes
                        results.append(compare(work, sizes, args.pairs, args.round_steps, own, args.together, held))
                except (Ended, subprocess.CalledProcessError) as error:  # the next scale is worth having all the same
                    print(f"{scale}, {precision}: {error}", flush=True)
                    failed = True
                    continue
                show(results[-1])
                write_result(args.out, command_line(), {"results": results})
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
