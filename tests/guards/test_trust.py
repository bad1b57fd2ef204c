"""A checkpoint that somebody else made: it runs no code, imports no module, is asked for nothing but numbers."""

import ast
import http.server
import json
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
import yaml

import litgpt_warmstart
from tests.guards.conftest import contents, shell, training

PACKAGE = Path(litgpt_warmstart.__file__).parent


@pytest.fixture
def edited(base, tmp_path):
    """A copy of the base whose record says something else."""

    def edit(**changes: object) -> Path:
        folder = tmp_path / "base"
        shutil.copytree(base, folder)
        record = yaml.safe_load((folder / "warmstart.yaml").read_text())
        for name, value in changes.items():
            record[name] = {**record[name], **value} if isinstance(value, dict) else value
        (folder / "warmstart.yaml").write_text(yaml.safe_dump(record))
        return folder

    return edit


def refused(told, *words: str) -> None:
    assert told.status != 0 and len(told.error_lines) == 1, told
    assert all(word in told.err for word in words), told.err


EVIL = {"class_path": "evil_module.Style", "init_args": {}}


@pytest.mark.parametrize(
    ("class_path", "init_args"),
    [
        ("litgpt.data.Alpaca", {"prompt_style": EVIL}),
        ("litgpt.data.TextFiles", {"train_data_path": EVIL}),
        ("litgpt.data.LitData", {"data_path": ".", "split_names": [EVIL, EVIL]}),
        ("evil_module.Data", {}),
        ("litgpt_warmstart.data.PreparedText", {"data_path": EVIL}),
        ("litgpt_warmstart.data.hub.httpx", {}),
        ("subprocess.Popen", {"args": "touch ran"}),
    ],
)
def test_a_records_data_imports_no_module_even_beside_it(
    edited, command, models, tmp_path, monkeypatch, class_path, init_args
):
    folder = edited(data={"class_path": class_path, "init_args": init_args})
    (folder / "evil_module.py").write_text("open('ran', 'w')\nclass Style: pass\nclass Data: pass\n")
    before = contents(tmp_path)
    words = training(models[48], tmp_path / "out", "--base", ".")
    if class_path == "evil_module.Data":  # python -m looks for modules where it stands
        told = shell("warmstart", *words, cwd=folder, PYTHONDONTWRITEBYTECODE="1")
    else:
        monkeypatch.syspath_prepend(folder)
        told = command("warmstart", *words, cwd=folder)
    refused(told, "--data")
    assert contents(tmp_path) == before


@pytest.fixture
def hub():
    """A server that answers nothing, and what it was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


@pytest.mark.parametrize(
    ("name", "init_args", "typed"),
    [
        ("litgpt_warmstart.data.PreparedText", {"data_path": "new", "repo_id": "some/one"}, "--data.repo_id some/one"),
        ("litgpt_warmstart.data.PreparedText", {"data_path": "new", "text_dir": "TEXTS"}, "--data.text_dir"),
        ("litgpt_warmstart.data.SlimPajama6B", {"data_path": "new"}, "--data SlimPajama6B --data.data_path new"),
        ("litgpt_warmstart.data.StdlibText", {"data_path": "new"}, "--data StdlibText --data.data_path new"),
        ("litgpt.data.TextFiles", {"train_data_path": "TEXTS"}, "--data TextFiles --data.train_data_path"),
        ("litgpt.data.TinyStories", {"data_path": "new; touch ran"}, "--data.data_path 'new; touch ran'"),
        ("litgpt.data.OpenWebText", {"data_path": "new"}, "--data OpenWebText --data.data_path new"),
    ],
)  # fmt: skip
def test_what_a_record_names_is_neither_prepared_nor_fetched(
    edited, command, models, texts, tmp_path, hub, monkeypatch, name, init_args, typed
):
    address, asked = hub
    monkeypatch.setenv("HF_ENDPOINT", address)
    text_dir = shutil.copytree(texts, tmp_path / "texts")
    init_args = {key: str(text_dir) if value == "TEXTS" else value for key, value in init_args.items()}
    folder = edited(data={"class_path": name, "init_args": init_args})
    before = contents(tmp_path)
    told = command("warmstart", *training(models[48], tmp_path / "out", "--base", folder), cwd=tmp_path)
    refused(told, "is not prepared here", typed)
    assert contents(tmp_path) == before and asked == []


SPEC = json.dumps([1, {"type": "collections.defaultdict", "context": json.dumps(
    {"default_factory_module": "evil_module", "default_factory_name": "Style", "dict_context": ["a"]}
), "children_spec": [{"type": None, "context": None, "children_spec": []}]}])  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [{"data_spec": SPEC}, {"item_loader": "PyTreeLoader"}, {"data_format": ["pickle"]}, {"compression": "zstd"}],
)
@pytest.mark.parametrize("module", ["LitData", "TextFiles"])
def test_an_index_of_chunks_that_a_record_leads_to_imports_no_module(
    edited, command, models, tmp_path, monkeypatch, config, module
):
    plain = dict(item_loader="TokensLoader", data_format=["no_header_tensor:16"], data_spec=None, compression=None)
    index = {"chunks": [{"filename": "chunk-0-0.bin", "dim": 9, "chunk_bytes": 9, "chunk_size": 1}]}
    name = "train_data_path" if module == "TextFiles" else "data_path"
    folder = edited(data={"class_path": f"litgpt.data.{module}", "init_args": {name: "chunks"}})
    (folder / "evil_module.py").write_text("open('ran', 'w')\nclass Style: pass\n")
    for split in ("", "train", "val"):
        (folder / "chunks" / split).mkdir(exist_ok=True)
        (folder / "chunks" / split / "index.json").write_text(json.dumps(index | {"config": plain | config}))
    monkeypatch.syspath_prepend(folder)
    before = contents(tmp_path)
    told = command("warmstart", *training(models[48], tmp_path / "out", "--base", "."), cwd=folder)
    refused(told, "is no index of plain tokens")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("address", ["s3://bucket/x", "local:/x", "hf://datasets/x", "gs://x"])
def test_a_record_names_no_address_even_where_a_folder_of_that_name_is_there(
    edited, command, models, tmp_path, address
):
    folder = edited(data={"class_path": "litgpt.data.LitData", "init_args": {"data_path": address}})
    (folder / address).mkdir(parents=True)
    (folder / address / "index.json").write_text("{}")
    told = command("warmstart", *training(models[48], tmp_path / "out", "--base", "."), cwd=folder)
    refused(told, "a checkpoint may name no address")


def test_the_same_record_is_followed_where_its_data_is_prepared_and_ones_own_data_may_be_of_any_class(
    edited, command, base, models, tmp_path, monkeypatch
):
    assert command("warmstart", *training(models[48], tmp_path / "out", "--base", base)).status == 0
    record = yaml.safe_load((tmp_path / "out/final/warmstart.yaml").read_text())
    start, stop = (record["lineage"][0]["data"][key] for key in ("stop_token", "start_token"))
    assert record["data"]["start_token"] == start > stop
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom litgpt.data import DataModule\n"
        "class Mine(DataModule):\n"
        "    def __init__(self, rows: int = 64): super().__init__(); self.rows = rows\n"
        "    def connect(self, tokenizer=None, batch_size=1, max_seq_length=64): self.batch = batch_size\n"
        "    def train_dataloader(self):\n"
        "        rows = torch.randint(0, 500, (self.rows, 65), generator=torch.Generator().manual_seed(0))\n"
        "        return torch.utils.data.DataLoader(rows, batch_size=self.batch)\n"
        "    val_dataloader = train_dataloader\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "mine"
    words = training(models[48], out, "--base", base, "--data", "mine.Mine", "--data.rows", 100, steps=1)
    told = command("warmstart", *words)
    assert told.status == 0, told.err
    told = command("warmstart", *training(models[48], tmp_path / "next", "--base", out / "final", "--seed", 1, steps=1))
    refused(told, "mine.Mine", "name it with --data")
    sys.modules.pop("mine", None)


class Payload:
    def __reduce__(self):
        return (open, ("ran", "w"))


@pytest.mark.parametrize("name", ["lit_model.pth", "training_state.pth"])
@pytest.mark.parametrize("recorded", [True, False])
def test_no_pickle_of_a_checkpoint_is_run(command, base, base_run, models, tmp_path, name, recorded):
    folder = tmp_path / "run/final"
    shutil.copytree(base_run, tmp_path / "run")
    content = torch.load(folder / name)
    torch.save({**content, "lm_head.weight": Payload(), "optimizer": Payload()}, folder / name)
    if not recorded:
        record = yaml.safe_load((folder / "warmstart.yaml").read_text())
        (folder / "warmstart.yaml").write_text(yaml.safe_dump({**record, "sha256": {}}))
    for words in (
        ("warmstart_grow", "--base", folder, "--target", models[48], "--out_dir", tmp_path / "grown"),
        ("warmstart_plan", "--base", folder, "--target", models[48], "--measure", "true", "--compile", "false"),
        ("warmstart", *training(models[48], tmp_path / "out", "--base", folder)),
    ):
        refused(command(*words, cwd=tmp_path), "pickled code")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "grown").exists()


def test_the_package_has_no_door_for_code_in_files():
    """Nor for a module by its name but one: the optimizer that the user typed."""
    importing = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not {a.name for a in node.names} & {"pickle", "marshal", "shelve", "dill", "joblib"}, path
            if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "marshal", "shelve", "dill", "joblib"):
                assert [a.name for a in node.names] == ["UnpicklingError"], path
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert called not in ("eval", "exec", "compile", "os.system", "os.popen", "__import__"), (path, called)
            assert given.get("shell") != "True" and given.get("allow_pickle") != "True", (path, called)
            if called == "torch.load":
                assert given.get("weights_only") == "True", path
            if called in ("yaml.load", "yaml.load_all"):
                assert given.get("Loader") == "_PlainLoader", path  # a SafeLoader
            assert not called.startswith(("yaml.unsafe", "yaml.full")), path
            if called.endswith("import_module"):
                importing.add(path.name)
    assert len(importing) == 1, importing
