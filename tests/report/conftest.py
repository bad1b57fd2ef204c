"""Run folders as training leaves them, without training: written by the classes that write the real ones."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml
from litgpt.utils import save_config

from litgpt_warmstart.data.use import DataUse
from litgpt_warmstart.files import file_sha256
from litgpt_warmstart.method.flops import hoffmann_flops_per_token
from litgpt_warmstart.method.growth import Grown
from litgpt_warmstart.method.schedule import Schedule
from litgpt_warmstart.run.checkpoint import HYPERPARAMETERS, RECORD, WEIGHTS
from litgpt_warmstart.run.metrics import METRICS, RowFile
from litgpt_warmstart.run.norms import FILE_NAME, INDUCTION, NORMS
from litgpt_warmstart.run.record import Ancestor, Record
from tests.conftest import neox

PER_STEP = 8 * 64
"""Tokens of a step: 8 sequences of 64."""
PARAMETERS = {16: 1000, 48: 10240, 96: 40960}
FLOPS_PER_TOKEN = {width: hoffmann_flops_per_token(neox(width, 2), 64) for width in PARAMETERS}


class Maker:
    """Makes run folders beneath one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self, name: str, val_losses: list[float], *, width: int = 48, seed: int = 1, shrink: float | None = None,
        base: Path | None = None, steps: int = 40, planned: int | None = None, data: str = "corpus",
        start_token: int = 0, max_iters: int = 10, vocabulary: int = 96, checkpoint: str | None = "final",
        norms: tuple[int, ...] = (), scores: tuple[float, ...] = (), hoffmann: bool = True, order: int | None = None,
        **changes: object,
    ) -> Path:  # fmt: skip
        """A run whose validations are evenly spaced over its steps, the first before the first step.

        ``base`` is the folder of the run that it was grown from, ``planned`` the steps that it was to take, ``data`` a
        fingerprint, ``checkpoint`` the folder of its checkpoint, or None, ``norms`` the steps at which they were
        recorded, ``scores`` those of induction then, ``hoffmann`` whether metrics.csv has that column's values,
        ``order`` the seed of the order of its data, ``changes`` other fields of the record.
        """
        out_dir = self.folder / name
        final, tokens = out_dir / (checkpoint or "gone"), steps * PER_STEP
        final.mkdir(parents=True)
        config = neox(width, 2, vocab_size=vocabulary, padded_vocab_size=vocabulary)
        save_config(config, final)
        (final / WEIGHTS).write_bytes(name.encode())
        (final / HYPERPARAMETERS).write_text(yaml.safe_dump({"eval": {"max_iters": max_iters}}))
        lineage = ()
        if base:
            parent = Record.load(base / "final" / RECORD)
            ancestor = Ancestor(
                parent.name, str(base / "final"), file_sha256(base / "final" / WEIGHTS), parent.parameters,
                parent.tokens, parent.matmul_flops, parent.data, parent.growth, parent.hoffmann_flops,
            )  # fmt: skip
            lineage = (*parent.lineage, ancestor)
        record = Record(
            command="warmstart" if base else "warmstart_scratch", name=config.name, parameters=PARAMETERS[width],
            parametrization="mup", mup_base_config=asdict(neox(16, 2)), width_mult=width / 16, base_lr=0.02,
            global_batch_size=8, tokens=tokens, step_count=steps, matmul_flops=tokens,
            hoffmann_flops=tokens * FLOPS_PER_TOKEN[width],
            data=DataUse(
                "litgpt_warmstart.data.StdlibText", {}, tokens, data, start_token, start_token + tokens, order
            ),
            growth=None if shrink is None else Grown(
                shrink, source_dir=str(base), asked_alignment="heads", alignment_reason=None, seed=seed
            ),
            lineage=lineage,
            training={
                "command_line": ["litgpt"], "schedule": Schedule("constant", planned or steps).plain,
                "optimizer": "AdamW", "max_norm": 1.0, "block_size": 64, "micro_batch_size": 4,
                "precision": "32-true", "seed": seed, "max_tokens": (planned or steps) * PER_STEP,
            },
        )  # fmt: skip
        replace(record, **changes).save(final / RECORD)
        self.metrics(out_dir, val_losses, steps, FLOPS_PER_TOKEN[width] if hoffmann else None)
        if norms:
            file = RowFile(out_dir / FILE_NAME, NORMS)
            for step in norms:
                for kind, names in (("activation", ("transformer.wte", "transformer.h.0.attn", "lm_head")),
                                    ("weight", ("lm_head.weight", "transformer.h.0.attn.qkv.weight"))):  # fmt: skip
                    file.append({"step": step, "tokens": step * PER_STEP, "kind": kind, "name": n, "l1": 1.0,
                                 "l2": 2.0 + step} for n in names)  # fmt: skip
            file.append({"step": step, "tokens": step * PER_STEP, "kind": INDUCTION, "name": "loss", "score": score}
                        for step, score in zip(norms, scores, strict=bool(scores)))  # fmt: skip
            file.close()
        if checkpoint is None:
            shutil.rmtree(final)
        return out_dir

    def pair(self, scratch: list[float], warm: list[float]) -> Path:
        """A base, a run from scratch and a warmstart with these losses; gives the base."""
        base = self("base", [9.0, 7.0], width=16, steps=10)
        self("scratch", scratch)
        self("warm", warm, shrink=0.4, base=base)
        return base

    @staticmethod
    def metrics(out_dir: Path, val_losses: list[float], steps: int, flops_per_token: float | None = None) -> None:
        """A metrics.csv with a training loss of 9 less a tenth of the step at each step."""
        out_dir.mkdir(parents=True, exist_ok=True)
        file = RowFile(out_dir / "metrics.csv", METRICS)
        places = {round(steps * i / (len(val_losses) - 1)): loss for i, loss in enumerate(val_losses)}
        for step in range(steps + 1):
            flops = {"hoffmann_flops": step * PER_STEP * flops_per_token} if flops_per_token else {}
            if step:
                file.append([dict(step=step, tokens=step * PER_STEP, loss=9 - step / 10, **flops)])
            if step in places:
                file.append([dict(step=step, tokens=step * PER_STEP, val_loss=places[step], **flops)])
        file.close()


@pytest.fixture
def make_run(tmp_path) -> Maker:
    return Maker(tmp_path / "runs")


@pytest.fixture
def study(make_run) -> Maker:
    return fill(make_run)


def fill(make_run: Maker) -> Maker:
    """A base, three seeds from scratch that end at 4, and three at shrink 0.4, which are there at steps 20, 20, 10."""
    base = make_run("base", [9.0, 8.0, 7.0], width=16, steps=10)
    for seed in (1, 2, 3):
        make_run(f"scratch-{seed}", [8.0, 7.0, 6.0, 5.0, 4.0], seed=seed)
    make_run("warm-1", [6.0, 5.0, 4.0, 3.5, 3.0], seed=1, shrink=0.4, base=base)
    make_run("warm-2", [6.0, 5.0, 4.0, 3.5, 3.2], seed=2, shrink=0.4, base=base)
    make_run("warm-3", [6.0, 4.0, 3.9, 3.5, 3.1], seed=3, shrink=0.4, base=base)
    return make_run
