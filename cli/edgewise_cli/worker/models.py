"""Trainer and converter, where they are installed: the only module that knows their interfaces.

Their errors become this package's here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from edgewise_cli.commands.profiles import load as load_profile
from edgewise_cli.errors import FilesError, NotInstalledError, RefusedError, UsageError
from edgewise_cli.installed import need

_USAGE: Final = frozenset({"config", "factory", "run-exists", "metric"})
_FILES: Final = frozenset({"run-damaged", "metric-scores"})
_MISSING: Final = frozenset({"missing-extra", "converter-missing-extra"})

Progress = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Judged:
    """A run and what its gate said."""

    passed: bool
    report: dict[str, Any]


@dataclass(frozen=True)
class Converted:
    """Bundles per profile; those that missed their budget have no file."""

    passed: bool
    bundles: tuple[Path, ...]
    report: list[dict[str, Any]]


def load_config(path: Path) -> Any:
    """The typed training configuration."""
    trainer = need("edgewise_trainer.config", "trainer")
    with _trainer_errors():
        return trainer.load_config(path)


def model_of(config: Any) -> str:
    """The name of the model that a configuration trains."""
    return str(config.model.name)


def train(config: Any, out: Path, progress: Progress) -> Judged:
    """Train; the run is written whether or not the gate passed."""
    run = need("edgewise_trainer.run", "trainer")

    def tell(report: Any) -> None:
        fraction = report.epoch / report.epochs if report.epochs else None
        loss = f", loss {report.loss:.4f}" if report.loss is not None else ""
        progress(f"{report.stage} {report.message}{loss}".strip(), fraction)

    with _trainer_errors():
        return _judged(run.train(config, out, tell))


def judge(config: Any, weights: Mapping[str, Any], parent: Path, out: Path) -> Judged:
    """A run from an aggregate's weights, evaluated and gated against its parent."""
    run = need("edgewise_trainer.run", "trainer")
    with _trainer_errors():
        return _judged(run.from_weights(config, weights, parent, out))


def convert(run: Path, profiles: Sequence[str], out: Path, version: int) -> Converted:
    """Convert a run into each profile's first form; a missed budget is a result, no error."""
    converting = need("edgewise_converter.search.converting", "converter")
    asked = need("edgewise_converter.search.request", "converter")
    caching = need("edgewise_converter.cache", "converter")
    with converter_errors():
        found = converting.convert_model(
            asked.Request(model=str(run), version=version, form="default"),
            [load_profile(name) for name in profiles],
            out,
            cache=caching.Cache(None),
        )
    return Converted(
        passed=all(outcome.passed for outcome in found),
        bundles=tuple(Path(outcome.path) for outcome in found if outcome.passed),
        report=[outcome.document() for outcome in found],
    )


def training_bundle(run: Path, out: Path, version: int) -> Path:
    """The training bundle of a run."""
    builder = need("edgewise_converter.training_bundle", "converter")
    with converter_errors():
        return Path(builder.build(run, out, version))


def preload() -> None:
    """Import what a promotion needs, so that the first one does not wait for it.

    Raises:
        NotInstalledError: a part is missing; better now than in the first job.
    """
    need("edgewise_trainer.run", "trainer")
    for module in ("converting", "bench", "searching", "bundle", "reports"):
        need(f"edgewise_converter.search.{module}", "converter")


def _judged(record: Any) -> Judged:
    report: dict[str, Any] = msgspec.to_builtins(record)
    return Judged(passed=bool(report["gate"]["passed"]), report=report)


@contextmanager
def _trainer_errors() -> Iterator[None]:
    errors = need("edgewise_trainer.errors", "trainer")
    try:
        yield
    except errors.TrainerError as error:
        raise _translated(error) from error


@contextmanager
def converter_errors() -> Iterator[None]:
    """Turn the converter's errors into this package's."""
    errors = need("edgewise_converter.errors", "converter")
    profile_errors = need("edgewise_profiles.errors", "converter")
    try:
        yield
    except (errors.ConverterError, profile_errors.ProfileError) as error:
        raise _translated(error) from error


def _translated(error: Any) -> UsageError | RefusedError | NotInstalledError | FilesError:
    code = str(error.code)
    if code in _MISSING:
        return NotInstalledError(str(error))
    kind = UsageError if code in _USAGE else FilesError if code in _FILES else RefusedError
    return kind(str(error), code=code)
