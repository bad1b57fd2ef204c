"""litgpt warmstart_successive: a chain of scales, each grown from the one before."""

from dataclasses import replace
from pathlib import Path

from litgpt_warmstart.commands.study import NOT_FOR_A_STUDY, as_list, check_comparable, from_scratch
from litgpt_warmstart.data.recorded import recorded_data
from litgpt_warmstart.edge import command, options
from litgpt_warmstart.errors import UserError, check_above_zero
from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.method.schedule import ScheduleName
from litgpt_warmstart.run.resolve import read_base, resolve_models
from litgpt_warmstart.run.spec import RunArgs, TrainArgs
from litgpt_warmstart.study import StudyArgs


@command
@options("growth", "study", "run", without=("resume", "overwrite"), refused=NOT_FOR_A_STUDY)
def setup(
    scales: str | list[str] | None = None,
    base: Path | None = None,
    growth: Growth = Growth(),
    operator: str | list[str] = Growth.operator,
    compute_split: str | list[float] | None = None,
    max_flops: float | None = None,
    grow_at: str | float | list[float] | None = None,
    schedule: ScheduleName | None = None,
    scratch: bool = True,
    mup_base: str | None = None,
    out_dir: Path = Path("out/warmstart_successive"),
    train: TrainArgs = TrainArgs(),
    study: StudyArgs = StudyArgs(),
    run: RunArgs = RunArgs(),
) -> None:
    """Train the smallest scale, grow it into the next, train that, and so on, with one learning rate.

    muP's base stays the first scale, the lineage reads no token twice, and a run from scratch of the last scale with
    the compute of the whole chain stands beside it. A stopped chain goes on with the same command.

    Arguments:
        scales: From the smallest to the largest, e.g. ``5M,22M,70M``; LitGPT names and model_config.yaml files, too.
        base: A trained checkpoint, as in ``warmstart``, that the first of ``scales`` grows from; none is trained then.
        compute_split: Each stage's share of the compute, e.g. ``0.1,0.3,0.6``. Default: each stage has its own
            ``tokens_per_param``.
        max_flops: The compute of all stages, by Hoffmann et al.'s count, for ``compute_split`` or ``grow_at``. Default:
            what the stages, or the last one, come to at ``tokens_per_param``.
        grow_at: When to grow: shares of all tokens that have been read by then, one for each growth, e.g. ``0.7``. All
            stages are then one wsd run: warmup and full rate in the first, the cooldown in the last. The tokens are the
            last scale's ``tokens_per_param``, or what ``max_flops`` is good for, or with ``base``, whose tokens are
            the first share, what that makes of them. ``warmstart_plan`` proposes shares.
        schedule: Of each stage, as in ``warmstart``. Default: constant; with ``grow_at`` it is wsd over all stages.
        scratch: Whether to train the last scale from scratch beside the chain, with the compute of the whole
            lineage, the base's included.
        operator: What stands for Pad0 in eq. (1), of every growth, or one for each with commas, e.g. ``stack,pad``; see
            ``warmstart``.
        mup_base: Where the learning rate was tuned. Default: the base's own, else the first scale.
        out_dir: Directory for the runs, successive.csv and successive.png.
        train: Training-related arguments. Budgets are ``tokens_per_param``'s or ``compute_split``'s.
    """
    from litgpt_warmstart.study import successive
    from litgpt_warmstart.study.runner import conduct

    if scales is None:
        raise UserError("--scales is missing: give at least two, e.g. 5M,22M,70M")
    names = as_list(scales, str, "--scales", once=False)
    start = read_base(base) if base is not None else None
    if len(names) + bool(start) < 2:
        raise UserError(f"--scales {names[0]} is a chain of one: give at least two scales, or a --base")
    check_comparable(run.eval, train, "", "give --tokens_per_param, or --max_flops")
    operators = as_list(operator, str, "--operator", once=False)
    count = len(names) - 1 + bool(start)
    if len(operators) not in (1, count):
        raise UserError(f"--operator has {len(operators)} for {count} growths: give one, or one for each")
    growths = [replace(growth, operator=each) for each in operators * (count // len(operators))]
    shares = None
    if compute_split is not None:
        shares = as_list(compute_split, float, "--compute_split", once=False, words="numbers")
    if max_flops is not None and shares is None and grow_at is None:
        raise UserError("--max_flops is divided by --compute_split or --grow_at: give one of them too")
    places = None
    if grow_at is not None:
        places = as_list(grow_at, float, "--grow_at", once=False, words="numbers")
        if shares is not None:
            raise UserError("--grow_at: --compute_split divides the compute itself: leave --compute_split out")
        if start is not None:
            own = run.tokens_per_param != RunArgs.tokens_per_param
            if own or max_flops is not None:
                other = "tokens_per_param" if own else "max_flops"
                raise UserError(f"--grow_at: the base's tokens, its first share, give the budget: leave --{other} out")
        if schedule not in (None, "wsd"):
            raise UserError(
                f"--grow_at trains one wsd schedule over all stages, which --schedule {schedule} is none of"
            )
    run = replace(run, schedule=schedule or ("wsd" if places else RunArgs.schedule))
    check_above_zero(dict(max_flops=max_flops))
    if start and (mup_base is None or resolve_models(None, start, None, mup_base, None)[1].header is start):
        mup_base = str(start.path)
    if start and start.record and start.record.data_uses and run.data is None:
        run = replace(run, data=recorded_data(start.record.data_uses[-1]))
    make = from_scratch(replace(run, mup_base=mup_base or names[0]))
    conduct(successive.plan(make, names, start, growths, shares, max_flops, places, scratch, train, out_dir), study)
