"""litgpt warmstart_report: one page that shows whether a warmstart paid."""

from pathlib import Path

from litgpt_warmstart.edge import command, options


@command
@options()
def setup(runs: list[Path], out_dir: Path = Path("out/report"), picture: Path | None = None) -> None:
    """Tell of finished runs whether warmstarting paid, and write a page with the curves, norms and checks behind it.

    A warmstart is compared with the run from scratch that has its model, data, budget, settings and seed: the Hoffmann
    FLOPs to reach that run's last validation loss, with and without the base's, as mean and 95% interval over seeds.
    Writes index.html, which needs no other file, and its tables as CSV. Trains nothing.

    Arguments:
        runs: Folders of runs, of studies, or of several of them; whatever is beneath them is found. Give the base
            and the run from scratch, too.
        out_dir: The folder to write; an earlier report in it is replaced.
        picture: A PNG file to write, the losses of the first warmstart beside those from scratch.
    """
    from litgpt_warmstart.report.write import PAGE, write_report
    from litgpt_warmstart.study import kinds

    sections = write_report([Path(run) for run in runs], out_dir, kinds(), picture)
    parts = [part for section in sections for part in section.whole]
    for part in parts:
        if part.answers:
            indented = "\n".join(f"  {sentence}" for sentence in part.answers)
            print("\n".join(filter(None, [part.title, part.printed, indented])) + "\n")
    for part in parts:
        for note in part.notes:
            print(note)
    print(f"Wrote {str(out_dir / PAGE)!r}" + (f" and {str(picture)!r}" if picture else ""))
