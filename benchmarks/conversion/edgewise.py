"""Edgewise's winner: `edgewise convert` as a user calls it, and the model file out of its bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from conversion.case import Case, save
from conversion.contender import Contender
from conversion.fetching import say
from conversion.verdict import BUDGET, Objective

_SECONDS: Final = 3600


def host_profile() -> str:
    """The profile of this machine by its processor's features.

    Raises:
        SystemExit: none fits.
    """
    from edgewise_converter.hardware import is_instruction_set, read_host
    from edgewise_profiles.catalogue import load_all

    host = read_host()
    fitting = [p for p in load_all() if not p.compatible and is_instruction_set(p, host)]
    if not fitting:
        raise SystemExit(f"no profile of the catalogue fits this machine ({host.machine}, {host.cpu})")
    return max(fitting, key=lambda p: len(p.cpu.features) + len(p.cpu.any_of)).id


def winner(case: Case, profile: str, objective: Objective, label: str, folder: Path, fresh: bool) -> Contender:
    """The bundle's model file; without one, what Edgewise said.

    Args:
        case: what is converted.
        profile: for which.
        objective: what is wanted.
        label: of the winner, in the table.
        folder: for samples, bundles and reports.
        fresh: without the cache.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "edgewise_cli", "convert", str(case.model), "--version", "1", "--json"]
    # The board's own bound on latency is not what is compared here: a model may be too slow for it in every form.
    command += ["--max-latency", "60000"]
    command += ["--profile", profile, "--objective", objective, "--accuracy-drop", str(BUDGET), "--name", case.name]
    command += ["--out", str(folder / profile / objective), *(["--no-cache"] if fresh else [])]
    if not case.model.is_dir():  # a run brings its samples and its task
        for name, arrays in (("calibration", case.calibration), ("heldout", case.heldout)):
            save(folder / f"{name}.npz", arrays)
            command += [f"--{name}", str(folder / f"{name}.npz")]
        command += ["--task", case.task]
        command += [part for pair in case.state for part in ("--state", "=".join(pair))]
    say(f"{case.name}: {label} ...")
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_SECONDS)
    (folder / f"{profile}-{objective}.json").write_text(done.stdout)
    if done.returncode:
        return Contender("edgewise", label, next(iter(case.forms)), failure=_failure(done.stdout, done.stderr))
    (found,) = json.loads(done.stdout)["bundles"]
    return _of(found, label)


def _failure(out: str, err: str) -> str:
    try:
        error = json.loads(out)["error"]
        rows = [row for bundle in error.get("bundles", ()) for row in bundle["search"]["rows"]]
        why = next((row["reason"] for row in rows if row["candidate"]["is_float"]), "")
        return f"{error['message']}{'; float: ' + why if why else ''}"[:200]
    except (ValueError, KeyError, TypeError):
        return ((out + err).strip().splitlines() or ["it said nothing"])[-1][:200]


def _of(found: dict[str, Any], label: str) -> Contender:
    from edgewise_protocol.bundle import BundleReader

    with Path(found["path"]).open("rb") as source:
        reader = BundleReader(source)
        data = reader.read(reader.manifest.model_file)
    return Contender("edgewise", label, found["format"], data, detail=found["search"]["winner"])
