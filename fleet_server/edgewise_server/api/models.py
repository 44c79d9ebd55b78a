"""Routes: models, versions, stages."""

from __future__ import annotations

from fastapi import APIRouter
from sqlmodel import Session

from edgewise_server.api.auth import Operator, ViewerOrWorker
from edgewise_server.api.deps import ContextDep
from edgewise_server.api.schemas import (
    BundleOut,
    Items,
    ModelDetail,
    ModelOut,
    StageIn,
    VersionDetail,
    VersionSummary,
)
from edgewise_server.db import SessionDep
from edgewise_server.models.registry import Target
from edgewise_server.services import audit, models, registry

router = APIRouter(tags=["models"])


@router.get("/models", summary="All models with their versions")
def list_models(session: SessionDep, _: ViewerOrWorker) -> Items[ModelOut]:
    return Items(
        items=[
            ModelOut(
                model=name,
                latest=max(v.version for v in versions),
                production=next((v.version for v in versions if v.stage == "production"), None),
                versions=[v.version for v in versions],
                channels=_channels(models.targets_of(session, name)),
            )
            for name, versions in models.by_model(session).items()
        ]
    )


@router.get("/models/{model}", summary="A model's versions and its signed floor")
def get_model(model: str, session: SessionDep, context: ContextDep, _: ViewerOrWorker) -> ModelDetail:
    versions = registry.versions_of(session, model)
    rows = models.targets_of(session, model)
    summaries = []
    for version in versions:
        own = [row for row in rows if row.version == version.version]
        summaries.append(
            VersionSummary(
                version=version.version,
                stage=version.stage,
                created_at=version.created_at,
                channels=_channels(own),
                bundles=len(own),
            )
        )
    floor = models.floor_of(context.repository.current(session), model)
    return ModelDetail(model=model, floor=floor, versions=summaries)


@router.get("/models/{model}/versions/{version}", summary="A version: bundles per profile, lineage, metrics")
def get_version(model: str, version: int, session: SessionDep, _: ViewerOrWorker) -> VersionDetail:
    return _detail(session, model, version)


@router.put("/models/{model}/versions/{version}/stage", summary="Set a version's stage")
def set_stage(model: str, version: int, body: StageIn, session: SessionDep, who: Operator) -> VersionDetail:
    registry.set_stage(session, model, version, body.stage)
    audit.record(session, who.name, "model.stage", f"{model}/{version}", {"stage": body.stage})
    return _detail(session, model, version)


def _detail(session: Session, model: str, version: int) -> VersionDetail:
    found = registry.version_of(session, model, version)
    bundles = models.bundles(session, model, version)
    rows = [bundle.row for bundle in bundles]
    return VersionDetail(
        model=model,
        version=version,
        stage=found.stage,
        created_at=found.created_at,
        channels=_channels(rows),
        lineage=models.shared_lineage(rows),
        bundles=[_bundle(bundle) for bundle in bundles],
    )


def _bundle(bundle: models.Bundle) -> BundleOut:
    row, manifest = bundle.row, registry.manifest_of(bundle.row)
    return BundleOut(
        path=row.path,
        channel=row.channel,
        role=row.role,
        profile=row.profile,
        engine=manifest.requires.engine,
        format=manifest.format,
        precision=manifest.precision,
        sha256=row.sha256,
        length=row.length,
        chunk_index=row.custom["chunk_index"],
        compatible=list(manifest.requires.compatible),
        metrics=manifest.metrics,
        lineage=manifest.lineage,
        trusted=row.trusted,
        attested_by=bundle.attested_by,
    )


def _channels(rows: list[Target]) -> list[str]:
    return sorted({row.channel for row in rows})
