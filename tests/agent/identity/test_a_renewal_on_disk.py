"""Danger: a crash, a full disk or a wrong answer in the middle of a renewal leaves a device without an identity."""

from __future__ import annotations

import json
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from edgewise_agent.__main__ import main
from edgewise_agent.config import IdentityConfig
from edgewise_agent.errors import AgentError, IdentityError, ServerRefusedError, ServerUnreachableError, StorageError
from edgewise_agent.identity import identity as identities
from edgewise_agent.identity.certificates import make_csr, make_key, root_sha256
from edgewise_agent.identity.identity import Card, Identity, load_identity, read_card
from edgewise_agent.identity.renew import install_renewal, request_renewal
from edgewise_agent.identity.standing import read_standing
from edgewise_protocol.enrolment import BrokerAddress
from edgewise_protocol.renewal import FleetCaPins, NonceResponse, RenewRequest, RenewResponse, signed_bytes

DEVICE = "device-1"
NONCE = "n" * 43


class RenewServer:
    """The two endpoints over real HTTP. It verifies the proof as the real one does."""

    def __init__(self, authority: Any) -> None:
        self.authority = authority
        self.asked: list[RenewRequest] = []
        self.refusal: tuple[int, str] | None = None
        self.changes: dict[str, Any] = {}
        self.days = 30.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = outer.answer(self.path, body)
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
        self.broker = BrokerAddress(host="127.0.0.1", port=1883)

    def answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        if path == "/api/v1/renew/nonce":
            return 200, msgspec.json.encode(NonceResponse(nonce=NONCE, expires_in_s=60))
        request = msgspec.json.decode(body, type=RenewRequest)
        self.asked.append(request)
        if self.refusal is not None:
            return self.refusal[0], json.dumps({"code": self.refusal[1], "detail": "no more"}).encode()
        key = load_pem_public_key(request.public_key_pem.encode())
        assert isinstance(key, ec.EllipticCurvePublicKey)
        signed = signed_bytes(request.device_id, NONCE, request.csr_pem)
        key.verify(bytes.fromhex(request.signature), signed, ec.ECDSA(hashes.SHA256()))
        found = {
            "device_id": request.device_id,
            "channel": "lab",
            "certificate_pem": self.authority.issue(request.csr_pem, DEVICE, self.days),
            "fleet_ca": self.authority.root_pem,
            "broker": self.broker,
            "server_url": self.url,
        }
        return 200, msgspec.json.encode(RenewResponse(**{**found, **self.changes}))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server(authority: Any) -> Iterator[RenewServer]:
    made = RenewServer(authority)
    yield made
    made.close()


@pytest.fixture
def enrolled(tmp_path: Path, server: RenewServer, enrol_here: Callable[..., Path], simulator: Any) -> Path:
    state = enrol_here(tmp_path / "state", 1883, simulator.Repository().root_bytes)
    point_to(state, server.url)
    return state


def point_to(state: Path, url: str) -> None:
    card = state / "identity/identity.json"
    card.write_bytes(msgspec.json.encode(msgspec.structs.replace(read_card(state), server_url=url)))


def load(state: Path) -> Identity:
    return load_identity(state, datetime.now(UTC))


def test_a_renewal_replaces_key_certificate_and_the_way_to_the_fleet(enrolled: Path, server: RenewServer) -> None:
    before = load(enrolled)
    key = (enrolled / "identity/key.pem").read_bytes()
    server.broker = BrokerAddress(host="broker.example", port=8883)
    request_renewal(before, FleetCaPins())
    after = install_renewal(enrolled)
    assert after.validity.serial != before.validity.serial
    assert (enrolled / "identity/key.pem").read_bytes() != key
    assert stat.S_IMODE((enrolled / "identity/key.pem").stat().st_mode) == 0o600
    assert after.card == msgspec.structs.replace(before.card, broker=server.broker)
    assert sorted(path.name for path in (enrolled / "identity").iterdir()) == [
        "certificate.pem",
        "fleet-ca.pem",
        "identity.json",
        "key.pem",
        "root.json",
    ]


@pytest.mark.parametrize(
    "answer", [b"220 mail ready\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"]
)
def test_an_answer_that_is_not_http_is_a_failure_like_others(enrolled: Path, answer: bytes) -> None:
    """Anything else would leave the renewal waiting for an answer until the agent is started anew."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        point_to(enrolled, f"http://127.0.0.1:{listening.getsockname()[1]}")
        with pytest.raises(ServerUnreachableError):
            request_renewal(load(enrolled), FleetCaPins())
        thread.join()


def test_no_answer_takes_tls_from_the_way_to_the_fleet(enrolled: Path, server: RenewServer) -> None:
    """Who has the server for an hour would else keep the device: without TLS any broker is the fleet's."""
    card = enrolled / "identity/identity.json"
    secured = BrokerAddress(host="broker.example", port=8883, tls=True)
    card.write_bytes(msgspec.json.encode(msgspec.structs.replace(read_card(enrolled), broker=secured)))
    server.broker = BrokerAddress(host="thief.example", port=1883, tls=False)
    with pytest.raises(IdentityError, match="without TLS"):
        request_renewal(load(enrolled), FleetCaPins())
    assert read_card(enrolled).broker == secured
    server.broker = BrokerAddress(host="moved.example", port=8883, tls=True)
    request_renewal(load(enrolled), FleetCaPins())
    assert install_renewal(enrolled).card.broker == server.broker


def test_a_lost_answer_asks_for_the_same_key_again(enrolled: Path, server: RenewServer) -> None:
    server.refusal = (503, "busy")
    for _ in range(2):
        with pytest.raises(ServerRefusedError) as found:
            request_renewal(load(enrolled), FleetCaPins())
        assert found.value.problem == "busy"
    server.refusal = None
    request_renewal(load(enrolled), FleetCaPins())
    keys = {msgspec.json.encode(public_of(request)) for request in server.asked}
    assert len(keys) == 1
    first = install_renewal(enrolled)
    request_renewal(first, FleetCaPins())
    assert public_of(server.asked[-1]) != public_of(server.asked[-2]), "the next renewal has a key of its own"


def public_of(request: RenewRequest) -> str:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = x509.load_pem_x509_csr(request.csr_pem.encode()).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


class PowerCutError(BaseException):
    """Nothing catches it: the process is gone."""


class Cut:
    """Fails the write or removal number `step`: before it is done, or after."""

    def __init__(self, step: int, after: bool, failure: type[BaseException]) -> None:
        self.count = 0
        self._step, self._after, self._failure = step, after, failure
        self._write, self._unlink = identities.write_atomic, Path.unlink

    def __call__(self, act: Callable[[], None]) -> None:
        number, self.count = self.count, self.count + 1
        if number == self._step and not self._after:
            raise self._failure("cut")
        act()
        if number == self._step:
            raise self._failure("cut")

    def apply(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(identities, "write_atomic", lambda *a, **k: self(lambda: self._write(*a, **k)))
        patch.setattr(Path, "unlink", lambda path, **k: self(lambda: self._unlink(path, **k)))


STEPS = 9
"""The next key, the log, four files of the identity, and two removals; the ninth is never reached."""


@pytest.mark.parametrize("failure", [PowerCutError, StorageError])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", range(STEPS))
def test_after_a_failure_at_any_step_the_identity_is_whole(
    enrolled: Path, server: RenewServer, step: int, after: bool, failure: type[BaseException]
) -> None:
    """Every write and removal of a renewal fails once; the next start has the old identity or the new one."""
    old, cut, survived = load(enrolled), Cut(step, after, failure), False
    with pytest.MonkeyPatch.context() as patch:
        cut.apply(patch)
        try:
            request_renewal(old, FleetCaPins())
            install_renewal(enrolled)
            survived = True
        except (PowerCutError, StorageError):
            pass
    assert survived == (step == STEPS - 1), "STEPS is the number of steps"
    found = load(enrolled)  # verifies that certificate, key, root and card belong together
    committed = step > 1 or (step == 1 and after)
    assert (found.validity.serial != old.validity.serial) == committed
    assert not (enrolled / "identity/renewed.json").exists()
    request_renewal(found, FleetCaPins())
    assert install_renewal(enrolled).validity.serial != found.validity.serial


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"device_id": "device-2"}, "renews device-2"),
        ({"channel": "production"}, "in production"),
        ({"certificate_pem": "stranger"}, "does not lead to the fleet's root"),
        ({"fleet_ca": "stranger"}, "offline keys do not name"),
    ],
)
def test_a_wrong_answer_changes_nothing(
    enrolled: Path, server: RenewServer, simulator: Any, changes: dict[str, str], said: str
) -> None:
    stranger = simulator.Authority()
    if changes.get("certificate_pem"):
        changes = {"certificate_pem": stranger.issue(make_csr(make_key()), DEVICE)}
        said = "another key"
    if changes.get("fleet_ca"):
        changes = {"fleet_ca": stranger.root_pem}
    server.changes = changes
    before = load(enrolled)
    with pytest.raises(IdentityError, match=said):
        request_renewal(before, FleetCaPins())
    assert load(enrolled) == before


def test_another_ca_root_is_taken_only_on_the_word_of_the_offline_keys(
    enrolled: Path, server: RenewServer, simulator: Any
) -> None:
    server.authority = other = simulator.Authority()
    pins = FleetCaPins(roots=(root_sha256(other.root_pem),))
    request_renewal(load(enrolled), pins)
    assert install_renewal(enrolled).fleet_ca == other.root_pem


def test_a_device_never_goes_back_to_an_intermediate_that_it_has_left(
    enrolled: Path, server: RenewServer, authority: Any
) -> None:
    """Whoever stole the intermediate before can still answer in the server's name, and pose as the broker."""
    stolen, first = (authority.key, authority.intermediate), load(enrolled)
    authority.replace_intermediate()
    request_renewal(first, FleetCaPins())
    second = install_renewal(enrolled)
    assert second.card.left == (first.validity.intermediate_sha256,)
    honest, (authority.key, authority.intermediate) = (authority.key, authority.intermediate), stolen
    with pytest.raises(IdentityError, match="replaced before"):
        request_renewal(second, FleetCaPins())
    assert load(enrolled) == second
    authority.key, authority.intermediate = honest
    request_renewal(second, FleetCaPins())
    assert install_renewal(enrolled).card.left == second.card.left, "the same intermediate again is not left"


@pytest.mark.parametrize("answer", [b"", b"[]", b"x" * 100])
def test_an_answer_that_is_none_is_named(enrolled: Path, server: RenewServer, answer: bytes) -> None:
    server.answer = lambda _path, _body: (200, answer)  # type: ignore[method-assign]
    with pytest.raises(AgentError) as found:
        request_renewal(load(enrolled), FleetCaPins())
    assert found.value.code == "server-unreachable"


def test_a_running_agent_renews_in_time_and_says_by_its_birth_which_certificate_it_uses(
    voice: Any, mosquitto: Any, server: RenewServer, tmp_path: Path, enrol_here: Any, start_agent: Any, authority: Any
) -> None:
    state = enrol_here(tmp_path / "state", mosquitto.port, voice.repository.root_bytes)
    point_to(state, server.url)
    server.broker = BrokerAddress(host="127.0.0.1", port=mosquitto.port)
    identity = load(state)
    key = identities.load_key((state / "identity/key.pem").read_bytes())
    # an hour of it is over, and 28 minutes are left: more than two thirds
    (state / "identity/certificate.pem").write_text(authority.issue(make_csr(key), DEVICE, 0.02))
    first = load(state).validity.serial
    assert first != identity.validity.serial
    with start_agent(state, identity=IdentityConfig(look_s=0.1, retry_min_s=0.1)):
        birth = voice.wait("status", lambda s: s.online and s.certificate_serial not in ("", first), "a new birth")
        assert birth.instance and birth.run
    assert load(state).validity.serial == birth.certificate_serial
    assert len(server.asked) == 1


def test_an_expired_certificate_is_no_reason_not_to_serve(
    voice: Any, mosquitto: Any, tmp_path: Path, enrol_here: Any, start_agent: Any, authority: Any, server: RenewServer
) -> None:
    state = enrol_here(tmp_path / "state", mosquitto.port, voice.repository.root_bytes)
    point_to(state, server.url)
    server.refusal = (403, "renewal-too-late")
    key = identities.load_key((state / "identity/key.pem").read_bytes())
    (state / "identity/certificate.pem").write_text(authority.issue(make_csr(key), DEVICE, -1))
    with start_agent(state, identity=IdentityConfig(look_s=0.1, retry_min_s=0.1)) as running:
        assert running.agent.serving_url
        voice.wait("status", lambda s: s.online, "a birth")
        deadline = threading.Event()
        for _ in range(200):
            if read_standing(state).code:
                break
            deadline.wait(0.05)
    assert read_standing(state).code == "renewal-too-late"
    assert len(server.asked) == 1, "it does not ask again and again"


class TestErase:
    def test_everything_goes_and_the_keys_go_first(
        self, enrolled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (enrolled / "store").mkdir()
        (enrolled / "store/model").write_bytes(b"m")
        removed: list[str] = []
        real = Path.unlink

        def unlink(self: Path, **how: Any) -> None:
            removed.append(self.name)
            real(self, **how)

        monkeypatch.setattr(Path, "unlink", unlink)
        assert main(["erase", "--state", str(enrolled), "--yes"]) == 0
        assert removed[0] == "key.pem"
        assert not enrolled.exists()
        assert "decommissioned" in capsys.readouterr().out

    def test_it_asks_and_a_no_keeps_everything(
        self, enrolled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("builtins.input", lambda _: "n")
        assert main(["erase", "--state", str(enrolled)]) == 2
        assert "nothing was erased" in capsys.readouterr().err
        load(enrolled)

    def test_another_folder_is_not_erased(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "photos").mkdir()
        assert main(["erase", "--state", str(tmp_path), "--yes"]) == 3
        assert (tmp_path / "photos").exists()
        assert "holds no identity" in capsys.readouterr().err

    def test_a_running_agent_keeps_its_state(self, enrolled: Path, capsys: pytest.CaptureFixture[str]) -> None:
        from edgewise_agent.locking import lock_state

        lock = lock_state(enrolled)
        try:
            assert main(["erase", "--state", str(enrolled), "--yes"]) == 6
        finally:
            lock.close()
        assert isinstance(load(enrolled).card, Card)
