"""One HTML page that needs nothing else: text, tables, and figures as SVG, legible light and dark, on a phone too."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape, unescape

from litgpt_warmstart.report.old_figures import Figure

MARK = '<meta name="generator" content="litgpt warmstart_report">'
"""In every page, so that a later report knows what it may replace."""

_CSS = """
:root { color-scheme: light dark; --back: #fff; --card: #f6f7f9; --ink: #1b1d21; --soft: #5a6068; --line: #d5d8dd;
  --mark: #0062a3; --blue: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --back: #15171a; --card: #1e2125; --ink: #e9eaec; --soft: #a6acb5;
  --line: #3a3f46; --mark: #6cb6ff; --blue: #3a9ad9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--back); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
p, li { max-width: 46rem; }
a { color: var(--mark); }
nav { color: var(--soft); font-size: .95rem; }
.answer { border-left: 4px solid var(--mark); background: var(--card); padding: .6rem 1rem; margin: .8rem 0; }
.answer p { margin: .3rem 0; }
.notes { color: var(--soft); font-size: .95rem; padding-left: 1.2rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem; }
figure { margin: 0; padding: .8rem; background: var(--card); border-radius: 6px; min-width: 0; max-width: 44rem; }
figure svg { display: block; width: 100%; height: auto; }
figcaption, .soft { color: var(--soft); font-size: .88rem; text-align: left; }
.table { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: normal; }
th { font-weight: 600; }
th.group { padding-top: .9rem; }
th.group span { display: inline-block; position: sticky; left: 0; max-width: min(46rem, calc(100vw - 2rem)); }
.above { margin: 1rem 0 0; max-width: none; }
@media (max-width: 40rem) { body { padding: .8rem; } figure { padding: .5rem; } }
td.short { white-space: nowrap; }
td.long { min-width: 12rem; overflow-wrap: anywhere; }
"""

FIGURES, TABLES = "figures", "tables"
_FILES = "litgpt-warmstart-files"
_FILE = re.compile(rf"{FIGURES}/[A-Za-z0-9_-]+\.(svg|png)|{TABLES}/[A-Za-z0-9_-]+\.csv", re.ASCII)
_UNLINKED = ("gains", "grid_searches", "layer_norms", "norms_over_training", "pairs", "validation_losses")
"""Tables that a page of the first landing did not link to."""
GROUP = "comparison"
"""Heading of the column that becomes a line above its rows."""


@dataclass(frozen=True)
class Table:
    """A table of the page, and of a CSV file."""

    name: str
    """Of the file."""
    caption: str
    rows: Sequence[dict]
    """As the file has them."""
    shown: Sequence[dict[str, str]] = ()
    """As the page has them, by heading; empty for a table that is only a file."""


@dataclass
class Section:
    """A heading and what is under it."""

    heading: str
    words: list[str] = field(default_factory=list)
    answers: list[tuple[str, list[str]]] = field(default_factory=list)
    """What each is about, and its sentences."""
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def render(title: str, sections: Sequence[Section], below: str, files: Sequence[str] = ()) -> str:
    """The page.

    Args:
        title: Its heading.
        sections: In reading order.
        below: A last line, on what made it.
        files: What lies beside it, for the report that replaces this one.
    """
    listed = escape(json.dumps(list(files)), quote=True)
    links = " · ".join(f'<a href="#s{n}">{escape(s.heading)}</a>' for n, s in enumerate(sections))
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'{MARK}\n<meta name="{_FILES}" content="{listed}">',
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>",
        f"<h1>{escape(title)}</h1>\n<nav>{links}</nav>",
    ]
    for number, section in enumerate(sections):
        parts.append(f'<section>\n<h2 id="s{number}">{escape(section.heading)}</h2>')
        for about, sentences in section.answers:
            told = "\n".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
            parts.append(f'<div class="answer">\n<p><strong>{escape(about)}</strong></p>\n{told}\n</div>')
        parts += [f"<p>{escape(words)}</p>" for words in section.words]
        if section.notes:
            parts.append('<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in section.notes) + "</ul>")
        if section.figures:
            parts.append('<div class="figures">' + "\n".join(map(_figure, section.figures)) + "</div>")
        parts += [_table(table) for table in section.tables if table.shown]
        parts.append("</section>")
    parts.append(f'<p class="soft">{escape(below)}</p>\n</body>\n</html>\n')
    return "\n".join(parts)


def listed_files(page: str) -> set[str]:
    """The files that a page of ours says it has written: figures/NAME.svg, figures/NAME.png, tables/NAME.csv.

    A page of the first landing, which has no list, links to most of them.
    """
    found = re.search(rf'<meta name="{_FILES}" content="([^"]*)">', page)
    try:
        named = json.loads(unescape(found[1])) if found else re.findall(r'<a href="([^"]*)">', page)
    except ValueError:
        named = []
    if not found:
        named += [f"{TABLES}/{name}.csv" for name in _UNLINKED]
    kept = named if isinstance(named, list) else []
    return {name for name in kept if isinstance(name, str) and _FILE.fullmatch(name)}


def _figure(figure: Figure) -> str:
    label = escape(figure.caption, quote=True)
    svg = figure.svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    path = f"{FIGURES}/{figure.slug}"
    files = f'<a href="{path}.png">PNG</a>, <a href="{path}.svg">SVG</a>'
    return f"<figure>{svg}<figcaption>{escape(figure.caption)} {files}</figcaption></figure>"


def _table(table: Table) -> str:
    """A table that scrolls by itself; rows of one comparison stand under its title: a phone has no room beside."""
    headings = [heading for heading in table.shown[0] if heading != GROUP]
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    body, group = [], None
    for row in table.shown:
        if row.get(GROUP) != group:
            group = row[GROUP]
            title = f"<span>{escape(group)}</span>"
            body.append(f'<tr><th class="group" scope="rowgroup" colspan="{len(headings)}">{title}</th></tr>')
        body.append("<tr>" + "".join(_cell(row.get(heading, "")) for heading in headings) + "</tr>")
    caption = f'<p class="soft above">{escape(table.caption)} <a href="{TABLES}/{table.name}.csv">CSV</a></p>'
    return (
        f'{caption}<div class="table"><table aria-label="{escape(table.name, quote=True)}">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{chr(10).join(body)}\n</tbody></table></div>"
    )


def _cell(text: str) -> str:
    return f'<td class="{"long" if len(text) > 28 else "short"}">{escape(text)}</td>'
