"""Boards of another processor, emulated: a small Debian of their own, entered by chroot, run by qemu-user.

What a board's maintainers' scripts would do to an installed system is done here by hand, since nothing of it is run
while it is made: the users of base-passwd, and dpkg's record of what is installed. Its processor is the profile's:
`/proc/cpuinfo` is laid over with one that says so, and `QEMU_CPU` emulates it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from edgewise_converter.proof.tools import debian_sources
from edgewise_profiles.schema import DEBIAN_ARCHITECTURES, Profile

INSIDE = (
    *("base-passwd", "coreutils", "dash", "diffutils", "dpkg", "findutils", "grep", "gzip", "libc-bin"),
    *("libstdc++6", "passwd", "python3", "sed", "tar"),
)
"""What every Debian system has, and Python. No pip, no venv package, no NumPy."""
EMULATORS = {"aarch64": "qemu-aarch64", "armv7l": "qemu-arm"}
_ENTER = """\
root=$1; shift
mount --make-rprivate /
mount -t proc proc "$root/proc"
mount --bind "$root/cpuinfo" "$root/proc/cpuinfo"
exec "$@"
"""


def why_not(profile: Profile) -> str:
    """Why this board cannot be emulated here; empty if it can."""
    if os.geteuid() != 0:
        return "only root may enter another system's root"
    tools = ("mmdebstrap", "dpkg-deb", "unshare", "chroot")
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        return f"missing: {', '.join(missing)}: apt-get install mmdebstrap dpkg util-linux coreutils"
    emulator = Path("/proc/sys/fs/binfmt_misc") / EMULATORS[profile.machine]
    if not emulator.exists() or "enabled" not in emulator.read_text():
        return (
            f"{EMULATORS[profile.machine]} does not run foreign programs: apt-get install qemu-user-static "
            "binfmt-support, after mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc"
        )
    return ""


class Board:
    """One emulated board.

    Args:
        folder: where its root is made.
    """

    def __init__(self, profile: Profile, folder: Path) -> None:
        assert profile.emulation is not None
        self.profile = profile
        self.root = folder / "root"
        self._cpu = profile.emulation.qemu
        self._make(profile.emulation.suite)

    def command(self, words: list[str], *, network: bool, user: str = "root", env: Mapping[str, str]) -> list[str]:
        """The host's command line that runs `words` on the board; without network there is not even loopback."""
        inside = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C",
            "QEMU_CPU": self._cpu,
            **env,
        }
        return [
            *("unshare", "--mount", *(() if network else ("--net",)), "sh", "-euc", _ENTER, "enter", str(self.root)),
            *("env", "-i", *(f"{name}={value}" for name, value in inside.items())),
            *("chroot", f"--userspec={self._ids(user)}", str(self.root), *words),
        ]

    def run(
        self,
        *words: str,
        network: bool = False,
        user: str = "root",
        env: Mapping[str, str] | None = None,
        expect: int = 0,
        timeout_s: float = 420,
    ) -> str:
        """Run a command on the board to its end; what it said. Its exit status must be `expect`."""
        done = subprocess.run(
            self.command(list(words), network=network, user=user, env=env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == expect, f"{words} ended with status {done.returncode}: {done.stdout}"
        return done.stdout

    def _ids(self, user: str) -> str:
        for line in (self.root / "etc/passwd").read_text().splitlines():
            name, _, uid, gid, *_ = line.split(":")
            if name == user:
                return f"{uid}:{gid}"
        raise AssertionError(f"the board has no user {user}")

    def _make(self, suite: str) -> None:
        subprocess.run(
            [
                *("mmdebstrap", "--quiet", "--mode=root", "--variant=extract", "--skip=cleanup/apt,essential/unlink"),
                f"--architectures={DEBIAN_ARCHITECTURES[self.profile.machine]}",
                *(f"--include={','.join(INSIDE)}", suite, str(self.root), "-"),
            ],
            check=True,
            timeout=300,
            input=debian_sources(suite),
            text=True,
        )
        for name in ("proc", "root", "tmp", "usr/local/bin"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / "tmp").chmod(0o1777)
        for name in ("passwd", "group"):
            shutil.copy(self.root / f"usr/share/base-passwd/{name}.master", self.root / "etc" / name)
        self._record(self.root / "var/cache/apt/archives")
        features = " ".join(self.profile.cpu.features)
        part = "0xd08" if self.profile.machine == "aarch64" else "0xc07"
        blocks = [
            f"processor\t: {n}\nFeatures\t: {features}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n\n"
            for n in range(self.profile.cpu.cores)
        ]
        (self.root / "cpuinfo").write_text("".join(blocks))
        # cpuinfo, which the engines ask, reads these; the host's /sys would tell it of another processor.
        cpus = self.root / "sys/devices/system/cpu"
        cpus.mkdir(parents=True)
        for name in ("possible", "present", "online"):
            (cpus / name).write_text(f"0-{self.profile.cpu.cores - 1}\n")

    def _record(self, archives: Path) -> None:
        """Tell dpkg of the packages that were unpacked, as if it had configured them."""
        entries: list[str] = []
        for deb in sorted(archives.glob("*.deb")):
            fields = subprocess.run(
                ["dpkg-deb", "--field", str(deb)], capture_output=True, text=True, check=True, timeout=60
            ).stdout
            name, _, rest = fields.partition("\n")
            entries.append(f"{name}\nStatus: install ok installed\n{rest.rstrip()}\n\n")
            listed = self.root / "var/lib/dpkg/info" / f"{name.removeprefix('Package: ')}.list"
            listed.write_text("/.\n")
            deb.unlink()
        assert entries, "mmdebstrap kept no packages"
        (self.root / "var/lib/dpkg/status").write_text("".join(entries))
