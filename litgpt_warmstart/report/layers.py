"""What tracked runs have recorded: sizes of outputs and of weights, at moments and over training, and copying."""

import re
from typing import Any

import pandas as pd

from litgpt_warmstart.report import figures
from litgpt_warmstart.report.chains import parent
from litgpt_warmstart.report.compare import Compared
from litgpt_warmstart.report.page import Section, Table
from litgpt_warmstart.report.runs import Found, Run
from litgpt_warmstart.report.statistics import placed

LAST_BLOCK = "last"
"""In a module's name: what stands for the number of the last block where models of several depths are compared."""
_LAYER = re.compile(rf"transformer\.h\.(\d+|{LAST_BLOCK})(?:\.(.+))?")
_ENDS = {"transformer.wte": "embedding", "transformer.ln_f": "ln_f", "lm_head": "lm_head"}
_PARTS = {
    "activation": (None, "attn", "mlp"),
    "weight": ("attn.qkv", "attn.proj", "mlp.fc", "mlp.fc_1", "mlp.fc_2", "mlp.proj"),
}
WHAT = {"activation": "root mean square of layers' outputs", "weight": "root mean square of weight matrices"}


def layer_name(name: str, kind: str) -> str | None:
    """What a figure calls LitGPT's module, or the module of a weight matrix; None for what it leaves out."""
    if kind == "weight":
        if not name.endswith(".weight") or name == "transformer.ln_f.weight":
            return None
        name = name.removesuffix(".weight")
    match = _LAYER.fullmatch(name)
    if match is None or match[2] not in _PARTS[kind]:
        return _ENDS.get(name)
    block = "last block" if match[1] == LAST_BLOCK else f"block {match[1]}"
    return block + (f" {match[2]}" if match[2] else "")


def sizes(norms: pd.DataFrame) -> Any:
    """Root mean squares, ``rms``, with their layers' names, from the input to the output."""
    named = norms.assign(layer=[layer_name(n, k) for n, k in zip(norms["name"], norms["kind"], strict=True)])
    named = named.dropna(subset="layer").rename(columns={"l2": "rms"})
    return named.sort_values("layer", key=lambda layers: layers.map(_place), kind="stable")


def _place(layer: str) -> float:
    return {"embedding": -1.0, "ln_f": 1e9, "lm_head": 2e9}.get(layer) or float(layer.split()[1])


def moments(run: Run, found: Found) -> Any:
    """Sizes of a warmstart's base, its own first and last ones, and those of the run from scratch beside it.

    Returns:
        Columns ``moment``, ``kind``, ``layer`` and ``rms``.
    """
    tracked = [other for other in found.runs if len(other.norms)]
    beside = [other for other in tracked if other.kind == "scratch"
              and (other.seed, other.settings_key) == (run.seed, run.settings_key)]  # fmt: skip
    chosen = [
        ("from scratch, trained", beside[0] if beside else None, -1),
        ("base, trained", parent(run, tracked), -1),
        ("at the warmstart", run, 0),
        (f"trained, step {run.norms['step'].iloc[-1]:,}", run, -1),
    ]
    at = [sizes(of.norms[of.norms["step"] == of.norms["step"].iloc[place]]).assign(moment=moment)
          for moment, of, place in chosen if of]  # fmt: skip
    return pd.concat(at)[["moment", "kind", "layer", "rms"]]


def over_training(run: Run, label: str) -> Any:
    """Sizes at the model's ends over tokens per parameter.

    Of activations the outputs of the first and the last block are among them, of weights those of the last block.

    Returns:
        Columns ``run``, ``arm``, ``kind``, ``layer``, ``tokens_per_param`` and ``rms``.
    """
    at = sizes(run.norms)
    blocks = at["layer"].str.extract(r"block (\d+)", expand=False).astype(float)
    whole = at["layer"].str.fullmatch(r"block \d+")
    ends = blocks.isna() | (whole & blocks.isin([blocks.min(), blocks.max()]))
    ends |= (at["kind"] == "weight") & (blocks == blocks.max())
    at = at[ends].assign(run=run.name, arm=label, tokens_per_param=at["tokens"] / run.record.parameters)
    return at[["run", "arm", "kind", "layer", "tokens_per_param", "rms"]]


def add_norms(pairs: Section, compared: Compared, found: Found) -> None:
    """Put the norms of each comparison's runs under its heading, and those of other warmstarts below them all."""
    shown: list[tuple[Section, str, dict[str, Run], Run | None]] = []
    for part, c in zip(pairs.parts, compared.comparisons, strict=True):
        seeds = {arm.label: [run for run in arm.warm if len(run.norms)] for arm in c.arms}
        ways = {label: runs[0] for label, runs in seeds.items() if runs}
        shown.append((part, c.title, ways, next((run for run in c.scratch if len(run.norms)), None)))
    groups: dict[tuple[int, str], dict[str, Run]] = {}
    for run in found.runs:
        if run.kind == "warmstart" and len(run.norms) and run not in (*compared.runs, *compared.repeated):
            groups.setdefault((run.comparison_key, run.source), {}).setdefault(run.growth, run)
    for ways in groups.values():
        first = next(iter(ways.values()))
        title = f"{first.source} → {first.model}, {first.tokens_per_param:.3g} tokens per parameter"
        pairs.parts.append(Section(f"{title}, without a run from scratch"))
        shown.append((pairs.parts[-1], title, ways, None))
    for number, (part, title, ways, scratch) in enumerate([one for one in shown if one[2]], start=1):
        _add_norms(part, title, ways, scratch, found, number)


def _add_norms(part: Section, title: str, ways: dict[str, Run], scratch: Run | None, found: Found, n: int) -> None:
    """Figures 10 and 8 of the paper, a tracked run of each way to warmstart by its label, beside one from scratch."""
    begun = {label: moments(run, found) for label, run in ways.items() if run.norms["step"].iloc[0] == 0}
    if begun:
        label = next((label for label in begun if label.startswith("shrink 0.4")), next(iter(begun)))
        panels = {WHAT[str(kind)]: at.pivot_table(index="layer", columns="moment", values="rms", sort=False)
                  for kind, at in begun[label].groupby("kind")}  # fmt: skip
        caption = f"{title}, {label}: sizes of the base, at the warmstart, and trained. One seed."
        part.figures.append(figures.layer_sizes(f"norms-{n}", caption, panels))
        table = pd.concat([at.assign(warmstart=label) for label, at in begun.items()])
        part.tables.append(Table(f"layer_norms_{n}", "", table))
    long = {label: run for label, run in ways.items() if len(set(run.norms["step"])) > 2}
    if long:
        long = {scratch.from_scratch: scratch, **long} if scratch else long
        table = pd.concat([over_training(run, label) for label, run in long.items()])
        series: dict[str, dict[str, pd.Series]] = {}
        groups: Any = table.groupby(["kind", "layer", "arm"], sort=False)
        for (kind, layer, arm), values in groups:
            panel = f"{layer}, {'output' if kind == 'activation' else 'weight'}"
            series.setdefault(panel, {})[arm] = values.set_index("tokens_per_param")["rms"]
        caption = f"{title}: root mean squares over training, of outputs and of weights. One seed of each."
        if scores := {label: scored for label, run in long.items() if len(scored := run.induction)}:
            caption += " Induction score: loss on random tokens that come again less their loss before."
            series["induction score, nats per token"] = {
                label: placed(scored, 0.0, 1 / long[label].record.parameters) for label, scored in scores.items()
            }
            rows = pd.concat(scores, names=["arm"]).rename("score").reset_index()
            part.tables.append(Table(f"induction_{n}", "", rows))
        name = f"norms-over-training-{n}"
        part.figures.append(figures.panels(name, caption, series, "root mean square", "tokens per parameter"))
        part.tables.append(Table(f"norms_over_training_{n}", "", table))
