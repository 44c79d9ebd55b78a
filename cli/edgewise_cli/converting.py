"""Searches by the converter, where it is installed. Its errors become this package's here.

Nothing that computes is imported before the cache has been asked: a repeat takes a fraction of a second.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from edgewise_cli.commands.profiles import load as load_profile
from edgewise_cli.installed import need
from edgewise_cli.worker.models import Progress, converter_errors

EXTRA = "converter"


def convert_model(
    request: dict[str, Any],
    profiles: Sequence[str],
    out: Path,
    *,
    reports: Path | None,
    cached: bool,
    progress: Progress,
) -> list[Any]:
    """Search for the best form for each profile; a missed budget is a result, no error.

    Args:
        request: fields of the converter's `search.request.Request`.
        profiles: ids.
        out: folder for bundles.
        reports: folder for reports; None for beside the bundles.
        cached: whether the cache may be used.
        progress: see `Shell.progress`.

    Returns:
        the converter's `search.outcome.Outcome`, one a profile.

    Raises:
        UsageError, RefusedError, FilesError, NotInstalledError.
    """
    converting = need("edgewise_converter.search.converting", EXTRA)
    asked = need("edgewise_converter.search.request", EXTRA)
    caching = need("edgewise_converter.cache", EXTRA)
    with converter_errors(), ended_by_signals():
        found: list[Any] = converting.convert_model(
            asked.Request(**request),
            [load_profile(name) for name in profiles],
            out,
            cache=caching.Cache(caching.default_root() if cached else None),
            reports_dir=reports,
            progress=progress,
        )
    return found


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM end the work as Ctrl-C does: what is half written is removed on the way out."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
