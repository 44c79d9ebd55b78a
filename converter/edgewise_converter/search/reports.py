"""What stands beside a bundle for people: the picture and the page of the search."""

from __future__ import annotations

from edgewise_protocol.manifest import Manifest

from edgewise_converter import reporting
from edgewise_converter.cache import library_versions
from edgewise_converter.errors import MissingExtraError
from edgewise_converter.search.bench import Bench
from edgewise_converter.search.outcome import Outcome
from edgewise_converter.search.searching import Found

HTML, PNG = ".report.html", ".report.png"


def reports_of(outcome: Outcome, found: Found, manifest: Manifest, bench: Bench) -> dict[str, bytes]:
    """Reports by their suffix; without matplotlib there is no picture."""
    entry = next(e for e in manifest.files if e.name == manifest.model_file)
    winner = found.winner.name if found.winner else ""
    mixed = winner if winner in found.layers else next(iter(found.layers), "")
    details = reporting.Details(
        bundle=f"{outcome.model}-{outcome.version}-{outcome.profile}.ewb",
        bundle_sha256=outcome.sha256,
        model_sha256=entry.sha256,
        source_sha256=bench.model.lineage.get("source_sha256", ""),
        data_fingerprint=bench.model.lineage.get("data_fingerprint", ""),
        profile_sha256=manifest.lineage.get("profile_sha256", ""),
        versions=library_versions(),
        proofs=outcome.proofs,
        layers=found.layers.get(mixed, ()),
        layers_of=mixed,
        created_at=outcome.created_at,
    )
    reports = {HTML: reporting.html(found.result, details)}
    try:
        reports[PNG] = reporting.png(found.result)
    except MissingExtraError:
        return reports
    return reports
