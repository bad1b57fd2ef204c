"""What a run's tokens are as text: the bytes of its validation data, and what the model writes after a prompt."""

import math
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from litgpt.generate.base import generate
from litgpt.tokenizer import Tokenizer
from torch.distributed.tensor import DTensor

from litgpt_warmstart.data.plan import DataPlan
from litgpt_warmstart.errors import UserError, one_line
from litgpt_warmstart.method.model import MuGPT
from litgpt_warmstart.method.parametrization import folding
from litgpt_warmstart.run.sharding import gathered
from litgpt_warmstart.run.spec import RunSpec

NEW_TOKENS = 32
"""That a sample has, unless --eval.max_new_tokens says so."""


class Text:
    """The tokenizer of a run, and what is read and written with it.

    Raises:
        UserError: ``--sample`` is given and there is no tokenizer, or the prompt does not fit.
    """

    def __init__(self, spec: RunSpec, plan: DataPlan) -> None:
        self._model = folding(spec.config, spec.mup_base_config, spec.parametrization)
        self._tokenizer = Tokenizer(plan.tokenizer_dir) if plan.tokenizer and plan.tokenizer_dir else None
        self._bytes_per_token: float | None = None
        self._new_tokens = spec.args.eval.max_new_tokens or NEW_TOKENS
        self._prompt = None if spec.args.sample is None else self._encoded(spec.args.sample, spec.block_size)

    def _encoded(self, prompt: str, block_size: int) -> torch.Tensor:
        """The prompt's tokens, int64, shape (T,)."""
        if self._tokenizer is None:
            raise UserError("--sample needs a tokenizer, and there is none: pass --tokenizer_dir, or leave it out")
        try:
            tokens = self._tokenizer.encode(prompt)
        except Exception as error:  # tokenizers and sentencepiece raise their own kinds
            raise UserError(f"--sample cannot be encoded ({one_line(error, 120)}): give another text") from error
        room = block_size - self._new_tokens
        if not 0 < len(tokens) <= room:
            raise UserError(
                f"--sample has {len(tokens):,} tokens: give 1 to {room:,}, which leaves {self._new_tokens:,} of the"
                f" block's {block_size:,} to --eval.max_new_tokens"
                if room > 0
                else f"--eval.max_new_tokens {self._new_tokens:,} leaves no room for --sample in a block of"
                f" {block_size:,} tokens: lower it"
            )
        return tokens.long()

    def bits_per_byte(
        self, fabric: L.Fabric, loss: float, batches: Iterator[tuple[torch.Tensor, torch.Tensor, int]]
    ) -> float | None:
        """A loss in nats per token as bits per byte of text; None where there is no tokenizer.

        Args:
            fabric: Adds up over several devices.
            loss: The mean over validation blocks.
            batches: Those blocks, as :func:`litgpt_warmstart.run.train.validate` takes them; read the first time alone.
        """
        if self._tokenizer is None:
            return None
        if self._bytes_per_token is None:
            sums = torch.zeros(2, device=fabric.device, dtype=torch.float64)  # bytes, and tokens
            for _, targets, counted in batches:
                blocks = targets[:counted].cpu()
                num_bytes = sum(len(self._tokenizer.decode(block).encode(errors="replace")) for block in blocks)
                sums += torch.tensor([num_bytes, blocks.numel()], device=fabric.device, dtype=torch.float64)
            summed: Any = fabric.all_reduce(sums, reduce_op="sum")
            num_bytes, tokens = summed.tolist()
            self._bytes_per_token = num_bytes / tokens
        return loss / math.log(2) / self._bytes_per_token if self._bytes_per_token else None

    def sample(self, gpt: MuGPT, is_first: bool) -> str | None:
        """The prompt and the likeliest tokens after it, by LitGPT's ``generate``; None where none is asked for.

        It is written by another model that has the same weights, and nothing is drawn: what trains stays as it is.
        All processes ask together; the first one gets the text.
        """
        if self._prompt is None or self._tokenizer is None:
            return None
        weights = {}
        for name, weight in gpt.state_dict().items():
            whole = gathered(weight).cpu() if isinstance(weight, DTensor) else weight  # a device may have no room
            if is_first:
                weights[name] = whole
        if not is_first:
            return None
        with torch.device("meta"):
            writer = MuGPT(self._model.config, self._model.width_mult, self._model.branch_divisor)
        writer.load_state_dict(weights, assign=True)
        device = writer.lm_head.weight.device
        writer.cos, writer.sin = writer.rope_cache(device)
        writer.eval().set_kv_cache(1, device=device)
        prompt = self._prompt.to(device)
        length = len(prompt) + self._new_tokens
        return self._tokenizer.decode(generate(writer, prompt, length, temperature=0.0, eos_id=self._tokenizer.eos_id))
