"""Real models converted by Edgewise and by its peers, scored and timed by one harness in one run.

    python benchmarks/converter.py [--models DIR] [--data DIR] [--only NAME] [--objective latency|size]
        [--profile NAME] [--out DIR] [--cache DIR] [--quick]

Peers are `onnxruntime.quantization`, Olive and ai-edge-quantizer with their defaults, each in a
virtual environment of its own, on the same float file and the same calibration data; what a peer
cannot do is a row that says so. All files of a model are timed in turn, on one thread, in rounds
whose order turns. `--models` is a folder that holds MLPerf Tiny's files as `mlperf_tiny`, `--data`
one that holds `mnist.npz`; other models, data and peers come from the package index by name.

Exit status 1 where a winner is worse than the best of the other files within the accuracy budget
of 0.5 points, beyond the measured noise, or is out of the budget itself.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from conversion import drawing, edgewise
from conversion.case import Case
from conversion.cases import Places, cases, names_of_all
from conversion.contender import Measured
from conversion.fetching import Cache, say
from conversion.peers.making import peers, sources
from conversion.verdict import Objective, Verdict, judge

_ROUNDS, _QUICK_ROUNDS = 21, 5
_QUICK = ("digits", "ad01")
"""Neither downloads anything; the second is left out without `--models`."""
_OTHERS = ("raspberry-pi-4-64",)
"""The board whose engines all run here too, so that its winner's numerics and this machine's latency can be told."""
_CACHE = Path("~/.cache/edgewise-benchmarks")


Goal = tuple[str, Objective, str]
"""A profile, what is wanted, and the profile's name in the table: none for the machine's own."""


def goals(own: str, given: argparse.Namespace) -> tuple[Goal, ...]:
    """What Edgewise is asked for; latency for the machine's own profile alone, since no other was there."""
    wanted: tuple[Objective, ...] = tuple(given.objective or get_args(Objective))
    others = () if given.quick or "size" not in wanted else given.profile or _OTHERS
    return (*((own, o, "") for o in wanted), *((p, "size", p) for p in others if p != own))


def run_case(
    case: Case, cache: Cache | None, wanted: Sequence[Goal], out: Path, given: argparse.Namespace
) -> tuple[list[Measured], list[Verdict]]:
    """One model: everybody's files, their figures, and the verdicts.

    Args:
        case: the model.
        cache: of the peers' environments; None for no peers.
        wanted: what Edgewise is asked for, one winner each.
        out: folder for Edgewise's bundles and reports.
        given: the command's arguments.
    """
    from conversion.harness import measure

    contenders = sources(case)
    contenders += peers(case, cache) if cache is not None else []
    first = len(contenders)
    for profile, objective, name in wanted:
        label = f"Edgewise ({objective}, {name})" if name else f"Edgewise ({objective})"
        contenders.append(edgewise.winner(case, profile, objective, label, out / case.name, given.fresh))
    found = measure(case, contenders, given.rounds)
    verdicts = [judge(case.name, o, found[first + i], found[:first], n) for i, (_, o, n) in enumerate(wanted)]
    return found, verdicts


def basis(case: Case) -> str:
    """What a score is, in words."""
    judged = case.judged
    if "y" in judged:
        return f"of {len(judged['y'])} labelled"
    return "agreement"


def report(verdicts: Sequence[Verdict]) -> str:
    """A line a verdict."""
    lines = []
    for v in verdicts:
        noise = f" (noise {100 * v.noise:.1f} %)" if v.noise else ""
        lines.append(f"{'held' if v.held else 'LOST'}  {v.case:<16}{v.aim:<26}{v.reason}{noise}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it all; see the module."""
    given = _arguments(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    cache = Cache(given.cache.expanduser().absolute())
    profile = edgewise.host_profile()
    wanted = goals(profile, given)
    names = tuple(given.only or ())
    if given.quick:
        names = names or _QUICK
    found: dict[str, list[Measured]] = {}
    verdicts: list[Verdict] = []
    lines: list[tuple[str, ...]] = [drawing.COLUMNS]
    short: list[tuple[str, ...]] = [drawing.SUMMARY]
    with tempfile.TemporaryDirectory() as temporary:
        out = (given.out or Path(temporary)).absolute()
        out.mkdir(parents=True, exist_ok=True)
        for case in cases(Places(cache, given.models, given.data), names):
            measured, judged = run_case(case, None if given.quick else cache, wanted, out, given)
            found[case.name] = measured
            verdicts += judged
            more = drawing.rows(case.name, basis(case), measured)
            lines += more
            short += drawing.summary(case.name, basis(case), measured, judged)
            say(drawing.text([drawing.COLUMNS, *more]) + "\n" + report(judged) + "\n")
        if not found:
            raise SystemExit("no model can be had; see above")
        title = f"{profile}, one thread of {_cpu()}"
        drawing.draw(found, verdicts, title, out / "converter.png")
        (out / "converter.md").write_text(drawing.markdown(short) + "\n\n" + drawing.markdown(lines) + "\n")
        (out / "converter.json").write_text(json.dumps(_document(found, verdicts, profile), indent=1))
    print(title)
    print(drawing.text(lines))
    print()
    print(report(verdicts))
    return 0 if all(v.held for v in verdicts) else 1


def _document(found: dict[str, list[Measured]], verdicts: Sequence[Verdict], profile: str) -> dict[str, Any]:
    def plain(m: Measured) -> dict[str, Any]:
        record = asdict(m)
        record["contender"].pop("data")
        return record | {"size_bytes": m.size_bytes}

    return {
        "profile": profile,
        "cpu": _cpu(),
        "cases": {name: [plain(m) for m in measured] for name, measured in found.items()},
        "verdicts": [asdict(v) for v in verdicts],
    }


def _cpu() -> str:
    from edgewise_converter.hardware import read_host

    host = read_host()
    return host.cpu or host.machine


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, help="folder that holds mlperf_tiny [default: EDGEWISE_MODELS]")
    parser.add_argument("--data", type=Path, help="folder that holds mnist.npz [default: EDGEWISE_DATA]")
    parser.add_argument("--only", action="append", choices=names_of_all(), metavar="NAME", help="one model; repeat")
    parser.add_argument("--objective", action="append", choices=get_args(Objective), help="[default: both]")
    parser.add_argument(
        "--profile",
        action="append",
        metavar="NAME",
        help=f"besides the machine's own, by size alone; repeat [default: {', '.join(_OTHERS)}]",
    )
    parser.add_argument("--out", type=Path, help="folder for the plot, the table as Markdown and JSON, and bundles")
    parser.add_argument("--cache", type=Path, default=_CACHE, help="[default: %(default)s]")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="of timing, at most 200 [default: %(default)s]")
    parser.add_argument("--fresh", action="store_true", help="let Edgewise search without its cache")
    parser.add_argument("--quick", action="store_true", help="two small models, few rounds, no peers")
    given = parser.parse_args(arguments)
    for name in ("models", "data"):
        if getattr(given, name) is None and (folder := os.environ.get(f"EDGEWISE_{name.upper()}")):
            setattr(given, name, Path(folder))
    given.rounds = max(4, min(200, _QUICK_ROUNDS if given.quick else given.rounds))
    return given


if __name__ == "__main__":
    sys.exit(main())
