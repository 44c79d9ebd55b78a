"""The job `promote`: an aggregate becomes a run, passes the gate, is converted, signed and published.

Trainer and converter decide whether it is good; this only carries it from one to the next,
and signs what passed with the channel's `auto` key.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgewise_protocol.bounds import MAX_UPDATE_BYTES
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.manifest import Version
from edgewise_protocol.names import check_name, check_sha256
from edgewise_protocol.targets import auto_role, from_target_file
from tuf.api.metadata import Targets

from edgewise_cli.errors import RefusedError, TrustError
from edgewise_cli.signing import release as releases
from edgewise_cli.signing.bundles import read_bundle
from edgewise_cli.trust.publishing import publish
from edgewise_cli.worker import models
from edgewise_cli.worker.context import Job, Result, WorkerContext
from edgewise_cli.worker.offers import check_opted_in, read_tensors


@dataclass(frozen=True)
class PromoteRequest:
    """A `promote` job, parsed."""

    federation: str
    model: str
    channel: str
    weights_sha256: str
    version: Version
    profiles: tuple[str, ...]


def parse_request(payload: Mapping[str, Any]) -> PromoteRequest:
    """Read the payload of a `promote` job.

    Raises:
        RefusedError: a field is missing or not a name.
    """
    try:
        profiles = tuple(check_name(str(p), "profile") for p in payload["profiles"])
        request = PromoteRequest(
            federation=check_name(str(payload["federation"]), "federation"),
            model=check_name(payload["model"], "model"),
            channel=check_name(payload["channel"], "channel"),
            weights_sha256=check_sha256(payload["weights_sha256"]),
            version=int(payload["next_version"]),
            profiles=profiles,
        )
    except (KeyError, TypeError, ValueError, ProtocolError) as error:
        raise RefusedError(f"the job is not well formed: {error}") from error
    if not profiles or request.version < 1:
        raise RefusedError("the job names no profile, or no version")
    return request


def check_request(request: PromoteRequest, targets: Targets, auto: Targets, model: str) -> None:
    """Check that this worker may sign what the job asks for.

    Args:
        targets, auto: verified metadata of the top-level and the channel's auto role.
        model: the model that this worker is configured for.

    Raises:
        RefusedError: it may not.
    """
    check_opted_in(targets, request.channel)
    if request.model != model:
        raise RefusedError(f"this worker is configured for the model {model!r}, not for {request.model!r}")
    newest = max(
        (
            file.custom.version
            for role in (targets, auto)
            for file in map(from_target_file, role.targets.values())
            if file.custom.model == request.model and file.custom.kind == "inference"
        ),
        default=0,
    )
    if request.version <= newest:
        raise RefusedError(f"version {request.version} of {request.model} is not newer than {newest}, which is signed")


def promote(context: WorkerContext, job: Job) -> Result:
    """Promote an aggregate, if it passes.

    Returns:
        The job's result: `version`, `passed`, `report`.

    Raises:
        RefusedError, TrustError: the worker may not sign this.
    """
    request = parse_request(job["payload"])
    context.repository.refresh()
    role = auto_role(request.channel)
    trusted = context.repository.targets().signed
    check_opted_in(trusted, request.channel)
    config = models.load_config(context.config)
    check_request(request, trusted, context.repository.role(role).signed, models.model_of(config))

    context.stage("fetching the weights")
    weights = read_tensors(context.fetch(request.weights_sha256, MAX_UPDATE_BYTES))
    folder = context.out / f"{request.federation}-{request.version}"
    shutil.rmtree(folder, ignore_errors=True)
    context.stage("evaluating the aggregate")
    judged = models.judge(config, weights, context.run, folder / "run")
    if not judged.passed:
        context.say(f"version {request.version} of {request.model} did not pass the gate")
        return {"version": request.version, "passed": False, "report": judged.report}
    context.stage("converting")
    converted = models.convert(folder / "run", request.profiles, folder / "bundles", request.version)
    report = {**judged.report, "bundles": converted.report}
    if not converted.passed:
        context.say(f"version {request.version} of {request.model} missed a budget")
        return {"version": request.version, "passed": False, "report": report}
    context.stage("signing and publishing")
    _release(context, request, converted.bundles, folder / "release")
    context.say(f"promoted {request.model} {request.version} to {request.channel}")
    return {"version": request.version, "passed": True, "report": report}


def _release(context: WorkerContext, request: PromoteRequest, paths: tuple[Path, ...], folder: Path) -> None:
    role = auto_role(request.channel)
    context.repository.refresh()
    trusted = context.repository.role(role).signed
    bundles = [read_bundle(path, request.channel) for path in paths]
    for bundle in bundles:
        made = (bundle.manifest.model, bundle.manifest.version, bundle.manifest.kind)
        if made != (request.model, request.version, "inference") or bundle.manifest.profile not in request.profiles:
            raise TrustError(f"{bundle.source.name} is not what the job asked for")
    release = releases.create(
        folder,
        request.channel,
        {role: bundles},
        {role: trusted},
        {role: context.keys.signers(role)},
        now=datetime.now(UTC).replace(microsecond=0),
    )
    publish(context.client, context.repository, release)
