"""Danger: the published description of the wire drifts from the code."""

from __future__ import annotations

import json
from pathlib import Path

from edgewise_protocol.schema import CHANNELS, asyncapi

ROOT = Path(__file__).resolve().parents[2]


def test_the_committed_asyncapi_document_is_current() -> None:
    committed = json.loads((ROOT / "docs" / "asyncapi.json").read_text())
    assert committed == json.loads(json.dumps(asyncapi())), (
        "run: python -m edgewise_protocol.schema > docs/asyncapi.json"
    )


def test_every_reference_resolves() -> None:
    document = asyncapi()

    def walk(node: object) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                found: object = document
                for part in node["$ref"].removeprefix("#/").split("/"):
                    assert isinstance(found, dict)
                    found = found[part]
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)
    assert len(document["channels"]) == len(CHANNELS)
