"""Danger: a package that lacks a part and says so on the board, far from any network; or that is another each time.

The wheels are tiny ones by hand, taken from a folder: nothing is downloaded here. What a real package does on a real
processor is shown in `tests/end_to_end/test_agent_packages.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgewise_cli.agent_package import build, deb, debian, tree, wheelhouse
from edgewise_cli.agent_package.needs import needs, platforms
from edgewise_cli.errors import CliError, MissingError, NotInstalledError, RefusedError, UsageError
from edgewise_profiles import catalogue
from packaging.specifiers import SpecifierSet

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
PI = ("cp311-cp311-manylinux_2_27_aarch64",)
AGENT = {
    "edgewise_agent/__init__.py": "",
    "edgewise_agent/__main__.py": "def main():\n    print('the agent')\n",
    "edgewise_agent/app.py": "",
    "edgewise_agent/engines/__init__.py": "def installed():\n    return {'onnxruntime': '1.32.0'}\n",
}
WHEELS: tuple[tuple[str, str, tuple[str, ...], dict[str, str]], ...] = (
    (
        "edgewise-agent",
        "0.2.0",
        (
            "edgewise-protocol==0.2.0",
            "numpy>=1.24",
            'colorama; sys_platform == "win32"',
            'onnxruntime>=1.22; extra == "onnxruntime"',
            'ai-edge-litert>=2.1; extra == "litert"',
            'uvloop; extra == "fast"',
            'datasketches; extra == "kll"',
        ),
        AGENT,
    ),
    ("edgewise-protocol", "0.2.0", ("numpy>=1.24,<3",), {}),
    ("numpy", "2.3.1", (), {}),
    ("onnxruntime", "1.23.0", ("numpy",), {}),
    ("ai-edge-litert", "2.1.0", ("numpy", 'tomli; python_version < "3.11"'), {}),
    ("uvloop", "0.21", (), {}),
    ("datasketches", "5.2", (), {}),
)


def make_wheel(
    folder: Path, name: str, version: str, requires: tuple[str, ...], files: dict[str, str], tag: str
) -> Path:
    under = name.replace("-", "_")
    info = f"{under}-{version}.dist-info"
    path = folder / f"{under}-{version}-{tag}.whl"
    contents = {
        **(files or {f"{under}/__init__.py": ""}),
        f"{info}/METADATA": f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n"
        + "".join(f"Requires-Dist: {text}\n" for text in requires),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    if files:
        contents[f"{info}/entry_points.txt"] = "[console_scripts]\nedgewise-agent = edgewise_agent.__main__:main\n"
    with zipfile.ZipFile(path, "w") as archive:
        for place, text in contents.items():
            archive.writestr(place, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{place},,\n" for place in [*contents, f"{info}/RECORD"]))
    return path


def wheelhouse_of(folder: Path, platform: str) -> Path:
    """All that an agent needs for one platform, and pip itself: the one that this Python brings."""
    folder.mkdir(parents=True)
    for name, version, requires, files in WHEELS:
        pure = name.startswith("edgewise")
        tag = "py3-none-any" if pure else f"cp{HERE.replace('.', '')}-cp{HERE.replace('.', '')}-{platform}"
        make_wheel(folder, name, version, requires, files, tag)
    import ensurepip

    shutil.copy(next((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl")), folder)
    return folder


@pytest.fixture(scope="module")
def pi_wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheelhouse_of(tmp_path_factory.mktemp("pi") / "wheels", "manylinux_2_27_aarch64")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, pi_wheels: Path) -> tuple[Any, Path]:
    """Both packages of a Raspberry Pi 4, and where they are."""
    out = tmp_path_factory.mktemp("out")
    wanted = needs(catalogue.load("raspberry-pi-4-64"), HERE)
    return build.build(wanted, out, "both", pi_wheels, lambda _text, _part: None), out


def test_an_archive_holds_what_the_board_needs_and_nothing_else(made: tuple[Any, Path]) -> None:
    built, _ = made
    with tarfile.open(built.packages[0].path) as archive:
        members = archive.getmembers()
        contents = {m.name.partition("/")[2]: archive.extractfile(m).read() for m in members if m.isfile()}  # type: ignore[union-attr]
    assert {m.uid for m in members} == {0} and {m.mtime for m in members} == {1577836800}
    assert [m.name for m in members if m.isfile()] == sorted(m.name for m in members if m.isfile())
    assert {name for name in contents if not name.startswith("wheels/")} == {
        *("README.txt", "SHA256SUMS", "edgewise-agent.service", "install.sh", "manifest.json", "requirements.txt")
    }
    wheels = [name.removeprefix("wheels/") for name in contents if name.startswith("wheels/")]
    assert sorted(name.partition("-")[0] for name in wheels) == sorted(
        [*(name.replace("-", "_") for name, *_ in WHEELS), "pip"]
    )
    sums = dict(reversed(line.split("  ")) for line in contents["SHA256SUMS"].decode().splitlines())
    assert sums == {n: hashlib.sha256(data).hexdigest() for n, data in contents.items() if n != "SHA256SUMS"}
    manifest = json.loads(contents["manifest.json"])
    assert (manifest["profile"], manifest["agent_version"], manifest["python"]) == ("raspberry-pi-4-64", "0.2.0", HERE)
    assert manifest["engines"] == ["litert", "onnxruntime"]
    hashes = {line.rpartition(":")[2] for line in contents["requirements.txt"].decode().splitlines()}
    assert hashes == {w["sha256"] for w in manifest["wheels"] if w["name"] != "pip"}
    assert "@" not in contents["install.sh"].decode().replace('"$@"', "")


def test_equal_wheels_give_the_same_bytes(made: tuple[Any, Path], pi_wheels: Path, tmp_path: Path) -> None:
    built, _ = made
    wanted = needs(catalogue.load("raspberry-pi-4-64"), HERE)
    again = build.build(wanted, tmp_path, "both", pi_wheels, lambda _text, _part: None)
    assert [p.sha256 for p in again.packages] == [p.sha256 for p in built.packages]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(p.path.name for p in built.packages)


def test_a_debian_package_says_whose_it_is(made: tuple[Any, Path], tmp_path: Path) -> None:
    package = made[0].packages[1].path
    said = subprocess.run(["dpkg-deb", "--info", str(package)], capture_output=True, text=True, check=True).stdout
    fields = dict(line.strip().split(": ", 1) for line in said.splitlines() if ": " in line)
    assert (fields["Package"], fields["Version"], fields["Architecture"]) == ("edgewise-agent", "0.2.0", "arm64")
    minor = int(HERE.split(".")[1])
    assert fields["Depends"] == f"python3 (>= {HERE}), python3 (<< 3.{minor + 1}), libc6 (>= 2.28), libstdc++6, passwd"
    subprocess.run(["dpkg-deb", "--raw-extract", str(package), str(tmp_path)], check=True)
    assert (tmp_path / "DEBIAN/conffiles").read_text() == "/etc/default/edgewise-agent\n"
    for script in ("postinst", "prerm", "postrm"):
        subprocess.run(["sh", "-n", str(tmp_path / "DEBIAN" / script)], check=True)
        assert (tmp_path / "DEBIAN" / script).stat().st_mode & 0o777 == 0o755
    site = tmp_path / deb.SITE
    assert (site / "edgewise_agent/app.py").exists() and (site / "numpy-2.3.1.dist-info/METADATA").exists()
    assert not list(site.glob("pip*"))
    unit = (tmp_path / "lib/systemd/system/edgewise-agent.service").read_text()
    assert "ExecStart=/usr/bin/edgewise-agent-launcher run --state /var/lib/edgewise-agent\n" in unit
    command = tmp_path / "usr/bin/edgewise-agent"
    assert command.stat().st_mode & 0o111 and "-m edgewise_agent " in command.read_text()


@pytest.mark.parametrize(
    ("version", "debian"), [("0.2.0", "0.2.0"), ("1.0rc1", "1.0~rc1"), ("1.0a2", "1.0~a2"), ("1.0.dev3", "1.0~dev3")]
)
def test_a_pre_release_sorts_before_its_release(version: str, debian: str) -> None:
    assert deb.debian_version(version) == debian


def test_32_bit_arm_takes_from_debian_what_has_no_wheels(tmp_path: Path) -> None:
    wanted = needs(catalogue.load("raspberry-pi-32"))
    assert "linux_armv7l" in wanted.platforms and "manylinux_2_17_armv7l" in wanted.platforms
    assert wanted.requirements == ("edgewise-agent[tflite-runtime]", "pip>=23", "tflite-runtime>=2.14,<3")
    control = deb.control(wanted, "0.2.0", 5000)
    assert "Architecture: armhf\n" in control
    assert "python3-numpy (>= 1:1.24.2), python3-cffi-backend (>= 1.15.1)" in control
    wheel = wheelhouse.Wheel(tmp_path, "edgewise-agent", "1", ("numpy>=2",))
    stand_ins = {s.distribution: s for s in wanted.release.stand_ins}  # type: ignore[union-attr]
    with pytest.raises(RefusedError, match=r"requires numpy>=2; on this board numpy is Debian's 1\.24\.2"):
        wheelhouse.demand(wanted.requirements, {"edgewise-agent": wheel}, wanted.environment, stand_ins)


def test_32_bit_arm_brings_debians_packages_along(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name, version, requires, files in WHEELS[:2]:
        make_wheel(
            wheels, name, version, (*requires, 'tflite-runtime; extra == "tflite-runtime"'), files, "py3-none-any"
        )
    make_wheel(wheels, "tflite-runtime", "2.14.0", ("numpy>=1.23.2",), {}, "cp311-cp311-manylinux_2_34_armv7l")
    make_wheel(wheels, "pip", "25", (), {}, "py3-none-any")
    wanted = needs(catalogue.load("raspberry-pi-32"))

    def make() -> build.Made:
        return build.build(wanted, tmp_path / "out", "tar", wheels, lambda _text, _part: None)

    with pytest.raises(MissingError, match="no Debian package libblas3 for armhf") as caught:
        make()
    assert caught.value.code == "wheel-missing" and not list((tmp_path / "out").iterdir())
    for name in wanted.release.packages:  # type: ignore[union-attr]
        (wheels / f"{name}_1.0_armhf.deb").write_bytes(name.encode())
    with tarfile.open(make().packages[0].path) as archive:
        names = {name.rpartition("/")[2] for name in archive.getnames()}
        script = archive.extractfile("edgewise-agent-0.2.0-raspberry-pi-32-cp311/install.sh")
        assert script is not None
        text = script.read().decode()
    assert {"python3-numpy.deb", "liblapack3.deb"} <= names and not any(name.startswith("numpy-") for name in names)
    assert "MODULES='numpy _cffi_backend'" in text and "-m venv --without-pip --system-site-packages" in text


def test_markers_are_the_boards_and_constraints_add_up(tmp_path: Path) -> None:
    def wheel(name: str, version: str, *requires: str) -> wheelhouse.Wheel:
        return wheelhouse.Wheel(tmp_path, name, version, requires)

    wheels = {
        "a": wheel("a", "1", "b>=2", 'c; platform_machine == "aarch64"', 'd; platform_machine == "x86_64"'),
        "b": wheel("b", "2", 'a[more]; python_version >= "3.11"', "c<5"),
        "c": wheel("c", "4"),
    }
    wheels["a"] = wheel("a", "1", *wheels["a"].requires, 'e; extra == "more"')
    wanted = wheelhouse.demand(["a"], wheels, needs(catalogue.load("raspberry-pi-5")).environment, {})
    assert wanted == {
        "a": SpecifierSet(), "b": SpecifierSet(">=2"), "c": SpecifierSet("<5"), "e": SpecifierSet(),
    }  # fmt: skip


def test_versions_that_exclude_each_other_end(tmp_path: Path) -> None:
    wanted = needs(catalogue.load("raspberry-pi-5"))
    answers = {
        name: make_wheel(tmp_path, name, "1", requires, {}, "py3-none-any")
        for name, requires in {"edgewise-agent": ("numpy<1",), "pip": (), "numpy": (), "ai-edge-litert": (),
                               "onnxruntime": ()}.items()
    }  # fmt: skip

    def fetch(requirements: Any) -> list[Path]:
        return [path for name, path in answers.items() if any(text.startswith(name) for text in requirements)]

    with pytest.raises(RefusedError, match="do not come to rest"):
        wheelhouse.collect(wanted, fetch, lambda _text: None)


@pytest.mark.parametrize(
    ("tags", "machine", "holds", "lacks"),
    [
        (["manylinux_2_28_aarch64"], "aarch64", {"manylinux_2_17_aarch64", "manylinux2014_aarch64"}, {"any"}),
        (["manylinux_2_17_x86_64"], "x86_64", {"manylinux_2_5_x86_64", "manylinux1_x86_64"}, {"manylinux_2_18_x86_64"}),
    ],
)
def test_an_older_c_library_does_too(tags: list[str], machine: str, holds: set[str], lacks: set[str]) -> None:
    found = platforms(tags, machine)
    assert found[0] == tags[0] and holds <= set(found) and not lacks & set(found)


def test_a_missing_wheel_is_named_with_what_to_do(
    edgewise: Callable[..., Any], pi_wheels: Path, tmp_path: Path
) -> None:
    wheels = shutil.copytree(pi_wheels, tmp_path / "wheels")
    next(wheels.glob("numpy-*")).unlink()
    make_wheel(wheels, "numpy", "2.3.1", (), {}, "cp311-cp311-manylinux_2_28_x86_64")
    done = edgewise(
        *("agent-package", "-p", "raspberry-pi-5", "--python", HERE, "--wheels", wheels),
        *("--out", tmp_path / "out", "--json"),
    )
    error = done.document["error"]
    assert (done.status, error["code"]) == (6, "wheel-missing")
    assert "no wheel of numpy" in error["message"] and f"Python {HERE} on raspberry-pi-5" in error["message"]
    assert "pip download numpy" in error["message"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("profile", "python", "engines", "kind", "says"),
    [
        ("raspberry-pi-32", "3.13", (), UsageError, "bookworm, whose Python is 3.11"),
        ("raspberry-pi-4-64", None, ("tflite-runtime",), UsageError, "it has litert, onnxruntime"),
    ],
)
def test_what_is_not_for_a_board_is_refused(
    profile: str, python: str | None, engines: tuple[str, ...], kind: type[CliError], says: str
) -> None:
    with pytest.raises(kind, match=says):
        needs(catalogue.load(profile), python, engines)


def test_boards_without_wheels_get_no_package() -> None:
    import msgspec

    pi = catalogue.load("raspberry-pi-5")
    with pytest.raises(RefusedError, match="no wheels") as caught:
        needs(msgspec.structs.replace(pi, machine="riscv64"))
    assert caught.value.code == "no-agent"
    mcu = msgspec.structs.replace(pi, machine="armv7e-m", os=msgspec.structs.replace(pi.os, bits=32))
    with pytest.raises(RefusedError, match="a gateway"):
        needs(mcu)


def test_wrong_options_are_refused(edgewise: Callable[..., Any], tmp_path: Path) -> None:
    common = ("agent-package", "-p", "raspberry-pi-5", "--out", tmp_path / "out")
    assert edgewise(*common, "--format", "rpm").status == 2
    assert edgewise(*common, "--python", "python3").status == 2
    assert edgewise(*common, "--wheels", tmp_path / "none").status == 6
    assert edgewise("agent-package", "-p", "raspberry-pi-9", "--out", tmp_path / "out").status == 6
    assert not (tmp_path / "out").exists()


def test_nothing_is_left_where_the_disk_refuses(
    pi_wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgewise_cli.agent_package.archive.write", full)
    with pytest.raises(CliError, match="No space left") as caught:
        build.build(
            needs(catalogue.load("raspberry-pi-4-64"), HERE), tmp_path, "tar", pi_wheels, lambda _text, _part: None
        )
    assert caught.value.code == "files" and not list(tmp_path.iterdir())


def test_a_wheel_cannot_reach_outside_of_its_folder(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "evil", "1", (), {}, "py3-none-any")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../outside.py", "")
    wheel = wheelhouse.Wheel(path, "evil", "1", ())
    with pytest.raises(RefusedError, match="outside"):
        tree.unpack([wheel], tmp_path / "site")
    good = make_wheel(tmp_path, "good", "1", (), {}, "py3-none-any")
    twice = [wheelhouse.Wheel(good, "good", "1", ())] * 2
    with pytest.raises(RefusedError, match="another wheel holds too"):
        tree.unpack(twice, tmp_path / "other")


# -- the installer, on this machine ----------------------------------------------------------------


class Installer:
    """An unpacked archive for this machine."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self.prefix, self.state = folder, home / "opt", home / "state"

    def run(self, *arguments: str) -> tuple[int, str]:
        base = Path(sys._base_executable).parent  # type: ignore[attr-defined]
        done = subprocess.run(
            [
                *("sh", str(self.folder / "install.sh"), "--prefix", str(self.prefix), "--state", str(self.state)),
                *("--user", subprocess.run(["id", "-un"], capture_output=True, text=True).stdout.strip()),
                *("--no-systemd", "--no-compile", *arguments),
            ],
            env={"PATH": f"{base}:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout


@pytest.fixture(scope="module")
def x86_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("x86")
    wheels = wheelhouse_of(folder / "wheels", "manylinux_2_17_x86_64")
    wanted = needs(catalogue.load("x86-64"), HERE, ["onnxruntime"])
    return build.build(wanted, folder / "out", "tar", wheels, lambda _text, _part: None).packages[0].path


@pytest.fixture
def installer(x86_archive: Path, tmp_path: Path) -> Installer:
    if os.uname().machine != "x86_64":
        pytest.skip("the package is for x86-64")
    with tarfile.open(x86_archive) as archive:
        archive.extractall(tmp_path, filter="data")
    return Installer(tmp_path / x86_archive.name.removesuffix(".tar.gz"), tmp_path)


def test_it_installs_once_and_goes_without_a_trace_but_the_state(installer: Installer) -> None:
    status, said = installer.run()
    assert status == 0, said
    assert "engines: onnxruntime 1.32.0" in said
    agent = installer.prefix / "current/bin/edgewise-agent"
    assert subprocess.run([agent], capture_output=True, text=True, check=True).stdout == "the agent\n"
    assert installer.state.stat().st_mode & 0o777 == 0o700
    (releases,) = ({path.name for path in (installer.prefix / "releases").iterdir()},)
    status, said = installer.run()
    assert status == 0 and "already" in said
    assert {path.name for path in (installer.prefix / "releases").iterdir()} == releases
    # A newer package takes the place of the one before.
    (installer.folder / "README.txt").write_text("newer\n")
    digest = hashlib.sha256(b"newer\n").hexdigest()
    sums = installer.folder / "SHA256SUMS"
    lines = [
        line if not line.endswith("README.txt") else f"{digest}  README.txt" for line in sums.read_text().split("\n")
    ]
    sums.write_text("\n".join(lines))
    status, said = installer.run()
    assert status == 0 and "removing the release before" in said, said
    assert len(list((installer.prefix / "releases").iterdir())) == 1 and agent.exists()
    status, said = installer.run("--uninstall")
    assert status == 0 and not installer.prefix.exists() and installer.state.is_dir(), said
    assert installer.run("--uninstall", "--purge")[0] == 0 and not installer.state.exists()


def test_a_damaged_package_is_not_installed(installer: Installer) -> None:
    wheel = next((installer.folder / "wheels").glob("numpy-*"))
    wheel.write_bytes(wheel.read_bytes()[:-1])
    status, said = installer.run()
    assert status == 4 and "the package is damaged" in said and "numpy" in said
    assert not installer.prefix.exists() and not installer.state.exists()


@pytest.mark.parametrize(
    ("find", "put", "says"),
    [("MACHINE='x86_64'", "MACHINE='aarch64'", "for aarch64"), (f"PYTHON='{HERE}'", "PYTHON='3.99'", "--python")],
)
def test_another_board_is_refused(installer: Installer, find: str, put: str, says: str) -> None:
    script = installer.folder / "install.sh"
    text = script.read_text().replace(find, put).replace("sha256sum --check", ": sha256sum --check")
    script.write_text(text)
    status, said = installer.run()
    assert status == 3 and says in said, said
    assert not installer.prefix.exists()


@pytest.mark.parametrize(
    "arguments", [("--prefix", "relative"), ("--prefix", "/"), ("--state", "/a b"), ("--user", "-x"), ("--what",)]
)
def test_wrong_options_of_the_installer_are_refused(installer: Installer, arguments: tuple[str, ...]) -> None:
    status, said = installer.run(*arguments)
    assert status == 2 and not installer.prefix.exists(), said


def test_an_install_that_fails_leaves_what_was_there(installer: Installer) -> None:
    assert installer.run()[0] == 0
    before = os.readlink(installer.prefix / "current")
    # A wheel that its hash in the requirements does not vouch for: pip refuses it half way.
    wheel = next((installer.folder / "wheels").glob("uvloop-*"))
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    sums = installer.folder / "SHA256SUMS"
    lines = [
        f"{hashlib.sha256(wheel.read_bytes()).hexdigest()}  wheels/{wheel.name}" if wheel.name in line else line
        for line in sums.read_text().splitlines()
    ]
    sums.write_text("\n".join(lines) + "\n")
    status, said = installer.run()
    assert status != 0, said
    assert os.readlink(installer.prefix / "current") == before
    assert len(list((installer.prefix / "releases").iterdir())) == 1


def test_debian_comes_from_apts_own_sources_or_from_where_one_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(debian.MIRROR, raising=False)
    said = "http://one.example/debian bookworm main\nhttp://two.example/security bookworm-security main\n"
    monkeypatch.setattr(debian, "_run", lambda *_: said)
    assert debian.mirror_of("bookworm") == "http://one.example/debian"
    with pytest.raises(NotInstalledError, match="EDGEWISE_DEBIAN_MIRROR"):
        debian.mirror_of("trixie")
    monkeypatch.setenv("EDGEWISE_DEBIAN_MIRROR", "http://three.example/debian")
    assert debian.mirror_of("trixie") == "http://three.example/debian"
