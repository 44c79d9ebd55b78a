"""What the command line and the worker call: paths and names in, reports out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgewise_profiles import catalogue

from edgewise_converter import training_bundle
from edgewise_converter.convert import convert_many
from edgewise_converter.report import BundleReport
from edgewise_converter.workshop import Progress


def convert_run(
    run_dir: Path,
    profile_names: Sequence[str],
    out_dir: Path,
    version: int,
    precision: str | None = None,
    progress: Progress | None = None,
) -> list[BundleReport]:
    """Convert a run's model for profiles of the catalogue; see `edgewise_converter.convert.convert_many`.

    Raises:
        UnknownProfileError: the catalogue holds no such profile.
        BudgetError, and the other errors of `convert_many`.
    """
    profiles = [catalogue.load(name) for name in profile_names]
    return convert_many(run_dir, profiles, out_dir, version=version, precision=precision, progress=progress)


def build_training_bundle(run_dir: Path, out_dir: Path, version: int) -> Path:
    """Pack a run's training step; see `edgewise_converter.training_bundle.build`."""
    return training_bundle.build(run_dir, out_dir, version)
