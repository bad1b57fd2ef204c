"""The processes of benchmarks/train.py: each trains as its command would, and makes rounds of steps when it is told.

    python benchmarks/trainers.py stock|ours|body|devices|machine WORK MICRO_BATCH_SIZE FOLDER

The first three are a :class:`Worker` to the process that compares them; the last two print what they found, and end.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config
from litgpt.data import DataModule
from torch.utils.data import DataLoader, IterableDataset

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measuring import forget_peak, least_seconds, resident_gigabytes

LEARNING_RATE = 1e-3
STEPS = 8
"""Of a run whose devices are compared."""
MAX_TOKENS = 5 * 10**7
"""Of our run, which never comes to its end: with more, a longer time would go into trying micro-batches."""
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


def command_of(what: str, work: Work, micro: int | None, folder: Path) -> list[str]:
    """The command line of one of these processes, which writes into a folder of its own."""
    return [sys.executable, __file__, what, json.dumps(asdict(work)), str(micro or 0), str(folder)]


def result_of(what: str, work: Work, micro: int | None, folder: Path, **environment: str) -> dict[str, float]:
    """What one of these processes found, once it has come to its end."""
    with folder.with_suffix(".log").open("w") as log:
        command = command_of(what, work, micro, folder)
        told = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=log, check=True, text=True, env=os.environ | environment
        )
    return json.loads(told.stdout)


class Ended(Exception):
    """A trainer's process is gone; the message has the end of its log."""


class Worker:
    """A trainer in a process of its own that makes optimizer steps when told."""

    def __init__(self, what: str, work: Work, micro: int | None, folder: Path, keep_memory: bool = False) -> None:
        name = f"{what}-{micro}" + ("-keeping" if keep_memory else "")
        self.log = folder / f"{name}.log"
        own = folder / f"{name}-cache"  # nothing is compiled yet, and no micro-batch found
        own.mkdir()
        caches = {name: str(own) for name in ("XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TMPDIR")}
        caches |= KEEP_MEMORY if keep_memory else {}
        environment = {**os.environ, **caches, "JSONARGPARSE_DEPRECATION_WARNINGS": "off"}
        self.process = subprocess.Popen(
            command_of(what, work, micro, folder / name),
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
            raise Ended(f"{self.log.name} ended:\n{tail}")
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
        with suppress(BrokenPipeError):  # it has ended, which is told next
            self.process.stdin.write(f"{number}\n")
            self.process.stdin.flush()
        return self.told()

    def round(self, number: int) -> dict[str, float]:
        """The median seconds of some steps after one that warms up: memory of who waits may have been reclaimed."""
        told = self.steps(1 + number)
        return {"seconds": statistics.median(told["seconds"][1:]), "gigabytes": told["gigabytes"]}

    def stop(self) -> None:
        """End it, if it has not ended."""
        if self.process.poll() is None:
            self.process.kill()  # it has nothing to save
        self.process.wait()


def micro_batch_of(choices: str) -> int:
    """The micro-batch size that :meth:`Worker.choices` names."""
    return int(choices.partition("micro-batch ")[2].split()[0])


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
    parser.add_argument("what", choices=WORKERS)
    parser.add_argument("work", type=json.loads, help="the fields of Work as JSON")
    parser.add_argument("micro_batch_size", type=int, help="0 for what the trainer chooses")
    parser.add_argument("folder", type=Path, help="where it writes")
    args = parser.parse_args()
    global CHANNEL
    CHANNEL = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the trainers print goes to the log
    sys.stdout.reconfigure(line_buffering=True)
    result = WORKERS[args.what](Work(**args.work), args.micro_batch_size or None, args.folder)
    if result:
        print(json.dumps(result), file=CHANNEL, flush=True)


if __name__ == "__main__":
    main()
