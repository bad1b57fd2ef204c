"""The short form of ``make fuzz``."""

from tests.guards.fuzz import fuzz


def test_what_a_damaged_or_made_up_file_leads_to_is_a_result_or_one_line(base_run, models):
    tally = fuzz(base_run, models[48], seconds=20, seed=0)
    assert tally.inputs > 10 and not tally.failures, "\n\n".join(tally.failures)
