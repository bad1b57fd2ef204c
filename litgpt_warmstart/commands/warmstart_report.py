"""litgpt warmstart_report: one page that shows whether a warmstart paid."""

from pathlib import Path

from litgpt_warmstart.edge import checked
from litgpt_warmstart.errors import told_in_one_line


@checked
def setup(runs: list[Path], out_dir: Path = Path("out/report")) -> None:
    """Write a page on finished runs: whether warmstarting paid, the curves, norms and coordinate checks behind it.

    A warmstart is compared with the run from scratch that has its model, data, budget, settings and seed: the Hoffmann
    FLOPs to reach that run's last validation loss, with and without the base's, as mean and 95% interval over seeds.
    Writes index.html, which needs no other file, its figures as PNG and SVG, and its tables as CSV. Trains nothing.

    Arguments:
        runs: Folders of runs, of experiments, or of several of them; whatever is beneath them is found. Give the base
            and the run from scratch, too.
        out_dir: The folder to write; an earlier report in it is replaced.
    """
    with told_in_one_line("litgpt warmstart_report"):
        from litgpt_warmstart.report.write import write_report

        written = write_report([Path(run) for run in runs], Path(out_dir))
        for about, sentences in written.answers:
            print("\n".join([about, *(f"  {sentence}" for sentence in sentences)]) + "\n")
        for line in (*written.words, *written.notes):
            print(line)
        print(f"Wrote {str(written.page)!r}")
