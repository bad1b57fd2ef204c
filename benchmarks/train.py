"""Training speed: stock ``litgpt pretrain`` and this package in turn, on the same model, data, precision and batch.

    python benchmarks/train.py [--scales 5M 22M 70M] [--precisions 32-true bf16-mixed] [--pairs 5] [--out FILE.json]

Both trainers run whole and unchanged, each in a process of its own; a DataModule that waits for a word lets them make
rounds of steps in turn. See docs/speed.md for what the figures mean.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config
from litgpt.data import DataModule
from torch.utils.data import DataLoader, IterableDataset

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measuring import (
    command_line,
    forget_peak,
    least_seconds,
    machine,
    positive,
    resident_gigabytes,
    spread,
    write_result,
)

LEARNING_RATE = 1e-3
STEPS = 8
"""Of a run whose devices are compared."""
MAX_TOKENS = 5 * 10**7
"""Of our run, which never comes to its end: with more, a longer time would go into trying micro-batches."""
DENSE_BF16_FLOPS = {"H100": 989.4e12, "H200": 989.4e12}
"""Peak rates for the model FLOPs utilization, without sparsity (NVIDIA's data sheets)."""
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(10**11)}
"""What has glibc keep memory that is given back, as our commands do on a CPU."""


@dataclass(frozen=True)
class Work:
    """What a step is made of."""

    scale: str
    precision: str
    batch: int
    """Sequences."""
    block_size: int
    """Tokens of a sequence."""
    devices: int = 1
    """Processes of one thread each, where they are what is compared."""

    @property
    def tokens(self) -> int:
        return self.batch * self.block_size

    @property
    def options(self) -> list[str]:
        return ["--scales", self.scale, "--precisions", self.precision, "--global_batch_size", str(self.batch),
                "--block_size", str(self.block_size), "--devices", str(self.devices)]  # fmt: skip

    @property
    def config(self) -> Config:
        from litgpt_warmstart.method import scales

        return replace(scales.resolve_config(self.scale), block_size=self.block_size)


class Gate(IterableDataset):
    """Random tokens, shape (T + 1,) each, for as many optimizer steps as the parent says, of which it is told."""

    def __init__(self, sequences_per_step: int, block_size: int, classes: int) -> None:
        self.shape, self.classes = (sequences_per_step, block_size + 1), classes

    def __iter__(self) -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(self.classes, self.shape, generator=generator)
        number = 1  # who only looks at the first batch waits for nothing
        while True:
            seconds = []
            for _ in range(number):
                start = time.perf_counter()
                yield from tokens
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
            told = {"seconds": seconds, "gigabytes": resident_gigabytes()}
            if torch.cuda.is_available():
                told["gigabytes"] = torch.cuda.max_memory_allocated() / 1e9
            print(json.dumps(told), file=CHANNEL, flush=True)
            sys.stdout.flush()
            word = sys.stdin.readline().strip()
            if not word.isdigit():
                os._exit(0)
            number = int(word)
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            else:
                forget_peak()


class GatedTokens(DataModule):
    """The same random tokens for both trainers."""

    def __init__(self, sequences_per_step: int = 8, block_size: int = 1024, classes: int = 50257) -> None:
        super().__init__()
        self.sequences_per_step, self.block_size, self.classes = sequences_per_step, block_size, classes

    def connect(self, tokenizer=None, batch_size: int = 1, max_seq_length: int | None = None) -> None:
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        gate = Gate(self.sequences_per_step, self.block_size, self.classes)
        return DataLoader(gate, self.batch_size, pin_memory=torch.cuda.is_available())

    def val_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(2 * self.batch_size, self.block_size + 1, dtype=torch.int64), self.batch_size)


def run_stock(work: Work, micro: int | None, out_dir: Path) -> None:
    """``litgpt.pretrain`` as its command runs it, with LitGPT's defaults beyond the common settings."""
    import litgpt.pretrain

    from litgpt_warmstart.method import scales

    scales.register()
    torch.set_float32_matmul_precision("high")  # as litgpt's script does
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": LEARNING_RATE, "betas": [0.9, 0.95]}}
    litgpt.pretrain.setup(
        "pythia-14m",
        model_config=work.config,
        out_dir=out_dir,
        precision=work.precision,
        data=GatedTokens(work.batch, work.block_size),
        train=litgpt.pretrain.TrainArgs(
            save_interval=None, log_interval=1, global_batch_size=work.batch, micro_batch_size=micro, max_tokens=10**9,
            max_norm=1.0, min_lr=LEARNING_RATE / 10, lr_warmup_steps=0,
        ),
        eval=litgpt.pretrain.EvalArgs(interval=10**9, max_iters=2, initial_validation=False),
        optimizer=optimizer,
        devices=1,
        logger_name="csv",
    )  # fmt: skip


def train_ours(work: Work, micro: int | None, out_dir: Path, data: DataModule, **budget: int) -> None:
    """``warmstart_scratch``, with what it chooses by itself."""
    from litgpt_warmstart.commands import warmstart_scratch
    from litgpt_warmstart.run.spec import EvalArgs, TrainArgs

    torch.set_float32_matmul_precision("high")  # as our script does
    warmstart_scratch.setup(
        target=work.scale,
        mup_base="5M",
        lr=LEARNING_RATE,
        out_dir=out_dir,
        precision=work.precision,
        devices=work.devices,
        data=data,
        train=TrainArgs(save_interval=None, log_interval=1, global_batch_size=work.batch, micro_batch_size=micro,
                        max_seq_length=work.block_size, **budget),
        eval=EvalArgs(interval=10**9, max_iters=2, initial_validation=False, final_validation=False),
        logger_name="csv",
    )  # fmt: skip


def run_ours(work: Work, micro: int | None, out_dir: Path) -> None:
    """Ours, beside stock."""
    train_ours(work, micro, out_dir, GatedTokens(work.batch, work.block_size), max_tokens=MAX_TOKENS)


def run_devices(work: Work, micro: int | None, out_dir: Path) -> dict[str, float]:
    """The median tokens/s of ours on so many devices, after two steps that compile and warm up."""
    from random_tokens import RandomTokens

    from litgpt_warmstart.run.metrics import read_metrics

    data = RandomTokens(STEPS * work.batch, work.block_size)
    train_ours(work, micro, out_dir, data, max_steps=STEPS, max_tokens=10**9)
    rates = [row["tokens_per_sec"] for row in read_metrics(out_dir / "metrics.csv") if "tokens_per_sec" in row]
    return {"tokens_per_sec": statistics.median(rates[2:])}


def compare_devices(work: Work, pairs: int, folder: Path) -> dict[str, object]:
    """Several processes of one thread each with one of them, in turn."""
    folder.mkdir(parents=True)
    numbers = (1, work.devices)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    environment |= {"JSONARGPARSE_DEPRECATION_WARNINGS": "off"}
    rates: dict[int, list[float]] = {number: [] for number in numbers}
    for pair in range(pairs):
        for number in numbers if pair % 2 == 0 else reversed(numbers):
            command = [sys.executable, __file__, "--worker", "devices", *replace(work, devices=number).options]
            command += ["--work", str(folder), "--micro_batch_size", "1", "--name", f"{number}-{pair}"]
            with (folder / f"{number}-{pair}.log").open("w") as log:
                told = subprocess.run(
                    command, stdout=subprocess.PIPE, stderr=log, check=True, text=True, env=environment
                )
            rates[number].append(json.loads(told.stdout.splitlines()[-1])["tokens_per_sec"])
    ratios = [many / one for one, many in zip(*rates.values(), strict=True)]
    found = {f"tokens_per_sec_{number}": spread(of) for number, of in rates.items()}
    print(f"{work.scale}, {work.precision}, batch {work.batch} x {work.block_size}, micro-batch 1")
    for number, of in rates.items():
        print(f"  {number} devices: {statistics.median(of):,.0f} tokens/s ({min(of):,.0f} to {max(of):,.0f})")
    ratio = spread(ratios)
    print(f"  ratio {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})", flush=True)
    return {"scale": work.scale, "precision": work.precision, "global_batch_size": work.batch,
            "block_size": work.block_size, "devices": work.devices, "ratio": ratio, **found}  # fmt: skip


def run_body(work: Work, micro: int | None, out_dir: Path) -> None:
    """The model without its head, forward and backward, compiled: what a step would take if head and loss were free."""
    from litgpt_warmstart.method.model import MuGPT

    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with device:
        gpt = MuGPT(work.config)
    gpt.max_seq_length = work.block_size
    body = torch.compile(gpt.readout_input)
    data = GatedTokens(work.batch, work.block_size)
    data.connect(batch_size=micro)
    for tokens in data.train_dataloader():
        with torch.autocast(device.type, torch.bfloat16, enabled=work.precision.startswith("bf16")):
            hidden = body(tokens[:, :-1].to(device))
        hidden.float().sum().backward()


def measure_machine(work: Work, micro: int | None, out_dir: Path) -> dict[str, float]:
    """What the machine can do at best: a large product, in the faster of fp32 and the run's precision, and a copy."""
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    n = 8192 if device.type == "cuda" else 2048
    rates = []
    for dtype in {torch.float32, torch.bfloat16 if work.precision.startswith("bf16") else torch.float32}:
        square = torch.randn(n, n, device=device).to(dtype)
        repeats = 5 if dtype == torch.float32 or device.type == "cuda" else 1
        rates.append(2 * n**3 / least_seconds(lambda square=square: square @ square, repeats))
    source = torch.randn(50_000_000, device=device)
    target = torch.empty_like(source)
    return {
        "matmul_flops_per_sec": max(rates),
        "bytes_per_sec": 2 * source.nbytes / least_seconds(lambda: target.copy_(source)),
    }


class Worker:
    """A trainer in a process of its own that makes optimizer steps when told."""

    def __init__(self, what: str, work: Work, micro: int | None, folder: Path, keep_memory: bool = False) -> None:
        command = [sys.executable, __file__, "--worker", what, *work.options, "--work", str(folder)]
        if micro:
            command += ["--micro_batch_size", str(micro)]
        name = f"{what}-{micro}" + ("-keeping" if keep_memory else "")
        command += ["--name", name]
        self.log = folder / f"{name}.log"
        own = folder / f"{name}-cache"  # nothing is compiled yet, and no micro-batch found
        own.mkdir()
        caches = {name: str(own) for name in ("XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TMPDIR")}
        caches |= KEEP_MEMORY if keep_memory else {}
        environment = {**os.environ, **caches, "JSONARGPARSE_DEPRECATION_WARNINGS": "off"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            env=environment,
        )

    def told(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            tail = "\n".join(self.log.read_text().splitlines()[-15:])
            raise SystemExit(f"{self.log.name} ended:\n{tail}")
        return json.loads(line)

    def choices(self) -> str:
        """The line in which our trainer says what it chose, once it has."""
        while not (said := [line for line in self.log.read_text().splitlines() if line.startswith("loss ")]):
            if self.process.poll() is not None:
                self.told()
            time.sleep(0.2)
        return said[0]

    def steps(self, number: int) -> dict[str, Any]:
        """The seconds of each of some optimizer steps, and the peak memory of all."""
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        return self.told()

    def round(self, number: int) -> dict[str, float]:
        """The median seconds of some steps after one that warms up: memory of who waits may have been reclaimed."""
        told = self.steps(1 + number)
        return {"seconds": statistics.median(told["seconds"][1:]), "gigabytes": told["gigabytes"]}

    def stop(self) -> None:
        self.process.communicate("stop\n")


def micro_batch_of(choices: str) -> int:
    """The micro-batch size that :meth:`Worker.choices` names."""
    return int(choices.partition("micro-batch ")[2].split()[0])


def compare(
    work: Work, stock_sizes: list[int], pairs: int, round_steps: int, folder: Path, together: bool = False
) -> dict[str, object]:
    """All figures of one scale and precision; ``together`` starts the trainers at once."""
    folder.mkdir(parents=True)
    first: dict[str, float] = {}
    begun: dict[tuple[str, int | None], Worker] = {}
    sizes = [size for size in stock_sizes if work.batch % size == 0]
    if together:
        begun = {("stock", size): Worker("stock", work, size, folder) for size in sizes}
        begun["ours", None] = Worker("ours", work, None, folder)
        micro = micro_batch_of(begun["ours", None].choices())
        begun["body", micro] = Worker("body", work, micro, folder, keep_memory=True)

    def started(what: str, micro: int | None, keep_memory: bool = False) -> Worker:
        worker = begun.pop((what, micro), None) or Worker(what, work, micro, folder, keep_memory)
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
    for worker in workers.values():
        worker.stop()

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
        command = [sys.executable, __file__, "--worker", "machine", *work.options, "--work", str(folder)]
        with (folder / "machine.log").open("w") as log:
            measured = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, check=True, text=True)
        RATES[work.precision] = json.loads(measured.stdout)
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


WORKERS = {
    "stock": run_stock,
    "ours": run_ours,
    "body": run_body,
    "devices": run_devices,
    "machine": measure_machine,
}
CHANNEL = sys.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scales", nargs="+", choices=["5M", "10M", "22M", "35M", "70M"], default=["5M", "22M", "70M"])
    parser.add_argument(
        "--precisions", nargs="+", choices=["32-true", "bf16-mixed", "bf16-true"], default=["32-true", "bf16-mixed"]
    )
    parser.add_argument("--global_batch_size", type=int, default=8, help="sequences per optimizer step")
    parser.add_argument("--block_size", type=positive, default=1024, help="tokens per sequence")
    parser.add_argument(
        "--stock_micro_batch_sizes", type=int, nargs="+", default=[1, 2, 4, 8], help="the fastest is taken"
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
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument("--micro_batch_size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        global CHANNEL
        CHANNEL = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what the trainers print goes to the log
        sys.stdout.reconfigure(line_buffering=True)
        work = Work(args.scales[0], args.precisions[0], args.global_batch_size, args.block_size, args.devices)
        folder = args.work / (args.name or args.worker)
        result = WORKERS[args.worker](work, args.micro_batch_size, folder)
        if result:
            print(json.dumps(result), file=CHANNEL, flush=True)
        return
    if not any(args.global_batch_size % size == 0 for size in args.stock_micro_batch_sizes):
        parser.error("no --stock_micro_batch_sizes divides --global_batch_size")
    if args.block_size > 1024:
        parser.error("--block_size is above the scales' 1,024")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for scale in args.scales:
            for precision in args.precisions:
                work = Work(scale, precision, args.global_batch_size, args.block_size, args.devices)
                own = Path(folder) / f"{scale}-{precision}"
                if args.devices > 1:
                    results.append(compare_devices(work, args.pairs, own))
                    write_result(args.out, command_line(), {"results": results})
                    continue
                sizes = args.stock_micro_batch_sizes
                results.append(compare(work, sizes, args.pairs, args.round_steps, own, args.together))
                show(results[-1])
                write_result(args.out, command_line(), {"results": results})


if __name__ == "__main__":
    main()
