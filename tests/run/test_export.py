"""Checkpoints for other tools: the same logits where the attention scale has nowhere to go."""

import json
import shutil
from dataclasses import replace

import pytest
import tokenizers
import torch
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.tokenizer import Tokenizer
from litgpt.utils import save_config
from safetensors import SafetensorError, safe_open
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from litgpt_warmstart.commands import warmstart_export, warmstart_grow

NAMES = ("pythia-14m", "phi-1_5", "Phi-3.5-mini-instruct", "Llama-3.2-1B", "SmolLM2-135M", "Qwen2.5-0.5B", "Qwen3-0.6B",
         "OLMo-2-1124-7B")  # fmt: skip
"""Of LitGPT's configs, one or two of each family."""


def test_a_grown_checkpoint_is_exported_in_both_formats_with_its_tokenizer(base, tiny, tmp_path, capsys):
    warmstart_grow.setup(base=base, target=tiny[48], out_dir=tmp_path / "grown")
    shared = dict(checkpoint_dir=tmp_path / "grown", overwrite=True)
    for format in ("litgpt", "transformers"):
        warmstart_export.setup(out_dir=tmp_path / format, format=format, **shared)
        assert "Wrote" in capsys.readouterr().out
        assert (tmp_path / format / "tokenizer.json").is_file()
        assert not (tmp_path / format / "warmstart.yaml").exists()  # it tells of the scale
    warmstart_export.setup(out_dir=tmp_path / "litgpt", **shared)  # replaced
    assert (tmp_path / "litgpt/config.json").is_file() and not (tmp_path / "litgpt/lit_model.pth").exists()


@pytest.mark.parametrize("name", NAMES)
def test_each_family_is_loaded_with_litgpts_logits_and_tokens_and_stops_at_the_end_of_a_text(base, tmp_path, name):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    groups = 2 if name.startswith(("Llama", "Smol", "Qwen")) else 4
    config = Config.from_name(name, n_layer=2, n_embd=64, n_head=4, head_size=32 if "Qwen3" in name else 16,
                              n_query_groups=groups, intermediate_size=96, block_size=64,
                              padded_vocab_size=4096)  # fmt: skip
    torch.manual_seed(0)
    model = GPT(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    folder = tmp_path / "litgpt"
    shutil.copytree(base, folder, ignore=lambda _, names: {n for n in names if not n.startswith("tokenizer")})
    torch.save(model.state_dict(), folder / "lit_model.pth")
    save_config(config, folder)
    warmstart_export.setup(folder, tmp_path / "hf")

    theirs, tokens = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval(), torch.randint(4096, (2, 64))
    with torch.no_grad():
        assert (theirs(tokens).logits - model(tokens)).abs().max() <= 1e-5
    ours, tokenizer = Tokenizer(folder), AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "def f(x):\n    return [x ** 2, 'naïve']  # 3.14"
    assert tokenizer(text)["input_ids"] == ours.encode(text).tolist()
    assert (tokenizer.model_max_length, tokenizer.eos_token_id) == (64, ours.eos_id)
    with safe_open(tmp_path / "hf/model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    with torch.no_grad():
        hidden = theirs(torch.tensor([[5]]), output_hidden_states=True).hidden_states[-1][0, -1]
        theirs.get_output_embeddings().weight[ours.eos_id] = 100 * hidden
    assert theirs.generate(torch.tensor([[5]]), max_new_tokens=8)[0].tolist() == [5, ours.eos_id]


TASKS = {
    "choice": """
output_type: multiple_choice
doc_to_text: context
doc_to_choice: choices
doc_to_target: gold
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: context
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
}
"""Of lm_eval, on lines of a local file: what a task needs beside its name and where the lines are."""


def test_litgpt_evaluate_has_the_figures_of_lm_eval_on_the_export(base, tmp_path, monkeypatch):
    """Of the checkpoint folder as it is; without the network. lm_eval is of the extra ``eval``."""
    evaluator = pytest.importorskip("lm_eval.evaluator", exc_type=ImportError)
    import datasets
    from litgpt.eval.evaluate import convert_and_evaluate

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"context": f"def f{i}(x):\n    return", "choices": [" x", f" [{i}]", "\n\nimport os"], "gold": i % 3}
            for i in range(12)]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, told in TASKS.items():
        place = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\ntest_split: test"
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\n{place}{told}")
    tasks = [str(tmp_path / f"{name}.yaml") for name in TASKS]
    final = shutil.copytree(base, tmp_path / "final")
    convert_and_evaluate(final, tasks=",".join(tasks), device="cpu", batch_size=4)
    warmstart_export.setup(base, tmp_path / "hf")
    exported = evaluator.simple_evaluate("hf", f"pretrained={tmp_path}/hf", tasks, device="cpu", batch_size=4)
    exported = json.loads(json.dumps(exported, default=str))
    evaluated = json.loads((final / "evaluate/results.json").read_text())
    assert exported["results"].keys() == TASKS.keys() and exported["results"] == evaluated["results"]
    assert exported["results"]["text"]["bits_per_byte,none"] > 0
    for name in TASKS:  # the likelihoods themselves
        one, two = ([sample["resps"] for sample in result["samples"][name]] for result in (exported, evaluated))
        assert len(one) == 12 and one == two


def test_a_tokenizer_whose_config_says_little_has_what_transformers_goes_by(base, tmp_path):
    """As GPT-2's own, whose end of text stands in generation_config.json alone."""
    from transformers import AutoTokenizer

    end = Tokenizer(base).eos_id
    shutil.copytree(
        base, tmp_path / "foreign", ignore=shutil.ignore_patterns("warmstart.yaml", "tokenizer_config.json")
    )
    (tmp_path / "foreign/generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    warmstart_export.setup(tmp_path / "foreign", tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert (tokenizer.eos_token_id, tokenizer.model_max_length) == (end, 64)
    assert tokenizer("import os")["input_ids"] == Tokenizer(base).encode("import os").tolist()


def test_a_tokenizer_gives_the_ids_of_its_file_whatever_class_it_names(base, tmp_path):
    """Here punctuation stays together with the ends of lines, which the class's own rules would not do."""
    from transformers import AutoTokenizer

    lines = Regex(r"[^\s\w]+[\r\n]*|\w+|\s+")
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(lines, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    text, end = "f(x);\n\ng(x);\n\n", "<|endoftext|>"
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([text] * 9, trainers.BpeTrainer(special_tokens=[end], initial_alphabet=alphabet))
    shutil.copytree(base, tmp_path / "foreign", ignore=shutil.ignore_patterns("warmstart.yaml"))
    made.save(str(tmp_path / "foreign/tokenizer.json"))
    named = {"tokenizer_class": "GPTNeoXTokenizer", "eos_token": end}
    (tmp_path / "foreign/tokenizer_config.json").write_text(json.dumps(named))
    warmstart_export.setup(tmp_path / "foreign", tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer(text)["input_ids"] == made.encode(text).ids and tokenizer.eos_token == end
    assert tokenizer.decode(made.encode(text).ids) == text


def test_a_full_disk_is_one_line_and_leaves_nothing(base, tmp_path, capsys, monkeypatch):
    def full(*args: object, **more: object) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("litgpt_warmstart.run.export.save_file", full)
    with pytest.raises(SystemExit):
        warmstart_export.setup(base, tmp_path / "out")
    err = capsys.readouterr().err
    assert "No space left on device; free space" in err and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_is_not_supported_is_refused(base, tmp_path, capsys):
    shutil.copytree(base, tmp_path / "gemma")
    config = Config.from_file(base / "model_config.yaml")
    save_config(replace(config, scale_embeddings=True), tmp_path / "gemma")
    (tmp_path / "gemma/warmstart.yaml").unlink()
    with pytest.raises(SystemExit):
        warmstart_export.setup(tmp_path / "gemma", tmp_path / "out", format="litgpt")
    assert "has embeddings scaled by sqrt(n_embd)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(checkpoint_dir=None), "--checkpoint_dir is missing"),
        (dict(out_dir=None), "--out_dir is missing"),
        (dict(out_dir="source"), "was not written by this command alone"),
        (dict(out_dir="mine"), "was not written by this command alone"),
        (dict(out_dir="before"), "exists: pass --overwrite true"),
    ],
)
def test_what_cannot_be_exported_is_one_line(base, tmp_path, capsys, changes, told):
    for name in ("mine/notes", "before/.warmstart_export"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    if changes.get("out_dir"):
        changes = dict(out_dir=base.parent if changes["out_dir"] == "source" else tmp_path / changes["out_dir"])
    with pytest.raises(SystemExit):
        warmstart_export.setup(**dict(checkpoint_dir=base, out_dir=tmp_path / "new") | changes)
    err = capsys.readouterr().err
    assert told in err and len(err.splitlines()) == 1 and not (tmp_path / "new").exists()
