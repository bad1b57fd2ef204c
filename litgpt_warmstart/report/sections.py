"""The sections of the page, in reading order; each takes runs and makes its words, figures and tables."""

from collections.abc import Sequence
from statistics import fmean

from litgpt_warmstart.report import old_figures as figures
from litgpt_warmstart.report.answers import Names, answer_table, in_words, pairs_table, sentences
from litgpt_warmstart.report.chains import Chain, at_equal_compute_of, over_seeds, same_seeds
from litgpt_warmstart.report.curves import SMOOTHING, Band, band, estimate, speed_up
from litgpt_warmstart.report.gains import Gain, at_equal_compute, at_equal_tokens, spans
from litgpt_warmstart.report.groups import Arm, Compared, Comparison, arm_labels, lineage, size
from litgpt_warmstart.report.html import Section, Table
from litgpt_warmstart.report.old_runs import Run, Unread, display_names

CURVES = (
    ("tokens", "tokens"),
    ("flops", "Hoffmann FLOPs of the run's own"),
    ("flops_with_base", "Hoffmann FLOPs with the base's in front"),
)


def answer(compared: Compared, chains: Sequence[Chain], unread: Sequence[Unread], names: Names) -> Section:
    """Whether warmstarting paid, first of all."""
    section = Section("The answer")
    for comparison in compared.comparisons:
        section.answers.append((comparison.title, sentences(comparison)))
    if compared.comparisons:
        section.tables = [answer_table(compared.comparisons, names), pairs_table(compared.comparisons, names)]
    counted = [chain for chain in chains if chain.finished]
    section.answers += [
        (chain_title(group[0]), [chain_verdict(group)]) for group in over_seeds(counted) if group[0].scratch
    ]
    section.answers += [
        (" beside ".join(way_labels(a[0], b[0])), [beside_verdict(a, b)]) for a, b in at_equal_compute_of(counted)
    ]
    if not section.answers:
        section.words.append(
            "No finished warmstart has a finished run from scratch with the same settings beside it: no answer"
        )
    folders = display_names([run.out_dir for run, _ in compared.notes] + [u.out_dir for u in unread])
    section.notes = [
        f"Not counted: {names[run.out_dir]} ({folders[run.out_dir]}): {why}" for run, why in compared.notes
    ]
    section.notes += [f"Left out: {folders[u.out_dir]}: {u.status}: {u.told}" for u in unread]
    return section


def losses(compared: Compared, names: Names) -> Section:
    """Loss against tokens and FLOPs."""
    section = Section("Loss against compute and tokens")
    section.words.append(
        "Validation losses carry marks; the band reaches from the least to the greatest over seeds. Training losses"
        f" are the faint lines, means over seeds smoothed with a Gaussian of {SMOOTHING:.0%} of the run's tokens as its"
        " standard deviation. The dotted line is the scratch run's last validation loss. FLOPs are Hoffmann et al.'s"
        " count, with embedding and softmax. Grey curves are of runs that have not finished."
    )
    rows = []
    for number, comparison in enumerate(compared.comparisons, start=1):
        drawn = (*comparison.runs, *comparison.unfinished)
        for what, named in CURVES:
            if what == "flops_with_base" and any(run.base_flops is None for run in comparison.runs if run.warmstarted):
                continue
            caption = f"{comparison.title}: loss against {named}. {_listed(drawn, names)}"
            slug = f"loss-{what.replace('_', '-')}-{number}"
            section.figures.append(figures.loss_curves(comparison, names, what, slug, caption))
        for run in dict.fromkeys(map(id, comparison.runs)):
            run = next(r for r in comparison.runs if id(r) == run)
            rows += [
                {
                    "comparison": comparison.title,
                    "run": names[run.out_dir],
                    "tokens": tokens,
                    "tokens_per_param": tokens / run.record.parameters,
                    "hoffmann_flops": tokens * run.flops_per_token,
                    "hoffmann_flops_with_base": None
                    if run.warmstarted and run.base_flops is None
                    else tokens * run.flops_per_token + (run.base_flops if run.warmstarted else 0),
                    "val_loss": loss,
                }
                for tokens, loss in run.val_losses
            ]
    section.tables.append(Table("validation_losses", "", rows))
    return section


def _listed(runs: Sequence[Run], names: Names) -> str:
    return f"Runs {', '.join(dict.fromkeys(names[run.out_dir] for run in runs))}, whose folders stand under Runs."


def gains(compared: Compared) -> Section:
    """Where along the budget the gain is, and where it ends."""
    section = Section("Where along the budget the gain is")
    section.words.append(
        "Validation loss of a warmstart less that of the run from scratch with its seed, after as many tokens, and"
        " after as much compute with the base's counted; below 0 the warmstart is ahead. Bands reach from the least to"
        " the greatest over seeds; ahead is told where the 95% interval lies below 0, of one seed where the difference"
        " does. At equal compute the warmstart's loss is linear between its validations, from the first after training"
        " began, which puts it a little too high."
    )
    rows = []
    for number, c in enumerate(compared.comparisons, start=1):
        told = []
        for what, find in (("tokens", at_equal_tokens), ("flops", at_equal_compute)):
            found = [find(arm) for arm in c.arms]
            equal = "tokens" if what == "tokens" else "compute, the base's included"
            told += [
                f"{arm.label}, at equal {equal}: {_why_no_compute(arm)}."
                for arm, along in zip(c.arms, found, strict=True)
                if not along
            ]
            if not any(found):
                continue
            caption = f"{c.title}: validation loss less scratch's after as many {equal}, mean and spread over seeds."
            slug = f"gain-{what}-{number}"
            section.figures.append(
                figures.gain_curves(c, found, what, slug, caption.replace("many compute", "much compute"))
            )
            for arm, along in zip(c.arms, found, strict=True):
                rows += [
                    {
                        "comparison": c.title, "warmstart": arm.label, "equal": what, "at": gain.at,
                        "seeds": len(gain.values), "val_loss_minus_scratch": gain.difference.mean,
                        "low": gain.difference.interval and gain.difference.interval[0],
                        "high": gain.difference.interval and gain.difference.interval[1], "ahead": gain.ahead,
                    }
                    for gain in along
                ]  # fmt: skip
                if along:
                    told.append(f"{arm.label}, at equal {equal}: {_ahead(c, what, along)}.")
        section.answers.append((c.title, told))
    section.tables.append(Table("gains", "", rows))
    return section


def _why_no_compute(arm: Arm) -> str:
    """Why there is no place at which a warmstart and its run from scratch had taken as much."""
    pair = arm.pairs[0]
    if pair.warmstart.base_flops is None:
        return "what the base took is not known"
    return (
        f"nothing to compare, since the base alone took {pair.warmstart.base_flops:.3g} Hoffmann FLOPs and the whole"
        f" run from scratch {pair.scratch.tokens * pair.scratch.flops_per_token:.3g}, too little for a validation of"
        " both"
    )


def _ahead(comparison: Comparison, what: str, along: Sequence[Gain]) -> str:
    """Where a warmstart is ahead, in words, and by how much at the last place."""
    parameters = comparison.scratch[0].record.parameters

    def place(gain: Gain) -> str:
        if what == "tokens":
            return f"{gain.at / parameters:.3g} tokens per parameter"
        return f"{gain.at:.3g} Hoffmann FLOPs"

    last = along[-1].difference
    interval = "one seed" if last.interval is None else f"{last.interval[0]:+.4f} to {last.interval[1]:+.4f}"
    end = f"{last.mean:+.4f} ({interval}) at {place(along[-1])}"
    found = spans(along)
    if not found:
        return f"never ahead; {end}"
    if found == [(along[0], along[-1])]:
        return f"ahead throughout; {end}"
    told = [
        f"at {place(a)}"
        if a is b
        else f"from {'the first validation' if what == 'tokens' and a is along[0] else place(a)} to {place(b)}"
        for a, b in found
    ]
    return f"ahead {' and '.join(told)}; {end}"


def scale_pairs(compared: Compared, names: Names) -> Section:
    """Initial and final loss over pairs of scales."""
    section = Section("Initial and final loss over scale pairs")
    rows, shown = [], []
    for c in compared.comparisons:
        groups = [("from scratch (muP)", c.scratch)]
        groups += [(arm.label, tuple(p.warmstart for p in arm.pairs)) for arm in c.arms]
        for label, runs in groups:
            first, last = (band([[(0, run.val_losses[place][1])] for run in runs]) for place in (0, -1))
            rows.append(
                {
                    "comparison": c.title, "arm": label, "seeds": len(runs), "tokens_per_param": c.tokens_per_param,
                    "first_val_loss": first.mean[0], "first_val_loss_least": first.low[0],
                    "first_val_loss_greatest": first.high[0], "val_loss": last.mean[0],
                    "val_loss_least": last.low[0], "val_loss_greatest": last.high[0],
                    "runs": " ".join(names[run.out_dir] for run in runs),
                }
            )  # fmt: skip
            shown.append(
                {
                    "comparison": c.title,
                    "arm": label,
                    "seeds": str(len(runs)),
                    "first loss": _spread(first),
                    "last loss": _spread(last),
                    "runs": ", ".join(names[run.out_dir] for run in runs),
                }
            )
    everything = [run for c in compared.comparisons for run in c.runs]
    spread = f"a line from least to greatest over seeds. {_listed(everything, names)}"
    if all(run.val_losses[0][0] == 0 for run in everything):
        caption = f"Validation loss before the first step; {spread}"
        section.figures.append(figures.scale_pairs(compared.comparisons, names, 0, "loss-initial", caption))
    caption = f"Validation loss after the last step; {spread}"
    section.figures.append(figures.scale_pairs(compared.comparisons, names, -1, "loss-final", caption))
    caption = "Validation loss: mean, least and greatest over seeds; tokens per parameter stand in the lines above."
    section.tables.append(Table("losses", caption, rows, shown))
    return section


def _spread(found: Band) -> str:
    mean, low, high = found.mean[0], found.low[0], found.high[0]
    return f"{mean:.4f}" if low == high else f"{mean:.4f} ({low:.4f} to {high:.4f})"


def chain_title(chain: Chain) -> str:
    """A chain's scales, tokens per parameter of each, and how they were grown."""
    parts = []
    for run in chain.stages:
        grown = f", {arm_labels([run])[0]}" if run.warmstarted else ""
        parts.append(f"{size(run)} at {run.tokens_per_param:.3g} tokens per parameter{grown}")
    return " → ".join(parts)


def chain_path(chain: Chain) -> str:
    """A chain's scales."""
    first = f"{lineage(chain.stages[0])} → " if chain.stages[0].record.lineage else ""
    return first + " → ".join(size(run) for run in chain.stages)


def way_labels(a: Chain, b: Chain) -> tuple[str, str]:
    """What two chains to one scale are called: their scales, and how they were grown where these are the same."""
    if chain_path(a) != chain_path(b):
        return chain_path(a), chain_path(b)
    return chain_title(a), chain_title(b)


def chain_verdict(group: Sequence[Chain]) -> str:
    """The last stage beside its run from scratch, by the compute of the whole lineage, over seeds."""
    chain = group[0]
    if chain.flops is None:
        return "What the training before this chain took is not known: no comparison by compute."
    if not chain.paired:  # several would share one run from scratch
        group = group[:1]
    ours, theirs = ([run.val_losses[-1][1] for run in runs] for runs in zip(*map(_ends, group), strict=True))
    spent = chain.scratch.tokens * chain.scratch.flops_per_token
    other = "" if chain.paired else " with another seed"
    told = (
        f"With the compute of the whole chain, {chain.flops:.3g} Hoffmann FLOPs, the last stage's validation loss is"
        f" {fmean(ours):.4f}; from scratch{other} it is {fmean(theirs):.4f} at {spent:.3g} Hoffmann FLOPs"
        f" ({chain.scratch.tokens_per_param:.3g} tokens per parameter){_over(group)}. Difference:"
        f" {in_words(estimate([a - b for a, b in zip(ours, theirs, strict=True)]), 4, '+')}."
    )
    reached = [c for c in group if c.share is not None]
    if not reached:
        return told + " The chain did not reach the scratch run's last loss: no speed-up."
    flops = fmean(c.flops_to_scratch_loss for c in reached)
    counts = "" if len(reached) == len(group) else f" with {len(reached)} of {len(group)} seeds"
    return told + (
        f" The chain reached that loss{counts} after {flops:.3g} Hoffmann FLOPs: a speed-up of"
        f" {in_words(speed_up([c.share for c in reached]))}, all compute of its lineage counted."
    )


def beside_verdict(a: Sequence[Chain], b: Sequence[Chain]) -> str:
    """Two ways to one scale at the same compute, seed by seed."""
    pairs = same_seeds(a, b)
    first, second = ([chain.stages[-1].val_losses[-1][1] for chain in chains] for chains in zip(*pairs, strict=True))
    found = estimate([x - y for x, y in zip(first, second, strict=True)])
    ways, verdict = way_labels(a[0], b[0]), "not told apart"
    if found.interval and found.interval[1] < 0:
        verdict = f"{ways[0]} is ahead"
    elif found.interval and found.interval[0] > 0:
        verdict = f"{ways[1]} is ahead"
    return (
        f"At {a[0].flops:.3g} and {b[0].flops:.3g} Hoffmann FLOPs of the whole lineage the last validation losses are"
        f" {fmean(first):.4f} and {fmean(second):.4f}{_over(pairs)}; difference {in_words(found, 4, '+')}: {verdict}."
    )


def _ends(chain: Chain) -> tuple[Run, Run]:
    return chain.stages[-1], chain.scratch


def _over(seeds: Sequence) -> str:
    return "" if len(seeds) == 1 else f", means over {len(seeds)} seeds"


def successive(chains: Sequence[Chain], names: Names) -> Section:
    """Chains of warmstarts against the compute of their lineage."""
    section = Section("Successive warmstarts")
    rows, shown = [], []
    for number, chain in enumerate(chains, start=1):
        runs = [*chain.stages, *([chain.scratch] if chain.scratch else [])]
        for what, told in (("loss", "loss"), ("tokens", "tokens")):
            caption = f"{chain_title(chain)}: {told} against the compute of the lineage. {_listed(runs, names)}"
            section.figures.append(figures.lineage_curves(chain, names, what, f"successive-{what}-{number}", caption))
        flops = chain.before or 0.0
        for run in runs:
            flops = run.tokens * run.flops_per_token + (0.0 if run is chain.scratch else flops)
            kind = arm_labels([run])[0] if run.warmstarted else "from scratch"
            row = {
                "chain": number, "stage": size(run), "kind": kind, "tokens": int(run.tokens),
                "tokens_per_param": run.tokens_per_param, "hoffmann_flops_of_lineage": flops,
                "first_val_loss": run.val_losses[0][1], "val_loss": run.val_losses[-1][1], "status": run.status,
                "run": names[run.out_dir],
            }  # fmt: skip
            rows.append(row)
            shown.append(
                {
                    "chain": str(number), "stage": size(run), "kind": kind, "tokens": f"{run.tokens:,.0f}",
                    "tokens per parameter": f"{run.tokens_per_param:.3g}",
                    "Hoffmann FLOPs of the lineage": f"{flops:.3g}",
                    "first loss": f"{run.val_losses[0][1]:.4f}", "last loss": f"{run.val_losses[-1][1]:.4f}",
                    "status": run.status, "run": names[run.out_dir],
                }
            )  # fmt: skip
        if chain.scratch is None:
            section.notes.append(f"{chain_title(chain)}: no run from scratch of the last scale to compare it with")
        elif not chain.finished:
            section.notes.append(f"{chain_title(chain)}: not all of its runs have finished, so no answer counts it")
    section.tables.append(Table("successive", "Stages, and the run from scratch below them.", rows, shown))
    return section


def all_runs(runs: Sequence[Run], unread: Sequence[Unread], names: Names) -> Section:
    """Every run that was found, and how far it got."""
    folders = display_names([run.out_dir for run in runs] + [u.out_dir for u in unread])
    rows, shown = [], []
    for run in runs:
        record = run.record
        kind = "from scratch (muP)" if run.from_scratch else "from scratch (SP)"
        if run.warmstarted:
            kind = f"grown from {lineage(run)}, {arm_labels([run])[0]}"
        elif record.lineage:
            kind = f"continued from {lineage(run)}"
        row = {
            "run": names[run.out_dir], "folder": folders[run.out_dir], "model": size(run), "kind": kind,
            "seed": run.seed, "learning_rate": record.base_lr, "batch_size": record.global_batch_size,
            "schedule": record.training["schedule"]["name"], "tokens": int(run.tokens),
            "tokens_per_param": run.tokens_per_param, "val_loss": run.val_losses[-1][1], "status": run.status,
            "told": run.told,
        }  # fmt: skip
        rows.append(row)
        status = run.status if not run.told else f"{run.status}: {run.told}"
        shown.append(
            {
                "run": row["run"], "folder": row["folder"], "model": row["model"], "kind": kind,
                "seed": str(run.seed), "lr, batch": f"{record.base_lr:g}, {record.global_batch_size}",
                "schedule": row["schedule"], "tokens": f"{run.tokens:,.0f}",
                "tokens per parameter": f"{run.tokens_per_param:.3g}", "last loss": f"{row['val_loss']:.4f}",
                "status": status,
            }
        )  # fmt: skip
    for u in unread:
        row = dict.fromkeys(rows[0] if rows else ("run", "folder", "tokens", "val_loss", "status", "told"))
        rows.append(row | {"folder": folders[u.out_dir], "tokens": u.tokens, "val_loss": u.val_loss,
                           "status": u.status, "told": u.told})  # fmt: skip
        shown.append(
            {
                "run": "-", "folder": folders[u.out_dir], "tokens": f"{u.tokens:,}",
                "last loss": "-" if u.val_loss is None else f"{u.val_loss:.4f}", "status": f"{u.status}: {u.told}",
            }
        )  # fmt: skip
    caption = (
        "All runs that were found. A run that is going on and one that broke off look alike: see when it last wrote."
    )
    return Section("Runs", tables=[Table("runs", caption, rows, shown)])
