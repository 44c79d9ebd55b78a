"""Guards against a device that trusts a server it was not told of, or loses its key, its token or its one chance."""

from __future__ import annotations

import json
import platform
import stat
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from edgewise_agent.__main__ import main
from edgewise_agent.identity.facts import detect
from edgewise_agent.identity.identity import load_identity
from edgewise_protocol.enrolment import BrokerAddress, EnrolmentFile, EnrolRequest, EnrolResponse

TOKEN = "token-token-token-token"


class EnrolServer:
    """The one endpoint, over real HTTP. `answer` turns a request into (status, body)."""

    def __init__(self) -> None:
        self.requests: list[EnrolRequest] = []
        self.answer: Callable[[EnrolRequest], tuple[int, bytes]] = lambda _: (500, b"")
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = msgspec.json.decode(body, type=EnrolRequest)
                outer.requests.append(request)
                status, answer = outer.answer(request) if self.path == "/api/v1/enrol" else (404, b"")
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def enrol_server(authority: Any) -> Iterator[EnrolServer]:
    server = EnrolServer()

    def good(request: EnrolRequest) -> tuple[int, bytes]:
        chain = authority.issue(request.csr_pem, "device-7")
        return 200, msgspec.json.encode(EnrolResponse(device_id="device-7", channel="lab", certificate_pem=chain))

    server.answer = good
    yield server
    server.close()


@pytest.fixture
def enrol_file(tmp_path: Path, enrol_server: EnrolServer, authority: Any, simulator: Any) -> Path:
    file = EnrolmentFile(
        server_url=enrol_server.url,
        broker=BrokerAddress(host="127.0.0.1", port=1883),
        fleet_ca=authority.root_pem,
        tuf_root=simulator.Repository().root_bytes.decode(),
        token=TOKEN,
        channel="lab",
    )
    path = tmp_path / "device.enrol.json"
    path.write_bytes(msgspec.json.encode(file))
    return path


def enrol(file: Path, state: Path, *more: str) -> int:
    return main(["enrol", str(file), "--state", str(state), *more])


def test_enrolment_leaves_an_identity_and_no_token(
    enrol_file: Path, enrol_server: EnrolServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from datetime import UTC, datetime

    state = tmp_path / "state"
    assert enrol(enrol_file, state, "--simulated-board", "raspberry-pi-5") == 0
    assert "device-7" in capsys.readouterr().out
    identity = load_identity(state, datetime.now(UTC))
    assert (identity.card.device_id, identity.card.simulated_board) == ("device-7", "raspberry-pi-5")
    facts = enrol_server.requests[0].facts
    assert facts.simulated and facts.compatible == ("raspberry-pi-5",) and facts.memory_mib > 0
    assert "onnxruntime" in facts.engines and facts.cpu_features
    assert stat.S_IMODE((state / "identity/key.pem").stat().st_mode) == 0o600
    assert not any(TOKEN in p.read_text(errors="replace") for p in state.rglob("*") if p.is_file())
    assert enrol(enrol_file, state) == 4
    assert "enrolled already" in capsys.readouterr().err
    assert main(["status", "--state", str(state)]) == 0
    assert "model       none" in capsys.readouterr().out


def test_a_used_token_is_named_and_a_second_try_keeps_the_key(
    enrol_file: Path, enrol_server: EnrolServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    good = enrol_server.answer
    enrol_server.answer = lambda _: (409, json.dumps({"code": "token-used", "detail": "the token was used"}).encode())
    assert enrol(enrol_file, state) == 4
    assert "enrolment-used" in (said := capsys.readouterr().err) and "the token was used" in said
    key = (state / "identity/key.pem").read_bytes()
    enrol_server.answer = good
    assert enrol(enrol_file, state) == 0
    assert (state / "identity/key.pem").read_bytes() == key


def test_a_certificate_of_a_strange_authority_is_refused(
    enrol_file: Path, enrol_server: EnrolServer, tmp_path: Path, simulator: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger = simulator.Authority()

    def answer(request: EnrolRequest) -> tuple[int, bytes]:
        chain = stranger.issue(request.csr_pem, "device-7")
        return 200, msgspec.json.encode(EnrolResponse(device_id="device-7", channel="lab", certificate_pem=chain))

    enrol_server.answer = answer
    assert enrol(enrol_file, tmp_path / "state") == 4
    assert "does not lead to the fleet's root" in capsys.readouterr().err
    assert main(["status", "--state", str(tmp_path / "state")]) == 3


@pytest.mark.parametrize("wrong", ["key", "name", "channel", "expired"])
def test_a_certificate_for_something_else_is_refused(
    enrol_file: Path, enrol_server: EnrolServer, tmp_path: Path, authority: Any, wrong: str
) -> None:
    from edgewise_agent.identity.certificates import make_csr, make_key

    def answer(request: EnrolRequest) -> tuple[int, bytes]:
        csr = make_csr(make_key()) if wrong == "key" else request.csr_pem
        chain = authority.issue(
            csr, "device-8" if wrong == "name" else "device-7", days=-1 if wrong == "expired" else 30
        )
        channel = "production" if wrong == "channel" else "lab"
        return 200, msgspec.json.encode(EnrolResponse(device_id="device-7", channel=channel, certificate_pem=chain))

    enrol_server.answer = answer
    assert enrol(enrol_file, tmp_path / "state") == 4
    assert not (tmp_path / "state/identity/identity.json").exists()


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert enrol(tmp_path / "no.json", tmp_path / "state") == 4
    assert "cannot be read" in capsys.readouterr().err
    (tmp_path / "bad.json").write_text("{}")
    assert enrol(tmp_path / "bad.json", tmp_path / "state") == 4
    assert "not an enrolment file" in capsys.readouterr().err
    assert main(["run", "--state", str(tmp_path / "nowhere")]) == 6
    (tmp_path / "empty").mkdir()
    assert main(["run", "--state", str(tmp_path / "empty")]) == 3
    assert "edgewise-agent enrol" in capsys.readouterr().err
    (tmp_path / "empty/agent.toml").write_text("http_prot = 1")
    assert main(["run", "--state", str(tmp_path / "empty")]) == 2
    assert "http_prot" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tree", "board", "compatible"),
    [
        ("", "", (platform.machine().replace("_", "-"),)),
        ("", "x86-64-vnni", ("x86-64-vnni",)),
        ("raspberrypi,5-model-b\0brcm,bcm2712\0", "", ("raspberrypi,5-model-b", "brcm,bcm2712")),
    ],
)
def test_a_machine_without_a_device_tree_is_named_after_its_processor(
    tree: str, board: str, compatible: tuple[str, ...], tmp_path: Path
) -> None:
    if tree:
        (tmp_path / "proc/device-tree").mkdir(parents=True)
        (tmp_path / "proc/device-tree/compatible").write_text(tree)
    assert detect(tmp_path, {}, board=board, root=tmp_path).compatible == compatible
