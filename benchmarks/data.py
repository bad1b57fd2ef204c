"""Text to tokens and tokens to batches: this package beside LitGPT's own way, on the same files.

    python benchmarks/data.py [--text_dir DIR] [--tokenizer DIR] [--num_workers 1] [--rounds 3] [--out FILE.json]

See docs/speed.md for what the figures mean.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measuring import machine, result_file

DOCUMENT_CHARACTERS = 4400  # SlimPajama-6B's mean
FILES = 4
BLOCK_SIZE, MICRO_BATCH_SIZE = 1024, 4
SECONDS_BETWEEN_SAMPLES = 1.0
"""Of memory: the kernel takes some 30 ms of a core for the pages of each process, which are not to be measured."""


def cut_into_documents(text_dir: Path | None) -> Iterator[str]:
    """Documents of SlimPajama's mean length."""
    if text_dir is None:
        from litgpt_warmstart.data.stdlib_text import stdlib_documents

        texts = iter(stdlib_documents().values())
    else:
        texts = (path.read_text(encoding="utf-8") for path in sorted(text_dir.rglob("*.txt")))
    for text in texts:
        yield from (text[at : at + DOCUMENT_CHARACTERS] for at in range(0, len(text), DOCUMENT_CHARACTERS))


def write_source(folder: Path, text_dir: Path | None) -> dict[str, float]:
    """Parquet files as SlimPajama-6B has them, the last hundredth as validation."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    documents = list(cut_into_documents(text_dir))
    if not documents:
        raise SystemExit(f"no .txt files in {str(text_dir)!r}")
    val = max(10, len(documents) // 100)
    folder.mkdir()
    for number in range(FILES):
        rows = documents[:-val][number::FILES]
        pq.write_table(pa.table({"text": rows}), folder / f"train-{number:05d}.parquet", row_group_size=1000)
    pq.write_table(pa.table({"text": documents[-val:]}), folder / "validation-00000.parquet", row_group_size=1000)
    return {"megabytes": sum(len(text.encode()) for text in documents) / 1e6, "documents": len(documents)}


class PeakMemory:
    """The most memory that this process and its children held at once: their proportional set size, sampled."""

    def __enter__(self) -> "PeakMemory":
        self.megabytes, self._done = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        import psutil

        me = psutil.Process()
        while not self._done.wait(SECONDS_BETWEEN_SAMPLES):
            total = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.megabytes = max(self.megabytes, total / 1e6)

    def __exit__(self, *args: object) -> None:
        self._done.set()
        self._thread.join()


def timed(function: Callable[[], None]) -> dict[str, float]:
    """Seconds and peak memory."""
    with PeakMemory() as memory:
        started = time.perf_counter()
        function()
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_megabytes": memory.megabytes}


def measure_ours(work: Path, tokenizer: Path, num_workers: int) -> dict[str, float]:
    """warmstart_prepare_data, from files to a finished folder."""
    import litdata.streaming.writer  # noqa: F401  # as LitGPT's way has it, too, before its time is taken

    from litgpt_warmstart.data.preparing.prepare import prepare
    from litgpt_warmstart.data.preparing.request import Preparation

    target = work / "ours"
    shutil.rmtree(target, ignore_errors=True)
    asked = Preparation(target, text_dir=work / "source", tokenizer=str(tokenizer), num_workers=num_workers)
    return timed(lambda: prepare(asked, say=lambda line: None))


def measure_bare(work: Path, tokenizer: Path, num_workers: int) -> dict[str, float]:
    """The encoder alone, over text that is in memory already, in one process."""
    import pyarrow.parquet as pq

    from litgpt_warmstart.data.preparing.encode import DocumentEncoder

    encoder = DocumentEncoder(tokenizer)
    texts = [t for path in sorted((work / "source").glob("*.parquet")) for t in pq.read_table(path)["text"].to_pylist()]
    found = timed(lambda: [encoder.encode(text) for text in texts])
    return found | {"seconds": found["seconds"] / num_workers}


def tokenize_rows(path: str, tokenizer: object) -> Iterator[object]:
    """What LitGPT's prepare_slimpajama does, on parquet files: one row at a time, to a tensor."""
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(path).iter_batches(columns=["text"]):
        for text in batch.column(0):
            yield tokenizer.encode(text.as_py(), bos=False, eos=True)


def measure_litgpt(work: Path, tokenizer: Path, num_workers: int) -> dict[str, float]:
    """LitGPT's Tokenizer.encode for each row, inside litdata's optimize."""
    from functools import partial

    from litdata.processing.functions import optimize
    from litdata.streaming import TokensLoader
    from litgpt.tokenizer import Tokenizer

    target = work / "litgpt"
    shutil.rmtree(target, ignore_errors=True)
    paths = [str(path) for path in sorted((work / "source").glob("*.parquet"))]
    run = partial(
        optimize,
        fn=partial(tokenize_rows, tokenizer=Tokenizer(work / "ours")),  # GPT-2's own files lack what it needs
        inputs=paths,
        output_dir=str(target),
        num_workers=num_workers,
        chunk_bytes="50MB",
        item_loader=TokensLoader(block_size=BLOCK_SIZE + 1),
    )
    return timed(run)


def measure_reading(work: Path, tokenizer: Path, num_workers: int) -> dict[str, float]:
    """The loader alone, to inputs and targets; then within training steps of the 5M scale."""
    import torch

    from litgpt_warmstart.data import PreparedText
    from litgpt_warmstart.data.loaders import next_batches
    from litgpt_warmstart.method import parametrization
    from litgpt_warmstart.method.loss import NextTokenLoss
    from litgpt_warmstart.method.model import MuGPT
    from litgpt_warmstart.method.scales import resolve_config

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = PreparedText(work / "ours")
    data.connect(batch_size=MICRO_BATCH_SIZE, max_seq_length=BLOCK_SIZE)
    data.prepare_data()
    speeds = []
    for _ in range(5):
        started, tokens = time.perf_counter(), 0
        for input_ids, _targets in next_batches(data.train_dataloader(), torch.device("cpu")):
            tokens += input_ids.numel()
            if tokens > 2e7:
                break
        speeds.append(tokens / (time.perf_counter() - started))

    config = resolve_config("5M", data.padded_vocab_size, data.vocab_size)
    gpt = MuGPT(config, 1.0)
    parametrization.set_base_shapes(gpt, config)
    parametrization.load_weights(gpt, parametrization.initial_weights(gpt, config, 0))
    module = NextTokenLoss(gpt).to(device)
    optimizer = parametrization.build_optimizer(gpt, torch.optim.AdamW, {"fused": True}, 0.01)
    batches = next_batches(data.train_dataloader(), device)
    waiting, whole = [], []
    for _ in range(12):
        started = time.perf_counter()
        input_ids, targets = next(batches)
        waiting.append(time.perf_counter() - started)
        module(input_ids, targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        whole.append(time.perf_counter() - started)
    return {
        "tokens_per_sec": statistics.median(speeds),
        "step_seconds": statistics.median(whole[2:]),
        "waiting_share": statistics.median(w / s for w, s in list(zip(waiting, whole, strict=True))[2:]),
    }


MEASURES = {"bare": measure_bare, "ours": measure_ours, "litgpt": measure_litgpt, "reading": measure_reading}
"""What is timed; ``ours`` on one core, too, where it has more."""


def in_own_process(name: str, work: Path, tokenizer: Path, num_workers: int) -> dict[str, float]:
    """Run one measurement, so that memory and threads of one do not weigh on the next."""
    command = [sys.executable, __file__, "--measure", name, "--work", str(work), "--tokenizer", str(tokenizer),
               "--num_workers", str(num_workers)]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})
    if ran.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{ran.stderr[-2000:]}")
    return json.loads(ran.stdout.splitlines()[-1])


def compare(work: Path, tokenizer: Path, num_workers: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """All measurements in turn, ``rounds`` times."""
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds):
        names = ["bare", "ours", *(["ours on one core"] if num_workers > 1 else []), "litgpt"]
        for name in names + (["reading"] if number == 0 else []):
            workers = 1 if name == "ours on one core" else num_workers
            for key, value in in_own_process(name.split()[0], work, tokenizer, workers).items():
                found.setdefault(name, {}).setdefault(key, []).append(value)
            print(f"round {number + 1} of {rounds}: {name} {found[name][next(iter(found[name]))][-1]:,.1f}", flush=True)
    return found


def report(found: dict[str, dict[str, list[float]]], megabytes: float, num_workers: int) -> dict[str, float]:
    """Print the table, and give its figures."""

    def speed(name: str) -> float:
        return megabytes / statistics.median(found[name]["seconds"]) / num_workers

    def paired(over: str, under: str) -> float:
        return statistics.median(a / b for a, b in zip(found[over]["seconds"], found[under]["seconds"], strict=True))

    figures = {f"{name}_megabytes_per_sec_per_core": speed(name) for name in ("litgpt", "ours", "bare")}
    figures |= {"times_litgpt": paired("litgpt", "ours"), "share_of_bare": paired("bare", "ours")}
    print(f"\n{'':34} MB/s per core   peak memory, MB")
    for name, title in (("litgpt", "LitGPT's Tokenizer in optimize"), ("ours", "warmstart_prepare_data"),
                        ("bare", "the encoder alone, text in memory")):  # fmt: skip
        memory = statistics.median(found[name]["peak_megabytes"])
        figures[f"{name}_peak_megabytes"] = memory
        print(f"{title:34} {speed(name):13.2f} {memory:17,.0f}")
    print(f"ours / LitGPT's: {figures['times_litgpt']:.1f} times; ours / encoder alone: {figures['share_of_bare']:.0%}")
    if num_workers > 1:
        figures["times_one_core"] = paired("ours on one core", "ours")
        print(f"ours on {num_workers} cores / on one: {figures['times_one_core']:.2f} times")
    reading = {key: values[0] for key, values in found["reading"].items()}
    print(
        f"reading alone: {reading['tokens_per_sec'] / 1e6:.1f} M tokens/s; of a training step at 5M"
        f" ({reading['step_seconds']:.2f} s) {reading['waiting_share']:.3%} waits for data"
    )
    return figures | reading


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text_dir", type=Path, help="folder of .txt files; default: Python's standard library")
    parser.add_argument(
        "--tokenizer", type=Path, help="folder with a tokenizer.json; default: StdlibText's, 4,096 tokens"
    )
    parser.add_argument("--num_workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=result_file, help="JSON file to write")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        if args.measure != "reading" and hasattr(os, "sched_setaffinity"):  # hashing and the like on the same cores
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.num_workers])
        print(json.dumps(MEASURES[args.measure](args.work, args.tokenizer, args.num_workers)))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        tokenizer = args.tokenizer
        if tokenizer is None:
            from litgpt_warmstart.data import StdlibText

            StdlibText(work / "stdlib").prepare_data()
            tokenizer = work / "stdlib"
        source = write_source(work / "source", args.text_dir)
        print(
            f"{source['megabytes']:.1f} MB, {source['documents']:,} documents, {args.num_workers} workers", flush=True
        )
        found = compare(work, tokenizer, args.num_workers, args.rounds)
        index = json.loads((work / "ours" / "prepared.json").read_text())
    figures = report(found, source["megabytes"], args.num_workers)
    result = {"command": f"python benchmarks/data.py --num_workers {args.num_workers} --rounds {args.rounds}"
              + (" --text_dir DIR" if args.text_dir else "") + (" --tokenizer DIR" if args.tokenizer else ""),
              **machine("tiktoken", "tokenizers", "litdata", "pyarrow"), **source,
              "vocab_size": index["vocab_size"], "encoder": index["encoder"],
              "num_workers": args.num_workers, "figures": figures, "rounds": found}  # fmt: skip
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
