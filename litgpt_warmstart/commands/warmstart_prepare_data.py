"""litgpt warmstart_prepare_data: text from the Hub or a folder into tokens, ahead of training."""

import os
from functools import partial
from pathlib import Path

from litgpt_warmstart.data.preparing.bpe import train_tokenizer
from litgpt_warmstart.data.preparing.encode import EncoderName
from litgpt_warmstart.data.preparing.request import (
    COLUMN,
    PREPARED,
    SLIMPAJAMA_6B,
    SLIMPAJAMA_6B_COMMIT,
    DtypeName,
    Preparation,
    TextSource,
    default_data_path,
)
from litgpt_warmstart.edge import command, options
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.executors import Executor, carry_out_on_ray


@command
@options("source")
def setup(
    source: TextSource = TextSource(),
    tokenizer_vocab_size: int | None = None,
    data_path: Path | None = None,
    num_workers: int | None = None,
    dtype: DtypeName | None = None,
    encoder: EncoderName | None = None,
    executor: Executor = "here",
    ray_address: str | None = None,
) -> None:
    """Tokenize a dataset once, for ``--data SlimPajama6B`` (the default) or ``--data PreparedText``.

    The result is also a folder that stock LitGPT reads: ``litgpt pretrain --data LitData --data.data_path DATA_PATH
    --data.split_names "[train, val]"``. An interrupted preparation goes on with the same command. Where the data is
    prepared already, it is compared with its source. HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and HF_HOME are honoured.

    Arguments:
        repo_id: Dataset repository on the Hub, with parquet or jsonl files. Default: DKYoon/SlimPajama-6B.
        revision: Its branch, tag or commit. Default: for SlimPajama-6B the commit known here, else main as it is now;
            the commit is recorded.
        tokenizer_vocab_size: Train a byte-level BPE of this many tokens on the text of ``text_dir`` first, in
            DATA_PATH-tokenizer, and take that: for small models, which are little else than their vocabulary.
        data_path: The folder to write. Default: data/ and the name of the repository or folder.
        num_workers: Processes that encode; the result does not depend on it. Default: one for each core.
        dtype: Type of the stored tokens. Default: the smallest that holds the vocabulary.
        encoder: The library that encodes. Default: tiktoken where it gives the tokenizer's own ids, else tokenizers.
        executor: ``here``, in processes of this machine, or ``ray``, as tasks of a Ray cluster
        ray_address: Of a running Ray cluster, host:port or auto. Default: Ray is started on this machine.
    """
    from litgpt_warmstart.data.preparing.prepare import prepare

    if source.repo_id is None and source.text_dir is None:
        source.repo_id = SLIMPAJAMA_6B
    if source.repo_id == SLIMPAJAMA_6B and source.revision is None:
        source.revision = SLIMPAJAMA_6B_COMMIT
    data_path = data_path or default_data_path(source.repo_id, source.text_dir)
    asked = Preparation(data_path, dtype, encoder, num_workers, **vars(source))
    if tokenizer_vocab_size is not None:
        if source.tokenizer or source.text_dir is None:
            raise UserError("tokenizer_vocab_size is for text_dir, and instead of tokenizer: choose one")
        asked.check()
        whole = data_path.resolve()
        folder = whole.with_name(f"{whole.name}-tokenizer")
        train_tokenizer(source.text_dir, tokenizer_vocab_size, folder, source.files, source.column or COLUMN)
        asked.tokenizer = os.path.relpath(folder)
    already = (data_path / PREPARED).is_file()
    on_ray = partial(carry_out_on_ray, address=ray_address) if executor == "ray" else None
    index = prepare(asked, thorough=True, carry_out=on_ray)
    counts = ", ".join(f"{split} {tokens:,}" for split, tokens in index.tokens.items())
    print(
        f"{'Already prepared' if already else 'Prepared'} {str(data_path)!r}: tokens: {counts};"
        f" {sum(index.documents.values()):,} documents, vocabulary {index.vocab_size:,}"
    )
    name = "SlimPajama6B" if index.source.repo_id == SLIMPAJAMA_6B else "PreparedText"
    print(f"Train on it with --data {name} --data.data_path {data_path}")
