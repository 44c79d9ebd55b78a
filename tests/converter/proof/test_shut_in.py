"""Danger: machine code in a sysroot that leaves it, has rights in it, or starts processes without end."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from edgewise_converter.proof import process, running, sysroot
from edgewise_converter.proof.sysroot import Sysroot
from edgewise_profiles import catalogue

PROBE = """
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void) {
  struct stat found;
  /* Out of a chroot, as whoever may chroot again gets out. */
  const int again = chroot("tmp");
  for (int i = 0; i < 64; i++) if (chdir("..")) break;
  const int left = stat("OUTSIDE", &found) == 0;
  const int space = unshare(CLONE_NEWUSER);
  int children = 0;
  while (children < 3000) {
    const pid_t child = fork();
    if (child < 0) break;
    if (child == 0) for (;;) pause();
    children++;
  }
  printf("uid %d pid %d again %d left %d space %d ", getuid(), getpid() < 10, again, left, space);
  printf("children %d\\n", children);
  return 0;
}
"""
"""Stands in for the emulator, which hands the guest's calls on."""
SOMEBODY = 54321


@pytest.fixture
def there() -> Iterator[Sysroot]:
    """A sysroot with the probe as its emulator, where everybody can read it."""
    if shutil.which("gcc") is None or shutil.which("unshare") is None:
        pytest.skip("gcc or unshare is not installed")
    folder = Path(tempfile.mkdtemp(prefix="edgewise-shut-"))
    try:
        folder.chmod(0o755)
        found = Sysroot(folder, sysroot.recipe_here(catalogue.load("raspberry-pi-4-64")))
        emulator = found.root / found.qemu.lstrip("/")
        for made in (emulator.parent, found.root / "tmp"):
            made.mkdir(parents=True)
        source = PROBE.replace("OUTSIDE", str(folder / "root").lstrip("/"))
        built = subprocess.run(
            ["gcc", "-static", "-O1", "-x", "c", "-o", str(emulator), "-"], input=source.encode(), check=False
        )
        if built.returncode:
            pytest.skip("gcc has no static C library")
        yield found
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("root", [True, False])
def test_machine_code_stays_inside_has_no_rights_and_few_processes(root: bool, there: Sysroot) -> None:
    if root and os.geteuid() != 0:
        pytest.skip("this is how root runs it")
    drop = (
        [] if root or os.geteuid() != 0 else ["setpriv", f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", "--clear-groups"]
    )
    before = running.tasks_of(running._NOBODY if root else SOMEBODY if drop else os.geteuid())
    command = running.emulated_command(there, memory=1 << 30, cpu_s=20, tasks=before + 50, root=root)
    done = process.run([*drop, *command], limit_s=20, max_output=1000, environment={"PATH": "/usr/sbin:/usr/bin:/bin"})
    if "Operation not permitted" in done.log or "setpriv" in done.log:
        pytest.skip(f"namespaces are not to be had here: {done.log}")
    said = done.output.decode().split()
    found = dict(zip(said[::2], map(int, said[1::2]), strict=True))
    assert 0 < found.pop("children") <= 50, done.log
    assert found == {"uid": running._NOBODY, "pid": 1, "again": -1, "left": 0, "space": -1}
