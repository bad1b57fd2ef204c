"""Sizes of layers' outputs and of weights, where runs were tracked: at moments, and over training."""

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from litgpt_warmstart.report import figures
from litgpt_warmstart.report.chains import parent
from litgpt_warmstart.report.compare import Compared, Row
from litgpt_warmstart.report.page import Section, Table
from litgpt_warmstart.report.runs import Runs
from litgpt_warmstart.report.sections import SCRATCH

_LAYER = re.compile(r"transformer\.h\.(\d+)(?:\.(.+))?")
_ENDS = {"transformer.wte": "embedding", "transformer.ln_f": "ln_f", "lm_head": "lm_head"}
_PARTS = {
    "activation": (None, "attn", "mlp"),
    "weight": ("attn.qkv", "attn.proj", "mlp.fc", "mlp.fc_1", "mlp.fc_2", "mlp.proj"),
}
WHAT = {"activation": "root mean square of layers' outputs", "weight": "root mean square of weight matrices"}


def layer_name(name: str, kind: str) -> str | None:
    """What a figure calls LitGPT's module, or the module of a weight matrix; None for what it leaves out."""
    if kind == "weight":
        if not name.endswith(".weight"):
            return None
        name = name.removesuffix(".weight")
    if name in _ENDS:
        return None if kind == "weight" and name == "transformer.ln_f" else _ENDS[name]
    match = _LAYER.fullmatch(name)
    if match is None or match[2] not in _PARTS[kind]:
        return None
    return f"block {match[1]}" + (f" {match[2]}" if match[2] else "")


def sizes(norms: pd.DataFrame) -> pd.DataFrame:
    """Root mean squares with their layers' names, from the input to the output."""
    named = norms.assign(layer=[layer_name(n, k) for n, k in zip(norms["name"], norms["kind"], strict=True)])
    return named.dropna(subset="layer").sort_values("layer", key=lambda layers: layers.map(_place), kind="stable")


def _place(layer: str) -> float:
    return {"embedding": -1.0, "ln_f": 1e9, "lm_head": 2e9}.get(layer) or float(layer.split()[1])


def moments(run: Row, rows: Sequence[Row], runs: Runs) -> pd.DataFrame:
    """Sizes of a warmstart's base, its own first and last ones, and those of the run from scratch beside it.

    Returns:
        Columns ``moment``, ``kind``, ``layer`` and ``rms``.
    """
    tracked = [row for row in rows if row["run"] in runs.norms]
    beside = [row for row in tracked if row["kind"] == "scratch" and row["seed"] == run["seed"]
              and row["settings_key"] == run["settings_key"]]  # fmt: skip
    base = parent(run, tracked)
    chosen = [
        *[("from scratch, trained", row, -1) for row in beside[:1]],
        *[("base, trained", row, -1) for row in [base] if row],
        ("at the warmstart", run, 0),
        (f"trained, step {runs.norms[run['run']]['step'].iloc[-1]:,}", run, -1),
    ]
    found = []
    for moment, row, place in chosen:
        norms = runs.norms[row["run"]]
        at = sizes(norms.set_index("step").loc[[norms["step"].iloc[place]]])
        found.append(pd.DataFrame({"moment": moment, "kind": at["kind"], "layer": at["layer"], "rms": at["l2"]}))
    return pd.concat(found)


def over_training(run: str, label: str, runs: Runs) -> pd.DataFrame:
    """Sizes at the model's ends over tokens per parameter.

    Of activations the outputs of the first and the last block are among them, of weights those of the last block.

    Returns:
        Columns ``run``, ``arm``, ``kind``, ``layer``, ``tokens_per_param`` and ``rms``.
    """
    at = sizes(runs.norms[run])
    blocks = at["layer"].str.extract(r"block (\d+)", expand=False).astype(float)
    whole = at["layer"].str.fullmatch(r"block \d+")
    ends = blocks.isna() | (whole & blocks.isin([blocks.min(), blocks.max()]))
    ends |= (at["kind"] == "weight") & (blocks == blocks.max())
    at = at[ends]
    parameters = runs.table.loc[run, "parameters"]
    return pd.DataFrame({"run": run, "arm": label, "kind": at["kind"], "layer": at["layer"],
                         "tokens_per_param": at["tokens"] / parameters, "rms": at["l2"]})  # fmt: skip


def norms_part(title: str, heading: str, tracked: dict[str, Row], scratch: str | None, runs: Runs, n: int) -> Section:
    """Figures 10 and 8 of the paper, a tracked run of each way to warmstart by its label, beside one from scratch."""
    rows, part = runs.rows(), Section(heading)
    steps = {label: runs.norms[row["run"]]["step"].tolist() for label, row in tracked.items()}
    begun = {label: moments(row, rows, runs) for label, row in tracked.items() if steps[label][0] == 0}
    if begun:
        label = next((label for label in begun if label.startswith("shrink 0.4")), next(iter(begun)))
        panels = {WHAT[str(kind)]: found.pivot_table(index="layer", columns="moment", values="rms", sort=False)
                  for kind, found in begun[label].groupby("kind")}  # fmt: skip
        caption = f"{title}, {label}: sizes of the base, at the warmstart, and trained. One seed."
        part.figures.append(figures.layer_sizes(f"norms-{n}", caption, panels))
        table = pd.concat([found.assign(warmstart=label) for label, found in begun.items()])
        part.tables.append(Table(f"layer_norms_{n}", "", table))
    long = {label: row["run"] for label, row in tracked.items() if len(set(steps[label])) > 2}
    if long:
        long = {SCRATCH: scratch, **long} if scratch else long
        table = pd.concat([over_training(run, label, runs) for label, run in long.items()])
        series: dict[str, dict[str, pd.Series]] = {}
        groups: Any = table.groupby(["kind", "layer", "arm"], sort=False)
        for (kind, layer, arm), values in groups:
            panel = f"{layer}, {'output' if kind == 'activation' else 'weight'}"
            series.setdefault(panel, {})[arm] = values.set_index("tokens_per_param")["rms"]
        caption = f"{title}: root mean squares over training, of outputs and of weights. One seed of each."
        name = f"norms-over-training-{n}"
        part.figures.append(figures.panels(name, caption, series, "root mean square", "tokens per parameter"))
        part.tables.append(Table(f"norms_over_training_{n}", "", table))
    return part


def add_norms(pairs: Section, compared: Compared, runs: Runs) -> None:
    """Put the norms of each comparison's runs under its heading, and those of other warmstarts below them all."""
    rows, number = {row["run"]: row for row in runs.rows() if row["run"] in runs.norms}, 0
    told = {name for comparison in compared.comparisons for name in comparison.runs} | compared.repeated
    for part, comparison in zip(pairs.parts, compared.comparisons, strict=True):
        seeds = {arm.label: [name for name in arm.pairs["warmstart_run"] if name in rows] for arm in comparison.arms}
        ways = {label: rows[names[0]] for label, names in seeds.items() if names}
        scratch = next((run["run"] for run in comparison.scratch if run["run"] in rows), None)
        number += bool(ways)
        found = norms_part(comparison.title, "", ways, scratch, runs, number)
        part.figures += found.figures
        part.tables += found.tables
    others = [row for row in rows.values() if row["kind"] == "warmstart" and row["run"] not in told]
    groups: dict[tuple[int, str], dict[str, Row]] = {}
    for row in others:
        groups.setdefault((row["settings_key"], row["source"]), {}).setdefault(row["growth"], row)
    for ways in groups.values():
        number += 1
        first = next(iter(ways.values()))
        title = f"{first['source']} → {first['model']}, {first['tokens_per_param']:.3g} tokens per parameter"
        pairs.parts.append(norms_part(title, f"{title}, without a run from scratch", ways, None, runs, number))
