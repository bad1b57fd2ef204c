"""Whether the data's token ids are the model's."""

from collections.abc import Sequence

import tokenizers
import torch
from litgpt.tokenizer import Tokenizer

from litgpt_warmstart.data.prepared_text import PreparedText
from litgpt_warmstart.data.preparing.encode import HARD_CASES, read_tokenizer, vocab_size
from litgpt_warmstart.data.tokenizer_files import PROBE
from litgpt_warmstart.data.use import Reading
from litgpt_warmstart.errors import UserError, one_line


def given_tokenizer(reading: Reading) -> Tokenizer | None:
    """What --tokenizer_dir or the base has; a UserError where it has more tokens than the model has classes."""
    if reading.tokenizer_dir is None:
        return None
    try:
        tokenizer = Tokenizer(reading.tokenizer_dir)
    except NotImplementedError:
        raise UserError(
            f"--tokenizer_dir {str(reading.tokenizer_dir)!r} holds no tokenizer.json or tokenizer.model"
        ) from None
    except Exception as error:
        raise UserError(f"--tokenizer_dir {str(reading.tokenizer_dir)!r}: {one_line(error)}") from error
    # LitGPT's own count leaves added tokens out.
    tokens = vocab_size(tokenizer.processor) if tokenizer.backend == "huggingface" else tokenizer.vocab_size
    if tokens > reading.num_classes:
        raise UserError(
            f"the tokenizer in {str(reading.tokenizer_dir)!r} has {tokens:,} tokens, the model"
            f" {reading.num_classes:,} classes: take a base and data with the same tokenizer"
        )
    return tokenizer


def check_vocabulary(reading: Reading, data: PreparedText) -> None:
    """Raise a UserError where the data's tokenizer is not the model's, as far as both are known."""
    classes, ours, given = reading.num_classes, data.tokenizer_json, reading.tokenizer_dir
    if data.vocab_size > classes:
        raise UserError(
            f"{reading.option} has {data.vocab_size:,} tokens, the model {classes:,} classes: take a"
            " model, a base and data with the same tokenizer"
        )
    if ours is None or given is None or not (given / "tokenizer.json").is_file():
        return
    path = given / "tokenizer.json"
    if not _same_ids((path.read_bytes(), str(path)), (ours, f"{type(data).__name__}'s")):
        raise UserError(
            f"{reading.option} has another tokenizer than the one in {str(given)!r}: take a base and data"
            " with the same tokenizer"
        )


def _same_ids(*files: tuple[bytes, str]) -> bool:
    """Whether two tokenizer.json, as bytes and path, give the same ids; one may have been saved again."""
    (first, _), (second, _) = files
    if first == second:
        return True
    read = [read_tokenizer(*file) for file in files]
    vocabularies = [tokenizer.get_vocab(with_added_tokens=True) for tokenizer in read]
    if vocabularies[0] != vocabularies[1]:
        return False
    # Each token's own text too: where a merge is missing, it comes apart.
    each = [read[0].decode([number], skip_special_tokens=False) for number in vocabularies[0].values()]
    added = [f"a {token.content} b{token.content}c" for token in read[0].get_added_tokens_decoder().values()]
    probe = [*HARD_CASES, *PROBE, *each, *added]
    return _ids(read[0], probe) == _ids(read[1], probe)


def _ids(tokenizer: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


def check_batch(stored: object, reading: Reading) -> torch.Tensor:
    """What a loader gave, if it is a batch of the model's token ids, shape (B, T + 1); a UserError if not."""
    name, classes = reading.option, reading.num_classes
    if not isinstance(stored, torch.Tensor) or stored.is_floating_point() or stored.dim() != 2:
        raise UserError(
            f"{name} gives no token tensors of two dimensions, as instruction-tuning DataModules do: take one for"
            " pretraining"
        )
    if stored.shape[1] != reading.block_size + 1:
        raise UserError(
            f"{name} gives sequences of {stored.shape[1]:,} tokens, and not {reading.block_size + 1:,}, --train."
            "max_seq_length and the token after: prepare it for this length"
        )
    ids = stored.cpu().numpy()
    if stored.numel():
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= classes:
            raise UserError(
                f"{name} has the token id {low if low < 0 else high:,}, the model {classes:,} classes: take a model, a"
                " base and data with the same tokenizer"
            )
    return stored
