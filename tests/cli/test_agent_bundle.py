"""Danger: an agent bundle that lacks half of the agent, or that is another one each time it is made."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgewise_protocol.bundle import BundleReader


def make_wheel(
    folder: Path, name: str, version: str = "0.2.0", tags: tuple[str, ...] = ("py3-none-any",), python: str = ">=3.11"
) -> Path:
    folder.mkdir(exist_ok=True)
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    path = folder / f"{name.replace('-', '_')}-{version}-{tags[0]}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name.replace('-', '_')}/__init__.py", "")
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\nRequires-Python: {python}\n\nA text.\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\n" + "".join(f"Tag: {tag}\n" for tag in tags))
    return path


@pytest.fixture
def wheels(tmp_path: Path) -> list[Path]:
    return [make_wheel(tmp_path / "wheels", name) for name in ("edgewise-agent", "edgewise-protocol")]


def test_a_bundle_says_what_is_in_it_and_is_the_same_each_time(
    edgewise: Callable[..., Any], wheels: list[Path], tmp_path: Path
) -> None:
    more = make_wheel(tmp_path / "wheels", "numpy", "2.3.1", ("cp311-cp311-manylinux_2_28_x86_64",))
    one, two = tmp_path / "one.ewb", tmp_path / "two.ewb"
    made = edgewise("agent-bundle", *wheels, more, "--out", one, "--json")
    assert made.status == 0, made.err
    assert edgewise("agent-bundle", more, *reversed(wheels), "--out", two).status == 0
    assert one.read_bytes() == two.read_bytes()
    document = made.document
    assert (document["model"], document["version"], document["agent_version"]) == ("edgewise-agent", 2000, "0.2.0")
    with one.open("rb") as stream:
        manifest = BundleReader(stream).verify()
    assert manifest.agent is not None
    assert [w.distribution for w in manifest.agent.wheels] == ["edgewise-agent", "edgewise-protocol", "numpy"]
    assert (manifest.agent.requires_python, manifest.agent.launcher_min) == (">=3.11", 1)
    assert manifest.agent.wheels[2].tags == ("cp311-cp311-manylinux_2_28_x86_64",)


def test_a_bundle_may_be_for_one_board(edgewise: Callable[..., Any], wheels: list[Path], tmp_path: Path) -> None:
    made = edgewise("agent-bundle", *wheels, "-p", "raspberry-pi-5", "--out", tmp_path / "a.ewb", "--json")
    assert made.document["profile"] == "raspberry-pi-5"
    with (tmp_path / "a.ewb").open("rb") as stream:
        manifest = BundleReader(stream).verify()
    assert "raspberry-pi-5" in manifest.requires.compatible
    assert manifest.requires.machine == "aarch64"


def test_it_is_signed_by_the_offline_keys_and_published(
    edgewise: Callable[..., Any], wheels: list[Path], keys: Path, fleet: Any, tmp_path: Path
) -> None:
    assert edgewise("agent-bundle", *wheels, "--out", tmp_path / "a.ewb").status == 0
    signed = edgewise("sign", tmp_path / "a.ewb", "--channel", "lab", "--keys", keys, "--out", tmp_path / "r", "--json")
    assert signed.status == 0, signed.err
    assert list(signed.document["roles"]) == ["targets"]
    assert [file["path"] for file in signed.document["files"]] == ["lab/edgewise-agent/any/2000.ewb"]
    assert edgewise("publish", tmp_path / "r", "--keys", keys).status == 0
    assert signed.document["files"][0]["sha256"] in fleet.blobs


@pytest.mark.parametrize("case", ["half", "twice", "pre-release", "not-a-wheel", "exists"])
def test_what_makes_no_bundle(edgewise: Callable[..., Any], wheels: list[Path], tmp_path: Path, case: str) -> None:
    out = tmp_path / "out.ewb"
    given: list[Path] = wheels
    if case == "half":
        given = wheels[:1]
    elif case == "twice":
        given = [*wheels, make_wheel(tmp_path / "other", "edgewise-agent", "0.3.0")]
    elif case == "pre-release":
        given = [make_wheel(tmp_path / "other", name, "0.3.0rc1") for name in ("edgewise-agent", "edgewise-protocol")]
    elif case == "not-a-wheel":
        (tmp_path / "x.whl").write_bytes(b"x")
        given = [*wheels, tmp_path / "x.whl"]
    else:
        out.write_bytes(b"mine")
    refused = edgewise("agent-bundle", *given, "--out", out)
    assert refused.status != 0
    assert not out.exists() or out.read_bytes() == b"mine"
    if case == "pre-release":
        assert edgewise("agent-bundle", *given, "--out", out, "--number", 2999).status == 0
