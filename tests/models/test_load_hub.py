"""The hub, played by a small server on this machine: a download, and a different message for each refusal."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from models.errors import LoadError
from models.load.hub import download
from models.load.resolve import resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Answers as huggingface.co does: status and X-Error-Code by the model's name, files from `files`."""

    files: dict = {}  # noqa: RUF012  set by the fixture, one server at a time
    asked: list = []  # noqa: RUF012

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        self.asked.append(self.path)
        refusals = {
            "gated": (403, {"X-Error-Code": "GatedRepo"}),
            "absent": (401, {"X-Error-Code": "RepoNotFound"}),
            "absent-for-members": (404, {"X-Error-Code": "RepoNotFound"}),
            "bad-token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
            "forbidden": (403, {}),
            "broken": (418, {}),
        }
        path = self.path.split("?")[0]
        name = path.split("/")[4] if path.startswith("/api/") else path.split("/")[2]
        content, headers = b"", {}
        if name in refusals:
            status, headers = refusals[name]
        elif "/revision/v9" in path:
            status, headers = 404, {"X-Error-Code": "RevisionNotFound"}
        elif path.startswith("/api/"):
            status = 200
            siblings = [{"rfilename": file} for file in self.files]
            tree = [{"type": "file", "path": f, "size": len(c), "oid": "0" * 40} for f, c in self.files.items()]
            content = json.dumps(
                tree if "/tree/" in path else {"id": f"me/{name}", "sha": COMMIT, "siblings": siblings}
            ).encode()
        else:
            content = self.files[path.split(f"/resolve/{COMMIT}/")[1]]
            status, headers = 200, {"ETag": f'"{hash(content):x}"', "X-Repo-Commit": COMMIT}
        self.send_response(status)
        for key, value in {**headers, "Content-Length": len(content)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hub.files, Hub.asked = {}, []
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield Hub
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gated", r"me/gated: gated: accept its licence at https://huggingface.co/me/gated and set HF_TOKEN"),
        ("absent", r"me/absent: does not exist on the hub"),
        ("absent-for-members", r"does not exist on the hub"),
        ("bad-token", r"me/bad-token: unauthorised \(401\): HF_TOKEN is not valid"),
        ("forbidden", r"me/forbidden: unauthorised \(403\)"),
        ("broken", r"me/broken: the hub answered 418"),
    ],
)
def test_each_refusal_has_its_message(hub, name, message):
    with pytest.raises(LoadError, match=message):
        resolve(f"me/{name}")
    assert hub.asked


def test_revision(hub):
    with pytest.raises(LoadError, match=r"me/fine: the model exists but has no revision 'v9' \(--revision\)"):
        resolve("me/fine", revision="v9")


def test_offline_asks_nobody(hub):
    with pytest.raises(
        LoadError, match=r"me/fine: offline \(--offline or HF_HUB_OFFLINE\) and not complete in the local cache"
    ):
        resolve("me/fine", offline=True)
    assert hub.asked == []


def test_no_network(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(LoadError, match="me/fine: offline: the hub cannot be reached"):
        resolve("me/fine")


def test_download_takes_only_what_loading_needs(hub, tmp_path, build_tiny_model):
    """Weights, JSON and tokenizer; no second copies, no pickles. The next start works offline."""
    build_tiny_model("qwen3").save_pretrained(tmp_path / "saved")
    hub.files = {file.name: file.read_bytes() for file in (tmp_path / "saved").iterdir()}
    unwanted = [
        "pytorch_model.bin",
        "original/consolidated.safetensors",
        "consolidated.safetensors",
        "README.md",
        "x.py",
    ]
    hub.files |= dict.fromkeys(unwanted, b"x")
    source = resolve("me/fine")
    assert source.kind == "safetensors"
    assert len(source.stored) > 10
    assert {file.name for file in source.path.iterdir()} == {file.name for file in (tmp_path / "saved").iterdir()}
    assert not any(name in path for name in unwanted for path in hub.asked)
    before = len(hub.asked)
    assert download("me/fine", offline=True) == source.path
    assert len(hub.asked) == before


def test_not_a_hub_id():
    with pytest.raises(LoadError, match="not a hub id, expected owner/name"):
        download("a--b/..c")
