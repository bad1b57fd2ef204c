"""litgpt warmstart_successive: a chain of scales, each grown from the one before."""

from dataclasses import replace
from pathlib import Path

from litgpt_warmstart.commands.study import (
    Plan,
    as_list,
    check_eval,
    check_out_dir,
    check_results,
    refuse,
    study_folder,
    tell_costs,
)
from litgpt_warmstart.data.recorded import recorded_data
from litgpt_warmstart.edge import checked, flat
from litgpt_warmstart.errors import UserError, told_in_one_line
from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.method.scales import resolve_config, short_name
from litgpt_warmstart.run.models import read_base, resolve_models
from litgpt_warmstart.run.resolve import resolve
from litgpt_warmstart.run.spec import EvalArgs, RunSpec, TrainArgs
from litgpt_warmstart.study.runner import Executor


@checked
@flat("growth")
def setup(
    scales: str | list[str] | None = None,
    base: Path | None = None,
    growth: Growth = Growth(),
    compute_split: str | list[float] | None = None,
    max_flops: float | None = None,
    scratch: bool = True,
    mup_base: str | None = None,
    out_dir: Path = Path("out/warmstart_successive"),
    train: TrainArgs = TrainArgs(),
    eval: EvalArgs = EvalArgs(),
    plan: Plan | None = None,
    executor: Executor = "here",
    ray_address: str | None = None,
    cpus_per_run: int | None = None,
    gpus_per_run: float | None = None,
    **kwargs,
) -> None:
    """Train the smallest scale, grow it into the next, train that, and so on, with one learning rate.

    muP's base stays the first scale, the lineage reads no token twice, and a run from scratch of the last scale with
    the compute of the whole chain stands beside it. A stopped chain goes on with the same command.

    Arguments:
        scales: From the smallest to the largest, e.g. ``5M,22M,70M``; LitGPT names and model_config.yaml files, too.
        base: Folder of a trained checkpoint that the first of ``scales`` grows from, instead of training it.
        compute_split: Each stage's share of the compute, e.g. ``0.1,0.3,0.6``. Default: each stage has its own
            ``tokens_per_param``.
        max_flops: The compute of all stages, by Hoffmann et al.'s count, for ``compute_split``. Default: what the
            stages come to at ``tokens_per_param``.
        scratch: Whether to train the last scale from scratch beside the chain, with the compute of the whole
            lineage, the base's included.
        mup_base: Where the learning rate was tuned. Default: the base's own, else the first scale.
        out_dir: Directory for the runs, successive.csv and successive.png.
        train: Training-related arguments. Budgets are ``tokens_per_param``'s or ``compute_split``'s.
        eval: Evaluation-related arguments. See ``litgpt_warmstart.run.spec.EvalArgs`` for details.
        plan: Train nothing, and say what the runs take: ``tokens`` and Hoffmann FLOPs, or also ``time`` on this device.
        executor: ``here``, or ``ray``, as tasks of a Ray cluster.
        ray_address: Of a running Ray cluster, host:port or auto. Default: Ray is started on this machine.
        cpus_per_run: Cores that Ray gives a run. Default: 1.
        gpus_per_run: GPUs, or a part of one, that Ray gives a run. Default: 1 where this machine has any.
    """
    with told_in_one_line("litgpt warmstart_successive"):
        from litgpt_warmstart.study import successive
        from litgpt_warmstart.study.runner import StudyRun, carry_out

        if scales is None:
            raise UserError("--scales is missing: give at least two, e.g. 5M,22M,70M")
        names = as_list(scales, str, "--scales", once=False)
        start = read_base(base) if base is not None else None
        if len(names) + bool(start) < 2:
            raise UserError(f"--scales {names[0]} is a chain of one: give at least two scales, or a --base")
        check_eval(eval)
        refuse(train, ["max_tokens", "max_steps", "max_time"], "give --tokens_per_param, or --max_flops")
        if max_flops is not None and compute_split is None:
            raise UserError("--max_flops is divided by --compute_split: give that too")
        if max_flops is not None and max_flops <= 0:
            raise UserError(f"--max_flops must be above 0, got {max_flops}")
        out_dir = Path(out_dir)
        check_out_dir(out_dir)
        check_results(out_dir / "successive.csv", ("stage", "step"), "successive.png")
        if start and (mup_base is None or resolve_models(None, start, None, mup_base, None)[1].header is start):
            tuned_at = str(start.path)
        else:
            tuned_at = mup_base or names[0]
        if start and start.record and start.record.latest_data and kwargs.get("data") is None:
            kwargs["data"] = recorded_data(start.record.latest_data)

        def scratch_spec(target: str, folder: str, max_tokens: int | None = None) -> RunSpec:
            own = dict(target=target, parametrization="mup", initial_checkpoint_dir=None)
            budget = replace(train, max_tokens=max_tokens)
            return resolve(
                "warmstart_scratch", target, None, None, "mup", out_dir / folder, own, mup_base=tuned_at, train=budget,
                resume="auto", overwrite=False, eval=eval, **kwargs,
            )  # fmt: skip

        folders = [f"{number}-{short_name(resolve_config(name).name)}" for number, name in enumerate(names, start=1)]
        specs = [scratch_spec(*pair) for pair in zip(names, folders, strict=True)]
        successive.check_order([*([start.config] if start else []), *(spec.config for spec in specs)], growth.alignment)
        if compute_split is not None:
            shares = as_shares(compute_split)
            tokens = successive.split_tokens(specs, shares, max_flops)
            specs = [scratch_spec(*triple) for triple in zip(names, folders, tokens, strict=True)]
        runs: list[StudyRun] = []
        for number, (folder, spec) in enumerate(zip(folders, specs, strict=True)):
            source = runs[-1].spec.out_dir / "final" if runs else start.path if start else None
            if source:
                own = dict(base=str(source), target=names[number]) | growth.options
                settings = {k: v for k, v in spec.hyperparameters.items() if k not in ("initial_checkpoint_dir",
                            "parametrization", "target")}  # fmt: skip
                spec = replace(
                    spec, command="warmstart", source_dir=source, growth=growth,
                    hyperparameters={**own, **settings},
                )  # fmt: skip
            after = (runs[-1].name,) if runs else ()
            runs.append(StudyRun(folder, spec, dict(stage=number + 1), after, source))
        chain, before = list(runs), successive.spent_by(start) if start else successive.Spent()
        if scratch:
            flops = before.flops + sum(successive.run_flops(run.spec) for run in chain)
            tokens = int(flops / successive.flops_per_token(specs[-1]))
            spec = scratch_spec(names[-1], successive.SCRATCH, tokens)
            runs.append(StudyRun(successive.SCRATCH, spec, data_after=start.path if start else None))
        print(f"Successive warmstart {' -> '.join(names)}: {len(runs)} runs in {str(out_dir)!r}")
        if plan:
            return tell_costs(runs, plan)
        with study_folder(out_dir):
            outcomes = carry_out(runs, executor, ray_address, cpus_per_run, gpus_per_run)
            successive.check_finished(chain, outcomes)
            stages = [read for read in (successive.base_stage(start) if start else None,) if read]
            for run in chain:
                stages.append(successive.stage(run.name, run.spec.out_dir / "final", before))
                before = stages[-1].after
            beside = None
            if scratch and outcomes[runs[-1].name].status == "finished":
                beside = successive.stage(successive.SCRATCH, runs[-1].spec.out_dir / "final", successive.Spent())
            shown = [*stages, *([beside] if beside else [])]
            successive.write_results(shown, out_dir / "successive.csv")
            title = " -> ".join(spec.config.name for spec in specs)
            successive.plot(stages, beside, title, out_dir / "successive.png")
            print(f"\n{successive.table(shown)}")
            if beside:
                print(f"\n{successive.verdict(stages[-1], beside)}")
            elif scratch:
                print("\nThe run from scratch diverged.")
            print(f"Wrote successive.csv and successive.png to {str(out_dir)!r}")


def as_shares(compute_split: str | list[float]) -> list[float]:
    """The shares as typed, repeated ones included."""
    parts = compute_split.split(",") if isinstance(compute_split, str) else compute_split
    try:
        return [float(part) for part in parts]
    except (TypeError, ValueError):
        raise UserError(f"--compute_split {compute_split}: give numbers with commas between them") from None
