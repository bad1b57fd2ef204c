"""The sections on sizes of activations and weights: norms over a warmstart, and coordinate checks."""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.parsing import read_yaml
from litgpt_warmstart.report import layer_figures
from litgpt_warmstart.report.answers import Names
from litgpt_warmstart.report.chains import parent
from litgpt_warmstart.report.groups import arm_labels, budget, differences, lineage, settings, size
from litgpt_warmstart.report.html import Section, Table
from litgpt_warmstart.report.old_figures import Figure
from litgpt_warmstart.report.old_runs import COORD_CHECK, Run, display_names
from litgpt_warmstart.run.checkpoint import HYPERPARAMETERS, RECORD
from litgpt_warmstart.run.norms import Norm
from litgpt_warmstart.run.record import Record

SLOPES = "slopes.csv"
_LAYER = re.compile(r"transformer\.h\.(\d+)(?:\.(.+))?")
_ENDS = {"transformer.wte": "embedding", "transformer.ln_f": "ln_f", "lm_head": "lm_head"}
_PARTS = {
    "activation": (None, "attn", "mlp"),
    "weight": ("attn.qkv", "attn.proj", "mlp.fc", "mlp.fc_1", "mlp.fc_2", "mlp.proj"),
}


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


def _sizes(norms: Sequence[Norm], kind: str, step: int) -> dict[str, float]:
    """Root mean squares by layer."""
    named = ((layer_name(n.name, kind), n.l2) for n in norms if n.kind == kind and n.step == step)
    found = {layer: value for layer, value in named if layer is not None}
    return dict(sorted(found.items(), key=lambda item: _place(item[0])))


def _place(layer: str) -> tuple[int, int]:
    """For sorting from the input to the output; within a block as they come."""
    place = {"embedding": 0, "ln_f": 2, "lm_head": 3}.get(layer, 1)
    return place, int(layer.split()[1]) if place == 1 else 0


def moments(run: Run, runs: Sequence[Run], kind: str, names: Names) -> dict[str, dict[str, float]]:
    """Sizes of a warmstart's base, its own first and last ones, and those of the run from scratch beside it.

    Args:
        run: With norms at step 0 and at its end.
        runs: To look for the others among.
        kind: ``activation`` or ``weight``.
        names: What runs are called.
    """
    base = parent(run, runs)
    beside = next((other for other in runs if other.from_scratch and other.norms and other.seed == run.seed
                   and budget(other) == budget(run) and not differences(other, run)), None)  # fmt: skip
    found = {}
    if beside:
        found[f"from scratch, trained: {names[beside.out_dir]}"] = _sizes(beside.norms, kind, beside.norms[-1].step)
    if base and base.norms:
        found[f"base, trained: {names[base.out_dir]}"] = _sizes(base.norms, kind, base.norms[-1].step)
    found[f"at the warmstart: {names[run.out_dir]}"] = _sizes(run.norms, kind, run.norms[0].step)
    found[f"trained, step {run.norms[-1].step:,}: {names[run.out_dir]}"] = _sizes(run.norms, kind, run.norms[-1].step)
    return found


def over_training(runs: Sequence[Run], names: Names) -> tuple[list[Figure], list[dict]]:
    """Figure 8: tracked warmstarts beside their run from scratch, of one seed; figures and the rows of their table."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.norms and len({norm.step for norm in run.norms}) > 2 and (run.from_scratch or run.warmstarted):
            groups.setdefault(f"{settings(run)} {budget(run)} {run.seed}", []).append(run)
    found, rows, told = [], [], set()
    for members in groups.values():
        warm, cold = [run for run in members if run.warmstarted], [run for run in members if run.from_scratch]
        compared = f"{settings(members[0])} {budget(members[0])}"
        if not warm or compared in told:  # another seed
            continue
        told.add(compared)
        warm.sort(key=lambda run: (run.record.growth.shrink, arm_labels([run])))  # as a comparison's arms are
        chosen = {**{run.out_dir: "from scratch (muP)" for run in cold[:1]},
                  **{run.out_dir: label for run, label in zip(warm, arm_labels(warm), strict=True)}}  # fmt: skip
        for kind, what in (("activation", "layers' outputs"), ("weight", "weight matrices")):
            series = {}
            for run in (*cold[:1], *warm):
                state = "" if run.status == "finished" else f", {run.status}"
                label = f"{chosen[run.out_dir]}{state}: {names[run.out_dir]}"
                series[label] = _over_tokens(run, kind)
                rows += [
                    {"run": names[run.out_dir], "arm": chosen[run.out_dir], "kind": kind, "layer": layer,
                     "tokens_per_param": at, "rms": value}
                    for layer, sizes in series[label].items() for at, value in sizes
                ]  # fmt: skip
            caption = (
                f"{size(warm[0])}, {warm[0].tokens_per_param:.3g} tokens per parameter: root mean square of {what} over"
                f" training. Runs {', '.join(names[folder] for folder in chosen)}, seed {warm[0].seed}."
            )
            slug = f"norms-over-training-{kind}s-{len(told)}"
            unit = f"root mean square of {what}"
            found.append(layer_figures.norm_curves(series, bool(cold), unit, slug, caption))
    return found, rows


def _over_tokens(run: Run, kind: str) -> dict[str, list[tuple[float, float]]]:
    """Layer -> (tokens per parameter, root mean square), for the model's ends.

    Of activations the outputs of the first and the last block are among them, of weights those of the last block.
    """
    by_layer: dict[str, list[tuple[float, float]]] = {}
    for norm in run.norms:
        layer = layer_name(norm.name, kind) if norm.kind == kind else None
        if layer is not None:
            by_layer.setdefault(layer, []).append((norm.tokens / run.record.parameters, norm.l2))
    blocks = sorted({int(layer.split()[1]) for layer in by_layer if layer.startswith("block")})
    ends = {f"block {number}" for number in blocks[:1] + blocks[-1:]} if kind == "activation" else set()
    last = f"block {blocks[-1]} " if blocks else "-"
    kept = [layer for layer in by_layer if _place(layer)[0] != 1 or layer in ends
            or (kind == "weight" and layer.startswith(last))]  # fmt: skip
    return {layer: by_layer[layer] for layer in sorted(kept, key=_place)}


def norms(runs: Sequence[Run], names: Names) -> Section | None:
    """Figures 10 and 8 for warmstarts that were tracked, the first seed of each kind; None without any."""
    section = Section("Norms: base, at the warmstart, trained")
    rows = []
    told: set[str] = set()
    for run in runs:
        if not run.warmstarted or not run.norms or run.norms[0].step:
            continue
        label = f"{lineage(run)} → {size(run)}, {arm_labels([run])[0]}"
        if (key := f"{label} {budget(run)} {run.record.training['schedule']}") in told:
            continue
        told.add(key)
        tokens_per_param = run.norms[-1].tokens / run.record.parameters
        for kind, what in (("activation", "layers' outputs"), ("weight", "weight matrices")):
            found = moments(run, runs, kind, names)
            slug = f"norms-{kind}s-{len(told)}"
            title = f"{tokens_per_param:.3g} tokens per parameter"
            caption = f"{label}, {title}: root mean square of {what}. Run: {names[run.out_dir]}, seed {run.seed}."
            section.figures.append(
                layer_figures.layer_sizes(found, f"root mean square of {what}", slug, caption, title)
            )
            rows += [
                {"warmstart": label, "tokens_per_param": tokens_per_param, "kind": kind, "moment": moment,
                 "layer": layer, "rms": value}
                for moment, sizes in found.items() for layer, value in sizes.items()
            ]  # fmt: skip
        if not any(moment.startswith("base") for moment in found):
            section.notes.append(f"{label}: its base has no norms here: train it with --track, and give its folder too")
    over, rows_over = over_training(runs, names)
    section.figures += over
    if not section.figures:
        return None
    named = (("layer_norms", rows), ("norms_over_training", rows_over))
    section.tables += [Table(name, "", found) for name, found in named if found]
    return section


def coordinate_checks(folders: Sequence[Path]) -> Section:
    """Mean |activation| over width, and its log-log slopes, for each folder of ``warmstart_coord_check``."""
    section = Section("Coordinate checks")
    section.words.append(
        "How each layer's mean absolute activation goes with width after a few steps on one batch: L1 ~ n_embd^slope. A"
        " slope above 0.4 is growth, as standard parametrization (SP) has it; under muP it is 0 or less."
    )
    called = display_names(folders)
    for number, folder in enumerate(folders, start=1):
        try:
            sizes, step = _read_coordinates(folder / COORD_CHECK)
            settings = read_yaml(folder / HYPERPARAMETERS)
            title = _told(settings, step)
            slopes = list(csv.DictReader((folder / SLOPES).read_text(encoding="utf-8").splitlines()))
            table = _slopes_table(slopes, f"coordinate_slopes_{number}", f"{called[folder]}: slopes. {title}")
        except (OSError, ValueError, KeyError, TypeError, UserError) as error:
            section.notes.append(f"Left out: {called[folder]}: damaged or half-written: {one_line(error, 100)}")
            continue
        caption = f"{called[folder]}: mean |activation| against width, mean over seeds. {title}"
        section.figures.append(layer_figures.coordinates(sizes, title, f"coordinates-{number}", caption))
        section.tables.append(table)
    return section


def _read_coordinates(path: Path) -> tuple[dict[str, dict[str, dict[int, float]]], int]:
    """Arm -> layer -> width -> mean over seeds at the last step, and that step."""
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    step = max(int(row["t"]) for row in rows)
    values: dict[str, dict[str, dict[int, list[float]]]] = {}
    for row in rows:
        layer = layer_name(row["module"], "activation")
        if int(row["t"]) == step and layer:
            layers = values.setdefault(_arm(row), {})
            layers.setdefault(layer, {}).setdefault(int(row["width"]), []).append(float(row["l1"]))
    means = {arm: {layer: {w: fmean(l1) for w, l1 in by.items()} for layer, by in layers.items()}
             for arm, layers in values.items()}  # fmt: skip
    return means, step


def _arm(row: Mapping[str, str]) -> str:
    named = {"sp": "SP", "mup": "muP, from scratch"}.get(row["parametrization"])
    return named or f"warmstart, shrink {float(row['shrink']):g}"


def _told(settings: Mapping, step: int) -> str:
    """Steps, and tokens per parameter of the narrowest model where its record is still there to tell."""
    tokens = (step - 1) * settings["batch_size"] * settings["block_size"]
    told = f"step {step}, lr {settings['lr']:g}, {settings['num_seeds']} seeds; {tokens:,} tokens trained on"
    record = settings["base"] and Path(settings["base"]) / RECORD
    if record and record.is_file():
        return told + f", {tokens / Record.load(record).parameters:.2g} tokens per parameter of the base"
    return told + ", next to 0 tokens per parameter"


def _slopes_table(slopes: Sequence[Mapping[str, str]], name: str, caption: str) -> Table:
    arms = list(dict.fromkeys(_arm(row) for row in slopes))
    by_layer: dict[str, dict[str, str]] = {}
    for row in slopes:
        layer = layer_name(row["module"], "activation") or row["module"]
        grows = " grows" if row["verdict"] == "grows" else ""
        by_layer.setdefault(layer, {})[_arm(row)] = f"{float(row['slope']):+.2f}{grows}"
    shown = [{"layer": layer, **{arm: cells.get(arm, "") for arm in arms}} for layer, cells in by_layer.items()]
    return Table(name, caption, slopes, shown)
