"""The page that sections make: whole, escaped, and known again."""

import re

import pandas as pd

from litgpt_warmstart.report.figures import Figure
from litgpt_warmstart.report.page import Section, Table, as_csv, listed_files, render


def section(word: str) -> Section:
    frame = pd.DataFrame({"a": [word]})
    inner = Section(word, figures=[Figure("f", word, "<svg></svg>", b"", ((1.0, 2.0, word),))])
    table = Table("t", word, frame, frame)
    return Section(word, word, [word], tables=[table], notes=[word], parts=[inner])


def test_names_are_escaped():
    page = render("<u>", [section("<i>")], "<z>")
    assert re.findall(r"<(?:u|i|z)>", page) == [] and "<svg></svg>" in page


def test_a_section_shows_its_words_tables_and_parts_and_a_table_without_shown_is_only_a_file():
    page = render("T", [section("word"), Section("Other", tables=[Table("unseen", "", pd.DataFrame())])], "below")
    assert page.count("<h2") == 2 and page.count("<h3") == 1 and page.count("<table") == 1 and "unseen" not in page
    assert 'href="#other"' in page and 'id="other"' in page and 'href="tables/t.csv"' in page


def test_a_folded_table_is_in_a_details_element():
    frame = pd.DataFrame({"a": ["1"]})
    page = render("T", [Section("S", tables=[Table("t", "All", frame, frame, folded=True)])], "")
    assert re.search(r"<details><summary>All</summary>.*<td.*</details>", page, re.DOTALL)


def test_the_files_beside_a_page_are_read_from_it():
    files = ["tables/runs.csv", "tables/a.csv"]
    page = render("T", [], "", files)
    assert listed_files(page) == set(files)
    assert listed_files(page.replace("tables/a.csv", "../a.csv")) == {"tables/runs.csv"}


def test_a_cell_that_a_spreadsheet_would_run_gets_an_apostrophe_and_a_missing_one_is_empty():
    frame = pd.DataFrame({"name": ["=1+1", "@x", "-2.5", "-", None], "value": [1, -2, 3, float("nan"), 5]})
    assert as_csv(frame).splitlines() == ["name,value", "'=1+1,1.0", "'@x,-2.0", "-2.5,3.0", "-,", ",5.0"]
