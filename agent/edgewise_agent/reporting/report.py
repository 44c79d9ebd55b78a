"""The reported state, from the installer's. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from edgewise_protocol.bounds import MAX_CONTROL_BYTES, MAX_TEXT_CHARS
from edgewise_protocol.messages import ModelReport, Reported, encode

from edgewise_agent.install.state import InstallState, ModelState, Slot

_MAX_CODE: Final = 64
_MAX_MODELS: Final = 64
_MODEL_TEXTS: Final = (MAX_TEXT_CHARS, 500, 100, 0)
"""Characters of each model's error: as many as let the whole report stay within a control message."""


def build_report(state: InstallState, serving: Mapping[str, Slot], at: float, simulated: bool) -> Reported:
    """What runs in each slot, since when, and why not. `active_*` is what serves at this moment."""
    for characters in _MODEL_TEXTS:
        report = _build(state, serving, at, simulated, characters)
        if len(encode(report)) <= MAX_CONTROL_BYTES:
            break
    return report


def _build(state: InstallState, serving: Mapping[str, Slot], at: float, simulated: bool, characters: int) -> Reported:
    # Told of before all models have heard of it, an older failure would look like one of the new assignment.
    heard = min([state.assignment_version, *(model.assignment_version for model in state.models.values())])
    models = sorted(state.models.values(), key=lambda model: model.model)[:_MAX_MODELS]
    return Reported(
        at=at,
        assignment_version=heard,
        deployment=state.deployment,
        models=tuple(_model(model, serving.get(model.model), characters) for model in models),
        error_code=state.error_code[:_MAX_CODE],
        error=state.error[:MAX_TEXT_CHARS],
        simulated=simulated,
    )


def _model(model: ModelState, serving: Slot | None, characters: int) -> ModelReport:
    return ModelReport(
        model=model.model,
        state=model.state,
        since=model.since,
        active_version=serving.version if serving else 0,
        active_sha256=serving.sha256 if serving else "",
        target_version=model.target.custom.version if model.target else 0,
        target_sha256=model.target.sha256 if model.target else "",
        previous_version=model.previous.version if model.previous else 0,
        error_code=model.error_code[:_MAX_CODE],
        error=model.error[:characters],
        self_test=model.self_test,
    )
