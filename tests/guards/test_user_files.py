"""A user's files: nothing that a run of ours did not write is ever removed, replaced or written through."""

from tests.guards.conftest import contents, training


def test_a_run_is_made_and_replaced_with_overwrite(command, base, models, tmp_path):
    words = training(models[48], tmp_path / "out", "--base", base)
    assert command("warmstart", *words).status == 0
    told = command("warmstart", *words)
    assert told.status == 1 and len(told.error_lines) == 1 and "already holds a run" in told.err
    (tmp_path / "out/notes.txt").write_text("mine")
    before = contents(tmp_path / "out")
    assert command("warmstart", *words, "--overwrite", "true").status == 0
    assert contents(tmp_path / "out")["notes.txt"] == before["notes.txt"]
