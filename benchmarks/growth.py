"""Growth: 48 -> 512 in memory, and a checkpoint folder into one of about a billion parameters.

    python benchmarks/growth.py [--n_embd 2048] [--n_layer 16] [--rounds 3] [--out FILE.json]

The folder's growth is held against its parts: reading the source's file, drawing the target's normals, and writing a
plain file of the target's size, one after the other.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from litgpt.config import Config
from measuring import command_line, least_seconds, positive, result_file, write_result

from litgpt_warmstart.commands import warmstart_grow
from litgpt_warmstart.method import growth, parametrization
from litgpt_warmstart.method.model import MuGPT
from litgpt_warmstart.method.scales import resolve_config
from litgpt_warmstart.run import checkpoint


def initialized(config: Config, mup_base: Config) -> MuGPT:
    """A model with muP's initialization."""
    model = MuGPT(parametrization.mup_config(config, mup_base), parametrization.width_mult(config, mup_base))
    parametrization.set_base_shapes(model, mup_base)
    parametrization.load_weights(model, parametrization.initial_weights(model, mup_base, 0))
    return model


def grow_in_memory(rounds: int) -> float:
    """Seconds from a 5M state dict to a 70M one: draw, shrink, pad, perturb."""
    source, target = resolve_config("5M"), resolve_config("70M")
    weights = initialized(source, source).state_dict()
    with torch.device("meta"):
        model = MuGPT(target)
    parametrization.set_base_shapes(model, source)

    def grown() -> dict[str, torch.Tensor]:
        initial = parametrization.initial_weights(model, source, 1)
        return dict(growth.grow(weights, initial, source, target, 0.4, "heads"))

    return least_seconds(grown, rounds)


def billion(n_embd: int, n_layer: int) -> Config:
    """The wide model."""
    return Config(name=f"wide-{n_embd}", block_size=1024, n_layer=n_layer, n_embd=n_embd, n_head=16,
                  vocab_size=50257, padded_vocab_size=50304, rotary_percentage=0.25)  # fmt: skip


def memory_of(pid: int) -> float:
    """Gigabytes that a process holds alone: not the pages of files, which the kernel may drop."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0) / 1e6


def grow_a_folder(source: Path, config_file: Path, out_dir: Path) -> dict[str, float]:
    """Seconds and peak memory of ``warmstart_grow`` in a process of its own, its start-up taken off."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--grow", str(source), str(config_file), str(out_dir)], stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    before = float(process.stdout.readline())  # gigabytes after the imports
    start, peak = time.perf_counter(), 0.0
    while process.poll() is None:
        peak = max(peak, memory_of(process.pid))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"warmstart_grow ended with status {process.returncode}")
    return {"seconds": time.perf_counter() - start, "gigabytes": peak, "gigabytes_before": before}


def parts(source: Path, config: Config, mup_base: Config, folder: Path) -> dict[str, float]:
    """Seconds of reading the source, of drawing the normals, and of writing as many bytes as the target has."""
    with torch.device("meta"):
        model = MuGPT(config)
    parametrization.set_base_shapes(model, mup_base)
    start = time.perf_counter()
    (source / checkpoint.WEIGHTS).read_bytes()
    read = time.perf_counter()
    for _ in parametrization.initial_weights(model, mup_base, 0):
        pass
    drawn = time.perf_counter()
    folder.mkdir()
    for name, parameter in model.named_parameters():
        with (folder / name).open("wb") as file:
            file.write(torch.zeros(parameter.shape).numpy())
            file.flush()
            os.fsync(file.fileno())
    return {"read": read - start, "draw": drawn - read, "write": time.perf_counter() - drawn}


def main() -> None:
    if sys.argv[1:2] == ["--grow"]:
        print(memory_of(os.getpid()), flush=True)
        warmstart_grow.setup(base=Path(sys.argv[2]), target=sys.argv[3], out_dir=Path(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_embd", type=int, default=2048, help="of the wide model")
    parser.add_argument("--n_layer", type=int, default=16)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--out", type=result_file, help="JSON file to write")
    args = parser.parse_args()
    seconds = grow_in_memory(args.rounds)
    print(
        f"48 -> 512 in memory: {seconds:.2f} s (70,426,624 parameters, {torch.get_num_threads()} threads)", flush=True
    )

    config = billion(args.n_embd, args.n_layer)
    source_config = billion(args.n_embd // 2, args.n_layer)
    runs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        from litgpt.utils import save_config

        source = folder / "source"
        source.mkdir()
        torch.save(initialized(source_config, source_config).state_dict(), source / checkpoint.WEIGHTS)
        save_config(source_config, source)
        (folder / "wide").mkdir()
        save_config(config, folder / "wide")
        for _ in range(args.rounds):
            found = parts(source, config, source_config, folder / "parts")
            subprocess.run(["rm", "-r", folder / "parts"], check=True)
            found |= grow_a_folder(source, folder / "wide" / "model_config.yaml", folder / "grown")
            size = sum(file.stat().st_size for file in (folder / "grown").iterdir()) / 1e9
            subprocess.run(["rm", "-r", folder / "grown"], check=True)
            runs.append(found)
            print({key: round(value, 2) for key, value in found.items()}, flush=True)
    with torch.device("meta"):
        parameters = dict(MuGPT(config).named_parameters())
    total = sum(p.numel() for p in parameters.values())
    target, largest = 4 * total / 1e9, 4 * max(p.numel() for p in parameters.values()) / 1e9
    ratio = statistics.median(r["seconds"] / (r["read"] + r["draw"] + r["write"]) for r in runs)
    peak = max(r["gigabytes"] for r in runs)
    print(
        f"{total:,} parameters: grown in {statistics.median(r['seconds'] for r in runs):.1f} s, {ratio:.2f} times its"
        f" parts; peak {peak:.2f} GB, {max(r['gigabytes_before'] for r in runs):.2f} of it before it began; the target"
        f" has {target:.2f} GB, its largest tensor {largest:.2f} GB"
    )
    figures = {"seconds_48_to_512": seconds, "parameters": total, "target_gigabytes": target,
               "largest_tensor_gigabytes": largest, "peak_gigabytes": peak, "times_its_parts": ratio,
               "folder_gigabytes": size, "rounds": runs}  # fmt: skip
    write_result(args.out, command_line(), figures)


if __name__ == "__main__":
    main()
