"""Head and loss: tokens/s of forward and backward with each way that is possible here.

python benchmarks/loss.py [--n_embd 48 192 512] [--classes 50304] [--precisions 32-true bf16-mixed]
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import get_args

import lightning as L
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import measuring  # puts the repository on the path
from litgpt.config import Config

from litgpt_warmstart.method.loss import LossImpl, NextTokenLoss, why_not
from litgpt_warmstart.method.model import MuGPT
from litgpt_warmstart.run.build import compiled
from litgpt_warmstart.run.tuning import why_not_compile

BLOCK_SIZE = 1024


def measure(config: Config, precision: str, compile: bool, micro_batch_size: int, rounds: int) -> dict[str, float]:
    """Tokens/s of each way, the median of rounds that go through all of them in turn."""
    fabric = L.Fabric(accelerator="cuda" if torch.cuda.is_available() else "cpu", devices=1, precision=precision)
    with fabric.init_module():
        gpt = MuGPT(config)
    gpt.max_seq_length = BLOCK_SIZE
    tokens = torch.randint(config.vocab_size, (micro_batch_size, BLOCK_SIZE + 1), device=fabric.device)
    input_ids, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    torch._dynamo.reset()
    modules = {}
    for impl in get_args(LossImpl):
        if why_not(impl, config, precision) is None:
            module = NextTokenLoss(gpt, impl)
            modules[impl] = fabric.setup(compiled(module, True) if compile else module)

    def seconds(module: torch.nn.Module) -> float:
        start = time.perf_counter()
        fabric.backward(module(input_ids, targets))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    taken = {impl: [] for impl in modules}
    for number in range(-2, rounds):  # the first two compile and warm up
        for impl, module in modules.items():
            gpt.zero_grad()
            if number < 0:
                seconds(module)
            else:
                taken[impl].append(seconds(module))
    return {impl: round(input_ids.numel() / statistics.median(times), 1) for impl, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_embd", type=measuring.positive, nargs="+", default=[48, 192, 512])
    parser.add_argument("--classes", type=measuring.positive, nargs="+", default=[50304])
    precisions = ["32-true", "bf16-mixed", "bf16-true"]
    parser.add_argument("--precisions", nargs="+", choices=precisions, default=precisions[:2])
    parser.add_argument("--compile", nargs="+", choices=["true", "false"], default=["true", "false"])
    parser.add_argument("--micro_batch_size", type=measuring.positive, default=16 if torch.cuda.is_available() else 2)
    parser.add_argument("--rounds", type=measuring.positive, default=5)
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for precision in args.precisions:
        for compile in (word == "true" for word in args.compile):
            if compile and (reason := why_not_compile(device)):
                print(f"not compiled: {reason}")
                continue
            for classes in args.classes:
                for n_embd in args.n_embd:
                    config = Config(name=f"width {n_embd}", block_size=BLOCK_SIZE, n_layer=6, n_embd=n_embd,
                                    n_head=max(2, n_embd // 32), vocab_size=classes, padded_vocab_size=classes,
                                    rotary_percentage=0.25)  # fmt: skip
                    speeds = measure(config, precision, compile, args.micro_batch_size, args.rounds)
                    print(f"{precision}, {'compiled' if compile else 'eager'}, n_embd {n_embd}, {classes:,} classes: "
                          + ", ".join(f"{impl} {speed:,.0f}" for impl, speed in speeds.items())
                          + " tokens/s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
