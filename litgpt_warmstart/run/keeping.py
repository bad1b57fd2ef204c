"""Which checkpoints of a run stay: --keep_last removes older ones that the run has written, and nothing else."""

from pathlib import Path

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import others, remove_folder
from litgpt_warmstart.run.breaking_off import tell
from litgpt_warmstart.run.checkpoint import FILES, read_header
from litgpt_warmstart.run.folder import is_checkpoint, step_folders
from litgpt_warmstart.run.identity import difference_in_words, recorded_identity
from litgpt_warmstart.run.resume import RESUMED, OpenRun


def remove_older(run: OpenRun) -> None:
    """Remove all but the newest ``--keep_last`` step-*/ folders of the run, when one has been written whole.

    Those of steps that the schedule marks stay, as do those of another run, of later steps, and with a file of a
    user's inside. One that cannot be removed is told of.
    """
    if run.spec.args.keep_last is None or not run.team.is_first:
        return
    own = [folder for folder in step_folders(run.spec.out_dir, digits=8) if _is_of(folder, run)]
    for folder in own[: -run.spec.args.keep_last]:
        if others(folder, FILES):
            continue
        try:
            remove_folder(folder)
        except OSError as error:
            tell(f"Warning: {str(folder)!r} cannot be removed ({error.strerror})")


def _is_of(folder: Path, run: OpenRun) -> bool:
    """Whether a step-*/ folder is an ordinary checkpoint of this run, of a step that it has made."""
    step = int(folder.name.removeprefix("step-"))
    if not is_checkpoint(folder) or step > run.state.step_count or step in run.spec.schedule.milestones:
        return False
    try:
        header = read_header(folder, "--keep_last")
    except UserError:  # damaged: it is left to its user
        return False
    if header.record is None or header.record.step_count != step:
        return False
    recorded = recorded_identity(header.record, header.config)
    return difference_in_words(recorded, run.spec.identity(), RESUMED) is None
