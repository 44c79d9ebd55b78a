"""Guards against messages that are lost because they were believed to be stored, or that flood an absent server."""

from __future__ import annotations

from typing import Any

import pytest
from edgewise_agent.config import load_config
from edgewise_agent.errors import ConfigError
from edgewise_agent.identity.facts import cpu_features, device_tree, memory_mib, os_name
from edgewise_agent.install.state import InstallState, ModelState
from edgewise_agent.reporting.report import build_report
from edgewise_agent.reporting.window import Window
from edgewise_protocol.bounds import MAX_CONTROL_BYTES
from edgewise_protocol.messages import Reported, decode, encode
from hypothesis import given
from hypothesis import strategies as st


@given(
    st.lists(
        st.one_of(st.just("connect"), st.just("send"), st.integers(0, 60), st.just("overdue")),
        max_size=80,
    )
)
def test_everything_is_sent_and_nothing_is_forgotten_unsent(order: list[Any]) -> None:
    """The outbox holds 1..40; an acknowledgement of what was never sent deletes nothing."""
    window, now, sent = Window(limit=8, resend_s=10.0), 0.0, 0
    for action in order:
        now += 1.0
        if action == "connect":
            window = window.connected()
        elif action == "send":
            if window.room() and window.sent < 40:
                window = window.published(window.sent + 1, now)
                sent = max(sent, window.sent)
        elif action == "overdue":
            now += 10.0
            if window.resend_in(now) == 0.0:
                window = window.connected()
        else:
            window = window.stored(action, now)
        assert window.acknowledged <= sent
        assert window.acknowledged <= window.sent <= window.acknowledged + 8
        assert (window.resend_in(now) is None) == (window.sent == window.acknowledged)


def test_a_report_of_many_failed_models_fits_a_control_message() -> None:
    models = {
        f"model-{n}": ModelState(model=f"model-{n}", state="failed", error_code="x" * 64, error="é" * 1500)
        for n in range(64)
    }
    report = build_report(InstallState(models=models), {}, 1.0, True)
    assert len(encode(report)) <= MAX_CONTROL_BYTES
    assert decode(Reported, encode(report)).models[0].error_code == "x" * 64


def test_an_assignment_is_told_of_when_all_models_have_heard_of_it() -> None:
    """Between two models, after a full disk or a power cut: the older failure of one is none of the new rollout's."""
    behind, ahead = (ModelState(model=name, assignment_version=n) for name, n in (("behind", 1), ("ahead", 2)))
    for models, told in (((behind, ahead), 1), ((ahead,), 2), ((), 2)):
        state = InstallState(assignment_version=2, models={model.model: model for model in models})
        assert build_report(state, {}, 1.0, True).assignment_version == told


def test_facts_are_read_from_proc(tmp_path: Any) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/compatible").write_bytes(b"raspberrypi,4-model-b\0brcm,bcm2711\0")
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd crc32\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal:        3884360 kB\n")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text('PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n')
    assert device_tree(tmp_path) == ("raspberrypi,4-model-b", "brcm,bcm2711")
    assert cpu_features(tmp_path) == ("fp", "asimd", "crc32")
    assert memory_mib(tmp_path) == 3793
    assert os_name(tmp_path).startswith("Debian")


def test_settings_come_from_file_then_environment_then_flags(tmp_path: Any) -> None:
    (tmp_path / "agent.toml").write_text("http_port = 1000\nresend_s = 5\n[probation]\nseconds = 9\n")
    config = load_config(
        tmp_path,
        {"EDGEWISE_AGENT_HTTP_PORT": "2000", "EDGEWISE_AGENT_PROBATION__MIN_INFERENCES": "7", "HOME": "/"},
        {"http_port": 3000},
    )
    assert (config.http_port, config.resend_s, config.probation.seconds) == (3000, 5, 9)
    assert config.probation.min_inferences == 7
    assert load_config(tmp_path, {"EDGEWISE_AGENT_HTTP_PORT": "2000"}, {}).http_port == 2000


@pytest.mark.parametrize("text", ["resend_s = 0", "unknown = 1", "probation = 1", "[probation]\nx = 1", "http_port"])
def test_bad_settings_are_named(tmp_path: Any, text: str) -> None:
    (tmp_path / "agent.toml").write_text(text)
    with pytest.raises(ConfigError):
        load_config(tmp_path, {}, {})
