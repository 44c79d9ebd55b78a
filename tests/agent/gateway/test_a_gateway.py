"""Danger: a board that is given the wrong firmware, asked by two at once, or waited for without end."""

from __future__ import annotations

import io
import os
import pty
import select
import subprocess
import threading
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from edgewise_agent.config import GatewayConfig, load_config
from edgewise_agent.engines import NoEngineError, open_engine
from edgewise_agent.engines.errors import InputError, ModelFileError
from edgewise_agent.engines.registry import installed
from edgewise_agent.errors import ConfigError
from edgewise_agent.gateway.engine import C99Engine
from edgewise_agent.gateway.errors import BoardBusyError, BoardFirmwareError, BoardLinkError
from edgewise_agent.identity.facts import detect
from edgewise_protocol.bundle import file_entry, write_bundle
from edgewise_protocol.facts import fits
from safetensors.numpy import save

BOARD = "mps2-an386"
X = np.random.default_rng(4).normal(0, 5, (5, 4)).astype(np.float32)


def gateway(command: str = "{image}", **more: Any) -> GatewayConfig:
    return GatewayConfig(board=BOARD, command="" if more.get("device") else command, **{"timeout_s": 5.0, **more})


@pytest.fixture
def path(model_file: Callable[[float], bytes], tmp_path: Path) -> Path:
    file = tmp_path / "model.c99"
    file.write_bytes(model_file(0.2))
    return file


def test_a_request_in_real_numbers_is_answered_by_the_firmware(path: Path, manifest: Any, meant: Any) -> None:
    engine = open_engine("c99", path, manifest(), gateway=gateway())
    try:
        found = engine.infer({"x": X})["logits"]
        assert found.shape == (5, 4) and found.dtype == np.float32
        np.testing.assert_allclose(found, meant(0.2, X), atol=0.21)
        with pytest.raises(InputError, match="NaN"):
            engine.infer({"x": np.full((1, 4), np.nan, np.float32)})
    finally:
        engine.close()


def test_an_agent_without_a_board_has_no_such_engine(path: Path, manifest: Any) -> None:
    with pytest.raises(NoEngineError, match=r"gateway\.board"):
        open_engine("c99", path, manifest())
    assert "c99" not in installed()
    assert installed(gateway()) == {"c99": "1"}


def test_a_gateway_is_its_board_to_the_fleet(manifest: Any, tmp_path: Path) -> None:
    facts = detect(tmp_path, installed(gateway()), gateway=gateway())
    assert (facts.machine, facts.compatible, facts.simulated) == ("armv7e-m", (BOARD,), False)
    assert fits(facts, manifest()) == ()
    other = msgspec.structs.replace(manifest().requires, compatible=("x86-64",), machine="x86_64", engine="litert")
    assert len(fits(facts, msgspec.structs.replace(manifest(), requires=other))) == 3


def test_a_board_that_breaks_off_is_asked_again(path: Path, manifest: Any, meant: Any, tmp_path: Path) -> None:
    script = tmp_path / "flaky.sh"
    script.write_text(f'[ -e {tmp_path}/once ] || {{ touch {tmp_path}/once; head -c 12; exit 1; }}\nexec "$1"\n')
    engine = C99Engine(path, manifest(), gateway(f"sh {script} {{image}}"))
    try:
        np.testing.assert_allclose(engine.infer({"x": X})["logits"], meant(0.2, X), atol=0.21)
    finally:
        engine.close()


def test_a_board_that_claims_a_long_frame_is_not_waited_for(
    path: Path, manifest: Any, meant: Any, tmp_path: Path
) -> None:
    """One that claims frames longer than its answers, again and again, would keep the gateway busy with checksums."""
    script = tmp_path / "long.sh"
    script.write_text('printf "EW\\202\\001\\000\\000\\020\\000"\nexec "$1"\n')
    engine = C99Engine(path, manifest(), gateway(f"sh {script} {{image}}", timeout_s=2.0, attempts=1))
    try:
        np.testing.assert_allclose(engine.infer({"x": X})["logits"], meant(0.2, X), atol=0.21)
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("sh -c 'exit 1' {image}", "ended|broke"),
        ("sh -c 'exec sleep 60' {image}", "does not answer"),
        ("/none {image}", "cannot be"),
    ],
)
def test_a_board_that_stays_silent_is_an_error_after_so_many_tries(
    command: str, said: str, path: Path, manifest: Any
) -> None:
    limit_s = 0.2 if "sleep" in command else 5.0
    engine = C99Engine(path, manifest(), gateway(command, timeout_s=limit_s, attempts=2))
    try:
        with pytest.raises(BoardLinkError, match=rf"(?s)({said}).*\(2 tries\)") as caught:
            engine.infer({"x": X})
        assert caught.value.code == "board-link"
    finally:
        engine.close()


def test_damaged_and_foreign_files_are_refused(path: Path, manifest: Any, tmp_path: Path) -> None:
    with pytest.raises(BoardFirmwareError, match="mps3-an547"):
        C99Engine(path, manifest(), msgspec.structs.replace(gateway(), board="mps3-an547"))
    broken = tmp_path / "broken.c99"
    broken.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelFileError, match="cannot be read"):
        C99Engine(broken, manifest(), gateway())
    wide = msgspec.structs.replace(manifest(), inputs=(msgspec.structs.replace(manifest().inputs[0], shape=(-1, 5)),))
    with pytest.raises(ModelFileError, match=r"INT8 \[1, 4\]"):
        C99Engine(path, wide, gateway())


def test_settings_name_one_way_to_the_board(tmp_path: Path) -> None:
    values = {"EDGEWISE_AGENT_GATEWAY__BOARD": BOARD, "EDGEWISE_AGENT_GATEWAY__DEVICE": "/dev/ttyACM0"}
    assert load_config(tmp_path, values, {}).gateway.device == "/dev/ttyACM0"
    with pytest.raises(ConfigError, match="either device or command"):
        load_config(tmp_path, values | {"EDGEWISE_AGENT_GATEWAY__COMMAND": "x"}, {})
    with pytest.raises(ConfigError, match="either device or command"):
        load_config(tmp_path, {"EDGEWISE_AGENT_GATEWAY__BOARD": BOARD}, {})


class SerialBoard:
    """A serial device with a board behind it: whatever program lies in `slot` runs; `flash` puts one there."""

    def __init__(self, folder: Path) -> None:
        self.slot = folder / "slot"
        self._outer, inner = pty.openpty()
        tty.setraw(inner)
        self.device = os.ttyname(inner)
        self._inner = inner
        script = folder / "flash.sh"
        script.write_text(f'cp "$1" {self.slot}.new && mv {self.slot}.new {self.slot} && echo x >> {folder}/flashed\n')
        self.flash = f"sh {script} {{image}}"
        self._flashed, self._stop = folder / "flashed", threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def times_flashed(self) -> int:
        return len(self._flashed.read_text().splitlines()) if self._flashed.exists() else 0

    def _run(self) -> None:
        program: subprocess.Popen[bytes] | None = None
        runs = None
        while not self._stop.is_set():
            there = self.slot.stat().st_ino if self.slot.exists() else None
            if there != runs:
                if program is not None:
                    program.kill()
                    program.communicate()
                program = subprocess.Popen([self.slot], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
                runs = there
            outputs = [program.stdout] if program is not None else []
            for ready in select.select([self._outer, *outputs], [], [], 0.02)[0]:
                data = os.read(ready if isinstance(ready, int) else ready.fileno(), 4096)
                if isinstance(ready, int):
                    if program is not None and self.slot.stat().st_ino == runs:
                        os.write(program.stdin.fileno(), data)
                else:
                    os.write(self._outer, data)
        if program is not None:
            program.kill()
            program.communicate()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        os.close(self._outer)
        os.close(self._inner)


@pytest.fixture
def board(tmp_path: Path) -> Iterator[SerialBoard]:
    found = SerialBoard(tmp_path)
    yield found
    found.close()


def test_a_serial_board_is_given_each_bundles_firmware(
    board: SerialBoard, path: Path, model_file: Any, manifest: Any, meant: Any, tmp_path: Path
) -> None:
    """An empty board, then another version beside the first: each request is answered by its own firmware."""
    newer = tmp_path / "newer.c99"
    newer.write_bytes(model_file(0.5))
    reach = gateway(device=board.device, flash=board.flash, timeout_s=2.0, attempts=2, busy_s=0.3)
    first = C99Engine(path, manifest(version=1), reach)
    second = C99Engine(newer, manifest(version=2), reach)
    try:
        for engine, scale in ((first, 0.2), (first, 0.2), (second, 0.5), (first, 0.2)):
            np.testing.assert_allclose(engine.infer({"x": X})["logits"], meant(scale, X), atol=scale * 1.05)
        assert board.times_flashed == 3
        with pytest.raises(BoardBusyError, match="'tiny'"):
            C99Engine(path, manifest(model="other"), reach)
        held = C99Engine(newer, manifest(version=2), reach, hold=True)
        held.infer({"x": X})
        with pytest.raises(BoardBusyError, match="not free"):
            first.infer({"x": X})
        held.close()
        first.infer({"x": X})
    finally:
        first.close()
        second.close()
    C99Engine(path, manifest(model="other"), reach).close()


def test_without_a_command_to_flash_the_board_must_have_the_firmware(
    board: SerialBoard, path: Path, model_file: Any, manifest: Any, meant: Any, tmp_path: Path
) -> None:
    engine = C99Engine(path, manifest(), gateway(device=board.device, timeout_s=1.0))
    writer = C99Engine(path, manifest(), gateway(device=board.device, flash=board.flash, timeout_s=1.0, attempts=1))
    newer = tmp_path / "newer.c99"
    newer.write_bytes(model_file(0.5))
    other = C99Engine(newer, manifest(), gateway(device=board.device, timeout_s=1.0))
    try:
        writer.infer({"x": X})
        np.testing.assert_allclose(engine.infer({"x": X})["logits"], meant(0.2, X), atol=0.21)
        with pytest.raises(BoardFirmwareError, match=r"gateway\.flash"):
            other.infer({"x": X})
    finally:
        for one in (engine, writer, other):
            one.close()


def bundle(simulator: Any, manifest: Any, data: bytes, scale: float, version: int, meant: Any) -> tuple[Any, bytes]:
    x = np.random.default_rng(7).normal(0, 5, (16, 4)).astype(np.float32)
    files = {
        "model.c99": data,
        "golden.safetensors": save({"input.x": x, "output.logits": meant(scale, x).astype("f4")}),
    }
    entries = tuple(file_entry(name, content) for name, content in files.items())
    golden = msgspec.structs.replace(manifest.golden, atol=scale * 1.05)
    manifest = msgspec.structs.replace(manifest, files=entries, version=version, golden=golden)
    out = io.BytesIO()
    write_bundle(out, manifest, files)
    place = simulator.bundle_path(simulator.CHANNEL, "tiny", BOARD, version)
    return simulator.sign_as(manifest, out.getvalue(), place), out.getvalue()


def test_a_gateway_installs_tests_serves_and_keeps_what_works(
    voice: Any, simulator: Any, mosquitto: Any, enrol_here: Any, start_agent: Any, tmp_path: Path,
    model_file: Any, manifest: Any, meant: Any,
) -> None:  # fmt: skip
    """Over a real broker: version 1 serves from the board; version 2 promises other answers, and is refused there."""
    good = bundle(simulator, manifest(), model_file(0.2), 0.2, 1, meant)
    wrong = bundle(simulator, manifest(), model_file(0.5), 0.2, 2, meant)
    for file, data in (good, wrong):
        voice.release(file, data)
    state = enrol_here(tmp_path / "state", mosquitto.port, voice.repository.root_bytes, board="")
    with start_agent(state, gateway=gateway()) as device:
        voice.assign((good[0],), 1)
        report = voice.wait_model("committed", 1)
        version, logits = device.infer(X)
        assert version == 1
        np.testing.assert_allclose(logits, meant(0.2, X), atol=0.21)
        assert report.self_test["max_abs_error"] <= 0.21
        birth = voice.wait("status", lambda s: s.online, "a birth")
        assert (birth.facts.compatible, birth.facts.machine, birth.facts.engines) == (
            (BOARD,),
            "armv7e-m",
            {"c99": "1"},
        )
        voice.assign((wrong[0],), 2)
        voice.wait("reported", lambda r: any(m.error_code == "self-test-golden" for m in r.models), "a refusal")
        assert device.infer(X)[0] == 1
