"""Hub ids: a model and datasets by id, from a small HTTP server that HF_ENDPOINT points at."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LABELS = ("bad", "good")
TEXTS = [(f"{'a fine' if i % 2 else 'a dull'} film number {i}", i % 2) for i in range(120)]
TEST_TEXTS = [(f"{'a fine' if i % 2 else 'a dull'} evening number {i}", i % 2) for i in range(40)]


@dataclass
class Hub:
    """Repositories as folders: models/OWNER/NAME and datasets/OWNER/NAME."""

    root: Path
    endpoint: str = ""
    asked: list[str] = field(default_factory=list)

    def folder(self, kind: str, repo: str) -> Path:
        folder = self.root / kind / repo
        folder.mkdir(parents=True)
        return folder


class Handler(BaseHTTPRequestHandler):
    """Enough of the hub's API for from_pretrained and load_dataset."""

    hub: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        asked = self.rfile.read(length)
        self._answer(body=True, asked=asked)

    def log_message(self, *arguments: Any) -> None:
        pass

    def _answer(self, body: bool, asked: bytes = b"") -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.asked.append(f"{self.command} /{path}")
        parts = path.split("/")
        if parts[0] == "api" and len(parts) >= 4:
            self._api(parts[1], "/".join(parts[2:4]), parts[4:], asked, body)
        elif "resolve" in parts:
            kind = "datasets" if parts[0] == "datasets" else "models"
            at = parts.index("resolve")
            repo = "/".join(parts[at - 2 : at])
            self._file(self.hub.root / kind / repo, "/".join(parts[at + 2 :]), body)
        else:
            self._send(404, b"{}", body)

    def _api(self, kind: str, repo: str, rest: list[str], asked: bytes, body: bool) -> None:
        folder = self.hub.root / kind / repo
        if not folder.is_dir():
            self._send(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})
            return
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        entries = [
            {"type": "file", "oid": _etag(p), "size": p.stat().st_size, "path": p.relative_to(folder).as_posix()}
            for p in files
        ]
        if rest[:1] == ["tree"]:
            below = "/".join(rest[2:])
            found: Any = [e for e in entries if str(e["path"]).startswith(below)]
        elif rest[:1] == ["paths-info"]:
            wanted = json.loads(asked)["paths"] if asked.startswith(b"{") else _form(asked)
            found = [e for e in entries if e["path"] in wanted]
        else:
            siblings = [{"rfilename": entry["path"]} for entry in entries]
            found = {"id": repo, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "siblings": siblings}
        self._send(200, json.dumps(found).encode(), body, {"Content-Type": "application/json"})

    def _file(self, folder: Path, name: str, body: bool) -> None:
        file = folder / name
        if not folder.is_dir() or not file.is_file():
            code = "EntryNotFound" if folder.is_dir() else "RepoNotFound"
            self._send(404, b"", body, {"X-Error-Code": code, "X-Repo-Commit": COMMIT})
            return
        data = file.read_bytes()
        status, headers = 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{_etag(file)}"', "Accept-Ranges": "bytes"}
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            status, headers["Content-Range"] = 206, f"bytes {first}-{last or len(data) - 1}/{len(data)}"
            data = data[int(first) : int(last) + 1 if last else None]
        self._send(status, data, body, headers)

    def _send(self, status: int, data: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def _form(asked: bytes) -> list[str]:
    from urllib.parse import parse_qs

    return parse_qs(asked.decode()).get("paths", [])


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    state = Hub(tmp_path / "hub")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": state}))
    state.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def run_python(hub: Hub, home: Path, code: str) -> Any:
    """The JSON that `code` prints last, run in a fresh process that knows the hub only by HF_ENDPOINT."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{done.stderr[-4000:]}\nasked: {hub.asked}"
    return json.loads(done.stdout.strip().splitlines()[-1])


def write_tiny_bert(folder: Path) -> None:
    """A BERT with random weights, as `save_pretrained` writes one."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    words = sorted({word for text, _ in TEXTS for word in text.split()})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5 + len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        id2label=dict(enumerate(LABELS)),
    )
    BertForSequenceClassification(config).eval().save_pretrained(folder)


LOAD_MODEL = """
import json, sys, torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
source = {source!r}
config = AutoConfig.from_pretrained(source)
tokenizer = AutoTokenizer.from_pretrained(source)
model = AutoModelForSequenceClassification.from_pretrained(source).eval()
with torch.no_grad():
    logits = model(**tokenizer("a fine film number 7", return_tensors="pt")).logits[0].tolist()
print(json.dumps([config.model_type, list(config.id2label.values()), logits]))
"""


@pytest.mark.slow
def test_model_by_id(hub: Hub, tmp_path: Path) -> None:
    folder = hub.folder("models", "acme/tiny")
    write_tiny_bert(folder)
    by_id = run_python(hub, tmp_path / "home", LOAD_MODEL.format(source="acme/tiny"))
    by_path = run_python(hub, tmp_path / "home", LOAD_MODEL.format(source=str(folder)))
    assert by_id == by_path
    assert by_id[:2] == ["bert", list(LABELS)]
    assert "GET /acme/tiny/resolve/main/model.safetensors" in " ".join(hub.asked).replace(COMMIT, "main")


LOAD_DATA = """
import json
from pathlib import Path
from edgewise.data import PARTS, load_splits
from edgewise.errors import DataError
from edgewise.plan import DataSpec
try:
    splits = load_splits(DataSpec(**{options!r}), "text-classification", Path)
    print(json.dumps({{"labels": splits.labels, "dropped": splits.dropped}}
        | {{part: [[row.text, row.label] for row in splits.part(part)] for part in PARTS}}))
except DataError as error:
    print(json.dumps({{"error": str(error)}}))
"""


def write_csv_dataset(folder: Path, class_names: bool) -> None:
    for split, rows in (("train", TEXTS), ("test", TEST_TEXTS)):
        lines = ["text,label", *(f"{text},{label}" for text, label in rows)]
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    if class_names:
        (folder / "README.md").write_text(
            "---\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: label\n    dtype:\n"
            "      class_label:\n        names:\n          '0': bad\n          '1': good\n---\n# Films\n"
        )


@pytest.mark.parametrize("class_names", [True, False])
def test_dataset_by_id_split_by_shares(hub: Hub, tmp_path: Path, class_names: bool) -> None:
    write_csv_dataset(hub.folder("datasets", "acme/films"), class_names)
    shares = {"train": 0.5, "val": 0.3, "confirm": 0.2}
    found = run_python(hub, tmp_path / "home", LOAD_DATA.format(options={"dataset": "acme/films", "split": shares}))
    names = list(LABELS) if class_names else ["0", "1"]
    assert found["labels"] == names
    rows = sorted(tuple(row) for part in shares for row in found[part])
    assert rows == sorted((text, names[label]) for text, label in TEXTS), "train alone is split"
    assert any("acme/films" in path for path in hub.asked)


def test_dataset_by_id_with_its_own_splits(hub: Hub, tmp_path: Path) -> None:
    folder = hub.folder("datasets", "acme/films")
    write_csv_dataset(folder, class_names=True)
    leaked = TEST_TEXTS[0]
    with (folder / "train.csv").open("a") as file:
        file.write(f"{leaked[0]},{leaked[1]}\n")
    split = {"train": "train[:80]+train[-1:]", "val": "train[80:120]", "confirm": "test"}
    found = run_python(hub, tmp_path / "home", LOAD_DATA.format(options={"dataset": "acme/films", "split": split}))
    assert found["labels"] == list(LABELS)
    for part, expected in (("train", TEXTS[:80]), ("val", TEXTS[80:]), ("confirm", TEST_TEXTS)):
        assert sorted(map(tuple, found[part])) == sorted((text, LABELS[label]) for text, label in expected)
    assert found["dropped"] == 1, "the row of train that stands in test too"


def test_what_the_hub_does_not_have(hub: Hub, tmp_path: Path) -> None:
    write_csv_dataset(hub.folder("datasets", "acme/films"), class_names=True)
    shares = {"train": 0.5, "val": 0.3, "confirm": 0.2}
    missing = run_python(hub, tmp_path / "home", LOAD_DATA.format(options={"dataset": "acme/none", "split": shares}))
    assert missing["error"].startswith("dataset 'acme/none' (train) cannot be loaded: ")
    split = {"train": "train", "val": "validation", "confirm": "test"}
    named = run_python(hub, tmp_path / "home", LOAD_DATA.format(options={"dataset": "acme/films", "split": split}))
    assert "dataset 'acme/films' (validation) cannot be loaded" in named["error"]
