"""``warmstart_fit``: a law and what warmstarts are worth by it, as tables, a picture and a section of the page."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from litgpt_warmstart.files import write_whole
from litgpt_warmstart.method.laws import Law
from litgpt_warmstart.method.schedule import ScheduleName
from litgpt_warmstart.report import figures
from litgpt_warmstart.report.laws import POINT, TUNED, Taken, fit_law, measured, split, tuned, worth
from litgpt_warmstart.report.page import Section, Table, as_text, readable, write_csv
from litgpt_warmstart.report.runs import Found
from litgpt_warmstart.report.statistics import in_words
from litgpt_warmstart.study.folder import section_of

RESULTS, POINTS, WARMSTARTS, PICTURE = "law.csv", "points.csv", "warmstarts.csv", "law.png"
COLUMNS = ("constant", "value", "low", "high")
"""What law.csv begins with."""
MOST_ROWS = 8
"""Of one way to warmstart on the terminal."""


def conduct(
    found: Found, out_dir: Path, schedule: ScheduleName | None, taken: Taken, from_tokens_per_param: float | None,
    resamples: int, seed: int,
) -> None:  # fmt: skip
    """Fit the law, say what it is and what the warmstarts are worth, and write tables and a picture."""
    scratch, warm, notes = split(found, schedule)
    every = measured(scratch, taken, from_tokens_per_param)
    fitted = fit_law(tuned(every), resamples, seed)
    constants, points = fitted.constants, fitted.points[[*POINT, "fitted", "residual"]]
    warmstarts = worth(measured(warm, taken, from_tokens_per_param), fitted, seed)
    print("\n".join(told(constants, points, len(every) - len(points))))
    if fitted.law.E == 0:
        notes.append("E is 0: these losses do not level off yet, so the law says nothing of far more tokens")
    if fitted.law.alpha <= 0:
        notes.append("alpha is not above 0: of these runs larger models are no better, so the law says nothing of size")
    runs = points.groupby("matmul_parameters")["run"].nunique()
    if alone := sum(runs == 1):
        notes.append(
            f"{alone} of {len(runs)} sizes have one run, which resamples do not vary: intervals are too narrow"
        )
    if len(warmstarts):
        print("\n".join(["", *told_worth(warmstarts)]))
    for note in notes:
        print(note)
    for name in (POINTS, WARMSTARTS, PICTURE):  # an earlier fit's would be taken for the new law's
        (out_dir / name).unlink(missing_ok=True)
    write_csv(out_dir / RESULTS, constants)
    write_csv(out_dir / POINTS, points)
    if len(warmstarts):
        write_csv(out_dir / WARMSTARTS, warmstarts)
    write_whole(out_dir / PICTURE, picture(constants, points, warmstarts).png)
    print(f"Wrote {', '.join([RESULTS, POINTS, *[WARMSTARTS] * bool(len(warmstarts)), PICTURE])} to {str(out_dir)!r}")


def told(constants: Any, points: Any, left_out: int) -> list[str]:
    """The law in lines."""
    counts = [points[name].nunique() for name in ("run", "matmul_parameters")]
    left = f"; {left_out} left out for a better learning rate or batch" * bool(left_out)
    resamples, worst = constants["resamples"].iloc[0], points.loc[points["residual"].abs().idxmax()]
    return [
        f"L(N, D) = E + A/N^alpha + B/D^beta, fitted to {len(points)} losses of {counts[0]} runs from scratch of"
        f" {counts[1]} sizes, --schedule {points['schedule'].iloc[0]}{left}",
        as_text(shown(constants)),
        f"N counts the head and no embedding; the best N for compute C goes with C^a; {resamples} resamples of runs",
        f"Measured losses are {math.sqrt((points['residual'] ** 2).mean()):.2%} from the law's (root mean square),"
        f" {worst['residual']:+.2%} at most: {worst['run']}, {worst['tokens']:,} tokens",
    ]


def shown(constants: Any) -> pandas.DataFrame:
    """The constants in words."""
    cells = [in_words(*row, form=".4g") for row in constants[["value", "low", "high"]].to_numpy(dtype=float)]
    return pandas.DataFrame({"constant": constants["constant"], "value (95% interval)": cells})


def told_worth(warmstarts: Any) -> list[str]:
    """What warmstarts are worth, in lines; of many budgets some, as far apart in the logarithm of tokens as may be."""
    ways = warmstarts.groupby(["warmstart", *TUNED], group_keys=False, sort=False)[warmstarts.columns]
    few = ways.apply(_few)
    lines = [
        "took: a warmstart's Hoffmann FLOPs over scratch's to its loss, by the law; speed-up: the inverse; at most:"
        " what growth can give, if it carries the base's loss, and if it carries what its tokens taught",
        as_text(shown_worth(few)),
    ]
    if len(few) < len(warmstarts):
        lines.append(f"{len(few)} of {len(warmstarts)} rows; {WARMSTARTS} has all")
    if any(few["distrust"]):
        lines.append("distrust: more than the base's tokens are worth; another's luck, or a sudden drop, is in it")
    if any(few["extrapolated"]):
        lines.append("extrapolated: scratch's tokens to that loss, or the size, are beyond the runs of the fit")
    return lines


def _few(rows: Any) -> Any:
    """Of one way's rows, where they are many, the first, the last, and those nearest to equal ratios of tokens."""
    if len(rows) <= MOST_ROWS:
        return rows
    rows = rows.sort_values("tokens")
    places = np.geomspace(rows["tokens"].iloc[0], rows["tokens"].iloc[-1], MOST_ROWS)
    nearest = [int((rows["tokens"] - place).abs().to_numpy().argmin()) for place in places]
    return rows.iloc[sorted({*nearest})]


def shown_worth(warmstarts: Any) -> pandas.DataFrame:
    """The rows of warmstarts.csv in words; at most is what growth gives if it carries the loss, and the tokens."""
    rows = []
    for row in warmstarts.to_dict("records"):
        cells = {"warmstart": row["warmstart"], "lr": f"{row['learning_rate']:g}", "seeds": str(row["seeds"])}
        cells |= {"tokens/param": f"{row['tokens_per_param']:.3g}", "loss": f"{row['val_loss']:.4f}"}
        for kind, words in (("", ""), ("_with_base", " with base")):
            share = row[f"share_of_scratch_hoffmann_flops{kind}"]
            cells |= {
                f"took{words}": "-" if math.isnan(share) else f"{share:.1%}",
                f"speed-up{words}": in_words(*(row[f"speed_up{kind}{end}"] for end in ("", "_low", "_high"))),
                f"at most{words}": f"{in_words(row[f'speed_up{kind}_limit_if_loss'])},"
                f" {in_words(row[f'speed_up{kind}_limit'])}",
            }
        marks = [mark for mark in ("distrust", "extrapolated") if row[mark]]
        rows.append(cells | {"": ", ".join(marks)})
    return pandas.DataFrame(rows)


def picture(constants: Any, points: Any, warmstarts: Any, name: str = "law") -> figures.Figure:
    """Points, the law at their sizes, and warmstarts."""
    values = dict(zip(constants["constant"], constants["value"].astype(float), strict=True))
    law = Law(*(values[each] for each in ("E", "A", "alpha", "B", "beta")))
    warmstarts = warmstarts.reindex(columns=["warmstart", "tokens", "val_loss"])  # there may be none
    tokens = [*points["tokens"], *warmstarts["tokens"]]
    places = np.geomspace(min(tokens), max(tokens), 60)
    sizes = points.drop_duplicates("model").sort_values("matmul_parameters")
    curves = {
        model: pandas.Series([law.loss(size, place) for place in places], index=places)
        for model, size in zip(sizes["model"], sizes["matmul_parameters"], strict=True)
    }
    caption = (
        "Validation losses of runs from scratch over tokens, and the law that was fitted to them, a line a size;"
        " warmstarts in colour, by their own tokens. Below: measured losses by the law's."
    )
    return figures.law(name, caption, points, curves, warmstarts)


def section(found: Found) -> Section | None:
    """The law of each folder of a fit, and what warmstarts are worth by it."""
    sentence = (
        "L(N, D) = E + A/N^alpha + B/D^beta (arXiv 2203.15556, approach 3), N with the head and without the embedding"
        " (arXiv 2406.19146), fitted to the runs from scratch with the best learning rate and batch at each size and"
        " budget. A warmstart's speed-up is the compute that scratch takes to its loss, by the law, over its own."
    )

    def part(name: str, folder: Path, number: int) -> Section:
        constants, points = (pandas.read_csv(folder / each) for each in (RESULTS, POINTS))
        tables = [Table(f"law_{number}", "The law's constants.", constants, shown(constants))]
        tables.append(Table(f"law_points_{number}", "The runs that it was fitted to.", points, readable(points), True))
        warmstarts = pandas.DataFrame()
        if (folder / WARMSTARTS).is_file():
            warmstarts = pandas.read_csv(folder / WARMSTARTS)
            caption = "Warmstarts by the law, and the most that growth can give: if it carries the loss, or the tokens."
            tables.append(Table(f"law_warmstarts_{number}", caption, warmstarts, shown_worth(warmstarts)))
        return Section(name, figures=[picture(constants, points, warmstarts, f"law-{number}")], tables=tables)

    return section_of("Laws", sentence, found.results[RESULTS], part)
