import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tcompress.artifact import Manifest
from tcompress.errors import RequestError
from tcompress.hub import fetched

from ..trust.processes import Ended, Zygote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/tiny"
NEVER = ("modeling_tiny.py", "pytorch_model.bin", "tokenizer.py", "onnx/config.json", "README.md")
Prune = Callable[..., Ended]


class Hub(ThreadingHTTPServer):
    """As much of the hub's interface as a download asks for, on this machine.

    Attributes:
        files: Content by name, of its one model.
        asked: Names of the files that were asked for.
        reachable: Whether it answers.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.files = files
        self.asked: set[str] = set()
        self.reachable = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, *, body: bool = True) -> None:
        if not self.server.reachable:
            self.close_connection = True
            return
        path = unquote(urlsplit(self.path).path)
        api, resolved = f"/api/models/{NAME}", f"/{NAME}/resolve/{COMMIT}/"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in self.server.files]
            self._answer({"id": NAME, "sha": COMMIT, "siblings": siblings}, body)
        elif path.startswith(f"{api}/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": _oid(content)}
                for name, content in self.server.files.items()
            ]
            self._answer(tree, body)
        elif path.startswith(resolved) and path.removeprefix(resolved) in self.server.files:
            name = path.removeprefix(resolved)
            self.server.asked.add(name)
            self._answer(self.server.files[name], body)
        else:
            missing = "RevisionNotFound" if path.startswith(f"{api}/") else "RepoNotFound"
            self.send_response(404)
            self.send_header("X-Error-Code", missing)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _answer(self, content: object, body: bool) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{_oid(data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _oid(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@pytest.fixture(scope="module")
def hub(model_directories: Callable) -> Iterator[Hub]:
    with Hub(_files(model_directories)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def zygote(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """Commands whose hub is that of the test, without a cache of their own yet."""
    folder = tmp_path_factory.mktemp("zygote")
    env = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_ENDPOINT": hub.url}
    env |= {"HF_HOME": str(folder / "cache"), "no_proxy": "127.0.0.1"}
    with Zygote(folder, env) as zygote:
        yield zygote


@pytest.fixture
def prune(zygote: Zygote, hub: Hub, model_directories: Callable, tmp_path: Path) -> Prune:
    """Prune a model into a directory of the test's."""
    hub.files, hub.reachable = _files(model_directories), True
    hub.asked.clear()
    shutil.rmtree(zygote.cwd / "cache", ignore_errors=True)

    def run(model: object, output: str = "out") -> Ended:
        words = ("--heads", "0.3", "--criterion", "magnitude", "--output", tmp_path / output)
        return zygote.run("prune", "--model", model, *words)

    return run


def _files(model_directories: Callable) -> dict[str, bytes]:
    directory = model_directories("bert")
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    return files | dict.fromkeys(NEVER, b"raise SystemExit")


def test_a_model_of_the_hub_is_pruned_and_nothing_but_model_files_is_fetched(
    prune: Prune, hub: Hub, tmp_path: Path, model_directories: Callable
) -> None:
    named = prune(f"hf:{NAME}", "named")
    assert named.code == 0, named.stderr
    assert hub.asked == {path.name for path in model_directories("bert").iterdir()}
    local = prune(model_directories("bert"), "local")
    assert local.code == 0, local.stderr
    parents = [Manifest.read(tmp_path / name).parent for name in ("named", "local")]
    assert parents[0].digest == parents[1].digest
    assert Path(parents[0].seen_from(tmp_path / "named").path).name == COMMIT


@pytest.mark.parametrize("name", [f"hf:{NAME}", f"hf:{NAME}@{COMMIT}"], ids=["newest", "commit"])
def test_what_was_fetched_is_there_without_the_hub(prune: Prune, hub: Hub, name: str) -> None:
    assert prune(name, "first").code == 0
    hub.reachable = False
    again = prune(name, "again")
    assert again.code == 0, again.stderr


def test_a_hub_out_of_reach_is_the_machine_s_fault(prune: Prune, hub: Hub) -> None:
    hub.reachable = False
    ended = prune(f"hf:{NAME}")
    assert ended.code == 6
    assert "cannot be reached" in ended.stderr


@pytest.mark.parametrize(
    ("name", "says"),
    [
        pytest.param("hf:someone/nothing", "there is no such model", id="no-such-model"),
        pytest.param(f"hf:{NAME}@v9", "there is no such revision", id="no-such-revision"),
    ],
)
def test_what_the_hub_does_not_have_is_refused_in_one_line(
    prune: Prune, tmp_path: Path, name: str, says: str
) -> None:
    ended = prune(name)
    assert ended.code == 5
    (line,) = ended.stderr.splitlines()
    assert says in line
    assert not (tmp_path / "out").exists()


def test_pickled_weights_of_the_hub_are_not_fetched(prune: Prune, hub: Hub) -> None:
    del hub.files["model.safetensors"]
    ended = prune(f"hf:{NAME}")
    assert ended.code == 5
    assert "has no weights in safetensors" in ended.stderr
    assert "pytorch_model.bin" not in hub.asked


@pytest.mark.parametrize("name", ["hf:", "hf:../x", "hf:a/b/c", "hf:a/b@", "hf:a b", "hf:-a/b--c"])
def test_a_name_that_is_none_is_refused_before_anything_is_asked(name: str) -> None:
    with pytest.raises(RequestError, match="is no name of a model of the hub"):
        fetched(name)
