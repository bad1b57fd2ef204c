"""What tests have two processes do; these import it, and so no pytest."""

import json
from collections.abc import Sequence
from pathlib import Path

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.run.build import build_state
from litgpt_warmstart.run.checkpoint import read_checkpoint
from litgpt_warmstart.run.sharding import make_fabric
from litgpt_warmstart.run.spec import RunSpec
from litgpt_warmstart.run.team import Team
from litgpt_warmstart.run.train import begin


def train(runs: Sequence[tuple[RunSpec, Path | None]], team: Team) -> None:
    """Carry out runs, from a checkpoint or from their beginning, in turn: starting processes takes longer than one."""
    for spec, resume_dir in runs:
        begin(spec, resume_dir, team)


def resident(field: str) -> int:
    """Bytes: ``VmRSS`` now, ``VmHWM`` at the peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def grow(small: RunSpec, spec: RunSpec, out_dir: Path, team: Team) -> None:
    """Build a run's model, and write down by how much memory grew to its peak, and what is kept of the weights.

    A ``small`` one is built before, so that what is imported at the first one is there.
    """
    fabric = make_fabric(spec, "fsdp", team.environment)
    fabric.launch()
    team.connect()
    build_state(fabric, small, read_checkpoint(small.start_dir))
    start = read_checkpoint(spec.start_dir)
    team.largest(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    state = build_state(fabric, spec, start)
    peak = resident("VmHWM") - before
    kept = sum(parameter.to_local().nbytes for parameter in state.gpt.parameters())
    (out_dir / f"{team.rank}.json").write_text(json.dumps({"peak": peak, "kept": kept}))


def agree(folder: Path, team: Team) -> None:
    """Write down what a process agrees on with another one, and fail in both for what the first tells."""
    import torch.distributed as dist

    assert team.environment is not None
    address, port = team.environment.main_address, team.environment.main_port
    dist.init_process_group("gloo", init_method=f"tcp://{address}:{port}", rank=team.rank, world_size=team.size)
    team.connect()
    told = [f"largest {team.largest(team.rank)}", f"first {team.first(lambda: team.rank)}"]
    told.append(f"in turn {team.in_turn(lambda: team.rank)}")
    for failing in (1, 0):
        try:
            with team.agreed():
                if team.rank == failing:
                    raise UserError(f"process {failing} has failed" if failing else "the first has failed")
        except UserError as error:
            told.append(str(error) if failing or team.is_first else "the first has failed")
    (folder / str(team.rank)).write_text(", ".join(told))
    team.first(lambda: _fail("told by the first"))


def _fail(told: str) -> None:
    raise UserError(told)
