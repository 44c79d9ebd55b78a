"""A search's result as one page of HTML: it loads nothing, runs nothing, and every foreign text in it is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Final

from edgewise_protocol.manifest import Proof

from edgewise_converter.files import write_atomically
from edgewise_converter.reporting import colours, svg, words
from edgewise_converter.reporting.details import Details
from edgewise_converter.reporting.style import CSS
from edgewise_converter.reporting.table import against_float
from edgewise_converter.search.result import Row, SearchResult

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_MAX_ROWS: Final = 500


def write_html(result: SearchResult, path: Path, details: Details | None = None) -> None:
    """Write the page; raises `WriteError`."""
    data = html(result, details)
    write_atomically(path, lambda out: out.write(data))


def html(result: SearchResult, details: Details | None = None) -> bytes:
    """The page, UTF-8. Equal inputs give equal bytes. Pure."""
    more = details or Details()
    title = f"{words.plain(result.model, 80)} for {words.plain(result.profile, 80)}"
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(title)}</title><style>{CSS}</style></head><body><main>",
        f"<h1>{_text(title)}</h1>",
        _lead(result),
        _cards(result),
        *(f'<p class="note">{_text(note)}</p>' for note in result.notes),
        "<h2>Size against latency</h2>",
        svg.scatter(result),
        _legend(result),
        _layers(more),
        "<h2>Every candidate</h2>",
        _table(result),
        "<h2>What was measured where</h2>",
        _measured(result, more),
        _agreement(result),
        "<h2>Origin</h2>",
        _origin(result, more),
        "</main></body></html>\n",
    ]
    return "".join(parts).encode("utf-8", "replace")


def _text(text: str) -> str:
    return escape(words.plain(text, 2000), quote=True)


def _winner(result: SearchResult) -> Row | None:
    return next((row for row in result.rows if row.candidate.name == result.winner), None)


def _lead(result: SearchResult) -> str:
    row = _winner(result)
    if row is None:
        return '<p class="lead">No form kept the budget: nothing was bundled.</p>'
    sought = "fastest" if result.objective == "latency" else "smallest"
    if result.float_row is not None and row.candidate.name == result.float_row.candidate.name:
        told = "no other form was smaller or faster within the budget, so float stays"
    elif (against := against_float(result.float_row, row)) != "-":
        told = f"{against} than float"
    else:
        told = "no float form runs there to hold it against"
    why = f" Why: {_text(row.reason)}." if row.reason else ""
    return (
        f'<p class="lead">The {sought} form that loses at most {words.points(result.accuracy_drop)} is '
        f"<b>{_text(row.candidate.name)}</b>: {_text(told)}.{why}</p>"
    )


def _cards(result: SearchResult) -> str:
    row = _winner(result)
    if row is None:
        return ""
    kind = "on labelled samples" if row.score and row.score.labelled else "without labels"
    cards = [
        ("size of the model file", words.size(row.size_bytes)),
        ("median latency, one thread", words.latency(row.latency_ms)),
        (f"{result.metric}, {kind}", words.metric(result.metric, row.score.value if row.score else None)),
        (f"points against float, {-result.accuracy_drop:g} allowed", words.lost(row.score)),
        ("forms tried, of them rejected", f"{len(result.rows)}, {sum(r.verdict == 'rejected' for r in result.rows)}"),
    ]
    return (
        '<div class="cards">'
        + "".join(f'<div class="card"><b>{_text(value)}</b><span>{_text(name)}</span></div>' for name, value in cards)
        + "</div>"
    )


def _legend(result: SearchResult) -> str:
    ramp = ", ".join(colours.of_loss(i / 6) for i in range(7))
    return (
        '<p class="legend">'
        f'<span>no loss <i class="ramp" style="background: linear-gradient(90deg, {ramp})"></i>'
        f"{words.points(result.accuracy_drop)} lost</span>"
        '<span><i class="hollow"></i>rejected</span><span>dashed: the front</span>'
        "<span>numbers: rows of the table below</span></p>"
    )


def _layers(more: Details) -> str:
    if not more.layers:
        return ""
    kept = sum(one.kept_float for one in more.layers)
    form = f"<b>{_text(more.layers_of)}</b>: " if more.layers_of else ""
    told = f"{form}{kept} of {len(more.layers)} layers stay in float; the others are quantized."
    if len(more.layers) > svg.MAX_LAYERS:
        told += f" The {svg.MAX_LAYERS} most sensitive are drawn."
    return (
        f'<h2>Sensitivity of layers</h2><p class="muted">{told}</p>{svg.sensitivity(more.layers, more.damage_unit)}'
        '<p class="legend"><span><i class="kept"></i>stays in float</span><span><i class="int"></i>quantized</span></p>'
    )


def _table(result: SearchResult) -> str:
    head = "".join(
        f'<th class="{kind}">{escape(name)}</th>'
        for kind, name in (
            ("n", "#"),
            ("", "form"),
            ("", "engine"),
            ("n", "size"),
            ("n", words.plain(result.metric, 40)),
            ("n", "points to float"),
            ("n", "latency"),
            ("", "verdict"),
            ("", "why"),
        )
    )
    body = "".join(_row(result, i, row) for i, row in enumerate(result.rows[:_MAX_ROWS], 1))
    left = len(result.rows) - _MAX_ROWS
    rest = f'<p class="muted">{left} more are not shown.</p>' if left > 0 else ""
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{rest}'


def _row(result: SearchResult, number: int, row: Row) -> str:
    steps = "".join(f"<li>{_text(step)}</li>" for step in row.candidate.steps)
    made = f"<details><summary>how it is made</summary><ol>{steps}</ol></details>" if steps else ""
    form = f"{row.candidate.format} {row.candidate.precision}"
    return (
        f'<tr class="{row.verdict}"><td class="n">{number}</td>'
        f'<td class="name">{_text(row.candidate.name)}{made}</td>'
        f'<td>{_text(row.candidate.engine)}<br><span class="muted">{_text(form)}</span></td>'
        f'<td class="n">{words.size(row.size_bytes)}</td>'
        f'<td class="n">{words.metric(result.metric, row.score.value if row.score else None)}</td>'
        f'<td class="n">{words.lost(row.score)}</td>'
        f'<td class="n">{words.latency(row.latency_ms)}</td>'
        f'<td><span class="pill {row.verdict}">{words.VERDICTS[row.verdict]}</span></td>'
        f'<td class="why">{_text(row.reason)}</td></tr>'
    )


def _measured(result: SearchResult, more: Details) -> str:
    score = next((row.score for row in result.rows if row.score is not None), None)
    told = [
        ("Latency", f"Measured on {result.measured_on}. Candidates that came so far were timed in turn."),
        (
            "Accuracy",
            f"{words.plain(score.basis) if score else result.metric}; the engines ran on this host "
            f"({result.host.cpu or 'unnamed CPU'}, {result.host.machine}).",
        ),
        *[("Proof", _proof(proof)) for proof in more.proofs],
    ]
    if not more.proofs:
        told.append(("Proof", "The bundle's golden inputs were not run on the target's instruction set."))
    return _pairs(told)


def _proof(proof: Proof) -> str:
    where = f"on {proof.machine}, {proof.cpu or 'unnamed CPU'}, engine {proof.engine_version or 'of unknown version'}"
    if proof.emulated:
        return (
            f"Golden inputs were answered within the tolerance {where}, under an emulator. That proves loading and "
            "numerics, never latency."
        )
    return f"Golden inputs were answered within the tolerance {where}, on real hardware."


def _agreement(result: SearchResult) -> str:
    row = _winner(result)
    if row is None or row.score is None or not row.score.outputs:
        return ""
    head = "".join(
        f'<th class="{kind}">{name}</th>'
        for kind, name in (
            ("", "output"),
            ("n", "agreement"),
            ("", "is the share of"),
            ("n", "cosine"),
            ("n", "relative RMS error"),
        )
    )
    meaning = {"top-1": "samples with the same class", "equal elements": "equal elements", "r-squared": "variance met"}
    body = "".join(
        f'<tr><td class="name">{_text(o.output)}</td><td class="n">{100 * o.agreement:.2f} %</td>'
        f'<td>{_text(meaning.get(o.basis, o.basis))}</td><td class="n">{o.cosine:.6f}</td>'
        f'<td class="n">{words.error(o.relative_error)}</td></tr>'
        for o in row.score.outputs
    )
    return (
        "<h2>The winner's outputs against float</h2>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _origin(result: SearchResult, more: Details) -> str:
    digests = (
        ("Bundle", more.bundle),
        ("SHA-256 of the bundle", more.bundle_sha256),
        ("SHA-256 of the model file", more.model_sha256),
        ("SHA-256 of the source", more.source_sha256),
        ("Fingerprint of the data", more.data_fingerprint),
        ("SHA-256 of the profile", more.profile_sha256),
        ("Versions", ", ".join(f"{name} {version}" for name, version in sorted(more.versions.items()))),
        ("Processor's features", " ".join(result.host.cpu_features)),
        ("Made at", more.created_at),
    )
    again = f"<p>The same result, from the same inputs:</p><pre><code>{_text(more.command)}</code></pre>"
    return _pairs([(name, value) for name, value in digests if value]) + (again if more.command else "")


def _pairs(told: Iterable[tuple[str, str]]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{_text(name)}</th><td><code>{_text(v)}</code></td></tr>'
        if _is_code(name)
        else f'<tr><th scope="row">{_text(name)}</th><td>{_text(v)}</td></tr>'
        for name, v in told
    )
    return f'<div class="wide"><table class="pairs"><tbody>{rows}</tbody></table></div>'


def _is_code(name: str) -> bool:
    return name.startswith(("SHA-256", "Fingerprint", "Bundle", "Processor"))
