"""litgpt warmstart_prepare_data: text from the Hub or a folder into tokens, ahead of training."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

from litgpt_warmstart.data.preparing.bpe import train_tokenizer
from litgpt_warmstart.data.preparing.index import PREPARED, DtypeName, EncoderName
from litgpt_warmstart.data.preparing.request import (
    COLUMN,
    SLIMPAJAMA_6B,
    SLIMPAJAMA_6B_COMMIT,
    Preparation,
    default_data_path,
)
from litgpt_warmstart.edge import checked
from litgpt_warmstart.errors import UserError, told_in_one_line


@checked
def setup(
    repo_id: str | None = None,
    revision: str | None = None,
    text_dir: Path | None = None,
    files: str | None = None,
    column: str | None = None,
    val_fraction: float | None = None,
    piece_bytes: int | None = None,
    tokenizer: str | None = None,
    tokenizer_vocab_size: int | None = None,
    data_path: Path | None = None,
    seed: int | None = None,
    num_workers: int | None = None,
    dtype: DtypeName | None = None,
    encoder: EncoderName | None = None,
    executor: Literal["here", "ray"] = "here",
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
        text_dir: A folder of .parquet, .jsonl or .txt files (.gz and .zst of the latter two too), instead of
            ``repo_id``. Paths that name train, validation or test decide the split.
        files: Only files whose path in the repository or folder matches this pattern, e.g. ``en/*.json.gz``. Default:
            those of one format, parquet before jsonl before json before txt.
        column: Column or key that holds the text. Default: text.
        val_fraction: Share of the training documents to hold out, chosen by their text alone, where no file is named
            validation. Default: 0.01.
        piece_bytes: Cut .txt files at line ends into documents of about this size, which are shuffled. Small ones mix
            a batch of few short sequences; large ones keep what belongs together. Default: 65536.
        tokenizer: Hub repository or folder of the tokenizer, with a tokenizer.json. Default: openai-community/gpt2.
        tokenizer_vocab_size: Train a byte-level BPE of this many tokens on the text of ``text_dir`` first, in
            DATA_PATH-tokenizer, and take that: for small models, which are little else than their vocabulary.
        data_path: The folder to write. Default: data/ and the name of the repository or folder.
        seed: Of the documents' order. Default: 42.
        num_workers: Processes that encode; the result does not depend on it. Default: one for each core.
        dtype: Type of the stored tokens. Default: the smallest that holds the vocabulary.
        encoder: The library that encodes. Default: tiktoken where it gives the tokenizer's own ids, else tokenizers.
        executor: ``here``, in processes of this machine, or ``ray``, as tasks of a Ray cluster
        ray_address: Of a running Ray cluster, host:port or auto. Default: Ray is started on this machine.
    """
    with told_in_one_line("litgpt warmstart_prepare_data"):
        from litgpt_warmstart.data.preparing.prepare import prepare
        from litgpt_warmstart.executors import ray_cluster

        if repo_id is None and text_dir is None:
            repo_id = SLIMPAJAMA_6B
        if repo_id == SLIMPAJAMA_6B and revision is None:
            revision = SLIMPAJAMA_6B_COMMIT
        text_dir = Path(text_dir) if text_dir else None
        if tokenizer_vocab_size is not None and (tokenizer or text_dir is None):
            raise UserError("tokenizer_vocab_size is for text_dir, and instead of tokenizer: choose one")
        asked = Preparation(
            data_path=Path(data_path) if data_path else default_data_path(repo_id, text_dir),
            repo_id=repo_id,
            revision=revision,
            text_dir=text_dir,
            files=files,
            column=column,
            val_fraction=val_fraction,
            piece_bytes=piece_bytes,
            tokenizer=tokenizer,
            seed=seed,
            dtype=dtype,
            encoder=encoder,
            num_workers=num_workers,
        )
        if tokenizer_vocab_size is not None and text_dir is not None:
            asked.check()
            whole = asked.data_path.resolve()
            folder = whole.with_name(f"{whole.name}-tokenizer")
            train_tokenizer(text_dir, tokenizer_vocab_size, folder, files, column or COLUMN)
            asked = replace(asked, tokenizer=os.path.relpath(folder))
        already = (asked.data_path / PREPARED).is_file()
        if executor == "ray" and not already:
            with ray_cluster(ray_address) as cluster:
                index = prepare(asked, True, carry_out=lambda tasks, ended: cluster.carry_out(tasks, {}, ended))
        else:
            index = prepare(asked, thorough=True)
        counts = ", ".join(f"{split} {tokens:,}" for split, tokens in index.tokens.items())
        print(
            f"{'Already prepared' if already else 'Prepared'} {str(asked.data_path)!r}: tokens: {counts};"
            f" {sum(index.documents.values()):,} documents, vocabulary {index.vocab_size:,}"
        )
        name = "SlimPajama6B" if index.source.repo_id == SLIMPAJAMA_6B else "PreparedText"
        print(f"Train on it with --data {name} --data.data_path {asked.data_path}")
