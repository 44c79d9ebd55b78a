"""JSON Schema of every message and the AsyncAPI 3 document of the wire, from the models.

    python -m edgewise_protocol.schema > docs/asyncapi.json

A test holds the committed document against this module.
"""

from __future__ import annotations

import inspect
import json
import sys
from typing import Any, Final, NamedTuple

import msgspec

from edgewise_protocol import messages, topics
from edgewise_protocol.assignment import AssignmentBody
from edgewise_protocol.enrolment import EnrolmentFile
from edgewise_protocol.manifest import Manifest
from edgewise_protocol.rounds import OfferBody
from edgewise_protocol.sketches import Baseline


class Channel(NamedTuple):
    """One row of the wire: an address, who sends, and what."""

    key: str
    address: str
    sender: str
    retained: bool
    qos: int
    payload: type[Any] | str
    summary: str


_DEV: Final = f"{topics.PREFIX}/dev/{{device}}"

CHANNELS: Final[tuple[Channel, ...]] = (
    Channel(
        "metadata",
        f"{topics.PREFIX}/meta/{{file}}",
        "server",
        True,
        1,
        "application/json",
        "TUF metadata, consistent snapshots",
    ),
    Channel(
        "blob",
        f"{topics.PREFIX}/blob/{{sha256}}/{{chunk}}",
        "server",
        True,
        1,
        "application/octet-stream",
        "A chunk of a content-addressed file",
    ),
    Channel(
        "assignment",
        f"{_DEV}/assignment",
        "server",
        True,
        1,
        AssignmentBody,
        "TUF Targets metadata signed by the director; the schema is that of its `signed.edgewise` field",
    ),
    Channel("status", f"{_DEV}/status", "device", True, 1, messages.Status, "Birth and last will"),
    Channel("reported", f"{_DEV}/reported", "device", True, 1, messages.Reported, "What runs, since when, why not"),
    Channel("event", f"{_DEV}/event", "device", False, 1, messages.Event, "Something happened"),
    Channel("telemetry", f"{_DEV}/telemetry", "device", False, 1, messages.Telemetry, "Counters of one window"),
    Channel("drift", f"{_DEV}/drift", "device", False, 1, messages.Drift, "Sketches of one window"),
    Channel("ack", f"{_DEV}/ack", "server", False, 1, messages.Ack, "What is stored, and upload credits"),
    Channel("want", f"{_DEV}/want", "device", False, 1, messages.Want, "What the broker lacks; publish it again"),
    Channel(
        "round",
        f"{topics.PREFIX}/round/{{round}}",
        "server",
        True,
        1,
        OfferBody,
        "TUF Targets metadata signed by the offers role; the schema is that of its `signed.edgewise` field",
    ),
    Channel(
        "updateReady",
        f"{_DEV}/update-ready",
        "device",
        False,
        1,
        messages.UpdateReady,
        "A trained update asks for credits",
    ),
    Channel(
        "update",
        f"{_DEV}/update/{{round}}/{{chunk}}",
        "device",
        False,
        1,
        "application/octet-stream",
        "A chunk of an update (safetensors)",
    ),
)

DOCUMENTS: Final[tuple[type[Any], ...]] = (Manifest, Baseline, EnrolmentFile)
"""Documents that do not travel as messages but cross the same boundary."""


def json_schemas() -> dict[str, Any]:
    """JSON Schema 2020-12 of every message and document, by type name."""
    kinds = [c.payload for c in CHANNELS if isinstance(c.payload, type)]
    _, found = msgspec.json.schema_components([*kinds, *DOCUMENTS], ref_template="#/components/schemas/{name}")
    for schema in found.values():
        # msgspec gives docstrings as they stand in the code before 0.23, and dedented since.
        if "description" in schema:
            schema["description"] = inspect.cleandoc(schema["description"])
    return found


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI 3.0 document."""
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    component_messages: dict[str, Any] = {}
    for row in CHANNELS:
        message: dict[str, Any] = {"summary": row.summary}
        if isinstance(row.payload, type):
            message |= {
                "contentType": "application/json",
                "payload": {"$ref": f"#/components/schemas/{row.payload.__name__}"},
            }
        else:
            message |= {"contentType": row.payload}
        component_messages[row.key] = message
        parameters = [part[1:-1] for part in row.address.split("/") if part.startswith("{")]
        channels[row.key] = {
            "address": row.address,
            "messages": {row.key: {"$ref": f"#/components/messages/{row.key}"}},
        }
        if parameters:
            channels[row.key]["parameters"] = {name: {} for name in parameters}
        operations[f"{row.sender}Sends{row.key[0].upper()}{row.key[1:]}"] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{row.key}"},
            "summary": row.summary,
            "bindings": {"mqtt": {"qos": row.qos, "retain": row.retained}},
        }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Edgewise wire",
            "version": "1.0",
            "description": "MQTT 5 between the fleet server and its devices. A message is a hint or a report: "
            "what a device trusts is signed inside the payload.",
        },
        "channels": channels,
        "operations": operations,
        "components": {"messages": component_messages, "schemas": json_schemas()},
    }


def main() -> None:
    """Print the AsyncAPI document."""
    json.dump(asyncapi(), sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
