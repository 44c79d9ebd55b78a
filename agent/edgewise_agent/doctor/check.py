"""A finding, and how findings are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from edgewise_agent.words import words_for

Verdict = Literal["ok", "warn", "fail"]
_NAME_WIDTH: Final = 12


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the doctor's answer."""

    name: str
    verdict: Verdict
    text: str
    """What was found, in plain words."""
    code: str = ""
    """The error code that the agent would give; empty if there is none."""
    mend: str = ""
    """What to do; empty if nothing."""


def ok(name: str, text: str) -> Check:
    return Check(name=name, verdict="ok", text=text)


def warn(name: str, text: str, mend: str = "", code: str = "") -> Check:
    return Check(name=name, verdict="warn", text=text, mend=mend or _mend(code), code=code)


def fail(name: str, text: str, mend: str = "", code: str = "") -> Check:
    return Check(name=name, verdict="fail", text=text, mend=mend or _mend(code), code=code)


def _mend(code: str) -> str:
    return words_for(code).mend if code else ""


def failed(checks: Sequence[Check]) -> bool:
    return any(check.verdict == "fail" for check in checks)


def render(checks: Sequence[Check]) -> str:
    """One line a check; below what is not well, its code and what to do."""
    lines: list[str] = []
    for check in checks:
        code = f" [{check.code}]" if check.code else ""
        lines.append(f"{check.verdict:<5} {check.name:<{_NAME_WIDTH}} {check.text}{code}")
        if check.mend and check.verdict != "ok":
            lines.append(f"{'':<5} {'':<{_NAME_WIDTH}} -> {check.mend}")
    count = {verdict: sum(check.verdict == verdict for check in checks) for verdict in ("fail", "warn")}
    if not any(count.values()):
        lines.append("nothing is wrong")
    else:
        lines.append(f"{count['fail']} wrong, {count['warn']} to look at")
    return "\n".join(lines)
