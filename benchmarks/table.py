"""The tables in docs/speed.md, made from benchmarks/results/.

python benchmarks/table.py            prints them
python benchmarks/table.py --write    puts them between their markers
python benchmarks/table.py --check    says whether the files have them as they are
"""

import argparse
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILES = {HERE.parent / "docs/speed.md": ("ratio", "train", "growth", "track")}


def results(prefix: str) -> list[dict]:
    """The result files whose names begin so, by name."""
    return [json.loads(path.read_text()) for path in sorted((HERE / "results").glob(f"{prefix}*.json"))]


def measured_on(result: dict) -> str:
    """Machine, versions and date of a result in a line."""
    v = result["versions"]
    device = result["cpu"] if result["device"] == "CPU" else result["device"]
    return (
        f"{result['cores']} cores, {device}; Python {v['python']}, torch {v['torch']}, LitGPT {v['litgpt']},"
        f" {result['date']}; `{result['command']}`"
    )


def short(result: dict) -> str:
    """The device in a word or two: of a CPU, what its vectors can do."""
    vectors = result["cpu"].rpartition(", ")[2]
    return f"CPU, {vectors}" if result["device"] == "CPU" else result["device"].removeprefix("NVIDIA ")


def place(row: dict) -> tuple[str, float]:
    """For sorting by precision, then scale (5M before 22M)."""
    return row["precision"], float(row["scale"].removesuffix("M"))


def scale(row: dict) -> str:
    """A scale, and the length of its sequences where that is not the usual one."""
    return row["scale"] + (f", blocks of {row['block_size']}" if row["block_size"] != 1024 else "")


def train_results() -> list[dict]:
    """Training speed beside stock, the files by their first rows."""
    return sorted(results("train"), key=lambda result: place(result["results"][0]))


def train_table() -> str:
    """Training speed beside stock."""
    lines = []
    for result in train_results():
        lines += [
            measured_on(result),
            "",
            "| scale | precision | stock tokens/s (micro-batch) | ours tokens/s (micro-batch, loss) | ratio (pairs) |"
            " peak GB stock, ours | head and loss stock, ours | roofline stock, ours |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in result["results"]:
            stock, ours, ratio = row["stock"], row["ours"], row["ratio"]
            loss = row["choices"].split()[1]
            lines.append(
                f"| {scale(row)} | {row['precision']} | {stock['tokens_per_sec']['median']:,.0f}"
                f" ({stock['micro_batch_size']}) | {ours['tokens_per_sec']['median']:,.0f}"
                f" ({ours['micro_batch_size']}, {loss}) | **{ratio['median']:.2f}** ({ratio['min']:.2f} to"
                f" {ratio['max']:.2f}) | {stock['peak_gigabytes']:.2f}, {ours['peak_gigabytes']:.2f} |"
                f" {stock['head_and_loss_share']:.0%}, {ours['head_and_loss_share']:.0%} |"
                f" {stock['roofline_share']:.0%}, {ours['roofline_share']:.0%} |"
            )
        lines.append("")
    return "\n".join(lines).rstrip()


def ratio_table() -> str:
    """Training speed beside stock, the short of it."""
    lines = [
        "| device | scale | precision | `litgpt pretrain`, tokens/s (micro-batch) | ours | ratio (pairs) |"
        " beside stock that keeps memory | peak GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found = train_results()
    rows = [(short(result), row) for result in found for row in result["results"]]
    for device, row in sorted(rows, key=lambda pair: (pair[0].startswith("CPU"), place(pair[1]))):
        stock, ours = row["stock"], row["ours"]
        keeping = row.get("stock_keeping_memory")
        beside = f"{keeping['ratio']['median']:.2f}" if keeping else ""
        lines.append(
            f"| {device} | {scale(row)} | {row['precision']} | {stock['tokens_per_sec']['median']:,.0f}"
            f" ({stock['micro_batch_size']}) | {ours['tokens_per_sec']['median']:,.0f}"
            f" ({ours['micro_batch_size']}) | {row['ratio']['median']:.2f}"
            f" ({row['ratio']['min']:.2f} to {row['ratio']['max']:.2f}) | {beside} |"
            f" {stock['peak_gigabytes']:.2f} -> {ours['peak_gigabytes']:.2f} |"
        )
    where = map(measured_on, found)
    return "\n".join([*lines, "", *(f"{line}." for line in dict.fromkeys(where))])


def growth_table() -> str:
    """Growth and start-up."""
    lines = []
    for result in results("growth"):
        seconds = [r["seconds"] for r in result["rounds"]]
        ratios = [r["seconds"] / (r["read"] + r["draw"] + r["write"]) for r in result["rounds"]]
        lines += [
            measured_on(result),
            "",
            f"- 48 -> 512 in memory: {result['seconds_48_to_512']:.2f} s.",
            f"- A folder of {result['parameters'] / 1e9:.2f}B parameters ({result['target_gigabytes']:.2f} GB, largest"
            f" tensor {result['largest_tensor_gigabytes']:.2f} GB): {result['times_its_parts']:.2f} times reading the"
            f" source, drawing the normals and writing plain files, one after the other ({len(ratios)} rounds,"
            f" {min(ratios):.2f} to {max(ratios):.2f}; {min(seconds):.0f} to {max(seconds):.0f} s); peak"
            f" {result['peak_gigabytes']:.2f} GB.",
        ]
    for result in results("startup"):
        ratio = result["help_ratio"]
        lines += [
            "",
            measured_on(result),
            "",
            f"- `litgpt warmstart --help` {result['warmstart_help_seconds']['median']:.1f} s, `litgpt --help`"
            f" {result['litgpt_help_seconds']['median']:.1f} s: ratio {ratio['median']:.2f} (pairs {ratio['min']:.2f}"
            f" to {ratio['max']:.2f}).",
            f"- The hook costs any other Python process {result['hook_line_milliseconds']:.4f} ms and"
            f" {result['hook_imports']} imports.",
            f"- A run of one step takes {result['first_start_seconds']:.0f} s with an empty compile cache,"
            f" {result['second_start_seconds']:.0f} s the second time.",
        ]
    return "\n".join(lines)


def track_table() -> str:
    """What recording norms costs."""
    lines = []
    for result in results("track"):
        lines += [
            measured_on(result),
            "",
            "| scale | precision | batch | a step, s | a recording, s | cost every 10 steps (at most) | every 100 |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in result["results"]:
            costs = [f"{c['median']:.2%} ({c['max']:.2%})" for c in row["cost_by_interval"].values()]
            lines.append(
                f"| {row['scale']} | {row['precision']} | {row['global_batch_size']} x {row['block_size']:,} |"
                f" {row['step_seconds']['median']:.2f} | {row['recording_seconds']['median']:.2f} | {costs[0]} |"
                f" {costs[1]} |"
            )
        lines.append("")
    return "\n".join(lines).rstrip()


TABLES = {"train": train_table, "ratio": ratio_table, "growth": growth_table, "track": track_table}


def filled(text: str, markers: tuple[str, ...]) -> str:
    """A file's text with its tables made anew."""
    for name in markers:
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise SystemExit(f"the markers {begin.strip()} and {end} must stand there once, in this order")
        text = text[: text.index(begin)] + begin + TABLES[name]() + "\n" + text[text.index(end) :]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--write", action="store_true")
    group.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if not (args.write or args.check):
        print("\n\n".join(make() for make in TABLES.values()))
    stale = []
    for path, markers in FILES.items() if args.write or args.check else ():
        text = path.read_text(encoding="utf-8")
        if args.write:
            path.write_text(filled(text, markers), encoding="utf-8")
        elif filled(text, markers) != text:
            stale.append(str(path.relative_to(HERE.parent)))
    if stale:
        sys.exit(f"{', '.join(stale)}: not as benchmarks/results has it: python benchmarks/table.py --write")


if __name__ == "__main__":
    main()
