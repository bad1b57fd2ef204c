"""What --track costs: the seconds of one recording beside those of one optimizer step, in turn.

python benchmarks/track.py [--scales 5M] [--global_batch_sizes 1 4 8] [--pairs 7] [--out FILE.json]
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import lightning as L
import torch
from measuring import command_line, positive, result_file, spread, write_result

from litgpt_warmstart.method import parametrization
from litgpt_warmstart.method.loss import NextTokenLoss, choose
from litgpt_warmstart.method.model import MuGPT
from litgpt_warmstart.method.scales import resolve_config
from litgpt_warmstart.run.build import compiled
from litgpt_warmstart.run.metrics import RowFile
from litgpt_warmstart.run.norms import FILE_NAME, NORMS, measure
from litgpt_warmstart.run.resolve import default_micro_batch

INTERVALS = {10: 0.10, 100: 0.03}
"""Steps between two recordings, and the share of the time that they may cost."""


def seconds(work: Callable[[], None]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measured(scale: str, precision: str, batch: int, micro: int, pairs: int, folder: Path) -> dict[str, object]:
    """Seconds of a step and of a recording, and what recordings cost, at one scale and batch.

    Args:
        scale: Target, with the vocabulary of the paper.
        precision: Fabric's.
        batch: Sequences per optimizer step.
        micro: Sequences per micro-batch.
        pairs: A step and a recording each; two more before do not count.
        folder: For norms.csv.
    """
    config = resolve_config(scale)
    fabric = L.Fabric(accelerator="cuda" if torch.cuda.is_available() else "cpu", devices=1, precision=precision)
    with fabric.init_module():
        gpt = MuGPT(config)
    gpt.max_seq_length = config.block_size
    parametrization.set_base_shapes(gpt, config)
    parametrization.load_weights(gpt, parametrization.initial_weights(gpt, config, seed=0))
    impl, _ = choose("auto", config, precision, fabric.device, micro * config.block_size)
    torch._dynamo.reset()
    module = fabric.setup(compiled(NextTokenLoss(gpt, impl), True))
    optimizer = fabric.setup_optimizers(parametrization.build_optimizer(gpt, torch.optim.AdamW, {}, 0.003))
    tokens = torch.randint(config.vocab_size, (batch, config.block_size + 1), device=fabric.device)
    file = RowFile(folder / FILE_NAME, NORMS)

    def step() -> None:
        for part in tokens.split(micro):
            fabric.backward(module(part[:, :-1].contiguous(), part[:, 1:].contiguous()) * len(part) / batch)
        fabric.clip_gradients(gpt, optimizer, max_norm=1.0, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()

    def recording() -> None:
        with fabric.autocast():
            norms = measure(gpt, tokens[:1, :-1])
        file.append({"step": 0, "tokens": 0} | norm for norm in norms)

    rows = [(seconds(step), seconds(recording)) for _ in range(2 + pairs)][2:]
    file.close()
    costs = {n: spread([recorded / (n * stepped) for stepped, recorded in rows]) for n in INTERVALS}
    return {
        "scale": scale,
        "precision": precision,
        "block_size": config.block_size,
        "global_batch_size": batch,
        "micro_batch_size": micro,
        "loss_impl": impl,
        "step_seconds": spread([row[0] for row in rows]),
        "recording_seconds": spread([row[1] for row in rows]),
        "cost_by_interval": costs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scales", nargs="+", default=["5M"])
    parser.add_argument("--precisions", nargs="+", default=["bf16-mixed" if torch.cuda.is_available() else "32-true"])
    parser.add_argument("--global_batch_sizes", type=positive, nargs="+", default=[1, 4, 8])
    parser.add_argument("--micro_batch_size", type=positive, help="default: the largest up to 4 that divides the batch")
    parser.add_argument("--pairs", type=positive, default=7)
    parser.add_argument("--out", type=result_file, help="JSON file to write")
    args = parser.parse_args()
    results = []
    for scale in args.scales:
        for precision in args.precisions:
            for batch in args.global_batch_sizes:
                micro = args.micro_batch_size or default_micro_batch(batch)
                with tempfile.TemporaryDirectory() as folder:
                    result = measured(scale, precision, batch, micro, args.pairs, Path(folder))
                results.append(result)
                costs = ", ".join(
                    f"every {n} steps {cost['median']:.2%} (at most {cost['max']:.2%}; asked: below {INTERVALS[n]:.0%})"
                    for n, cost in result["cost_by_interval"].items()
                )
                print(
                    f"{scale} {precision} batch {batch} x {result['block_size']:,} ({result['loss_impl']}): a step"
                    f" {result['step_seconds']['median']:.3f} s, a recording"
                    f" {result['recording_seconds']['median']:.3f} s: {costs}",
                    flush=True,
                )
    write_result(
        args.out, command_line(), {"threads": torch.get_num_threads(), "pairs": args.pairs, "results": results}
    )


if __name__ == "__main__":
    main()
