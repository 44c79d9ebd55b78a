"""The REST interface as an OpenAPI 3.1 document, without a server.

    python -m edgewise_server.api.document > docs/openapi.json

A test holds the committed document against this module.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

from fastapi.openapi.utils import get_openapi

from edgewise_server.api.access import VERSION
from edgewise_server.api.auth import PREFIX
from edgewise_server.api.routers import api_router, demands, routes

TITLE: Final = "Edgewise fleet server"
DESCRIPTION: Final = "Registry, trust, devices, rollouts, monitoring and federation of a fleet."


def openapi() -> dict[str, Any]:
    """The document; `x-roles` of an operation are the token roles that may call it, empty where none is needed."""
    document = get_openapi(
        title=TITLE, version=VERSION, description=DESCRIPTION, routes=api_router().routes, openapi_version="3.1.0"
    )
    for route in routes():
        needed = demands(route.dependant)
        for method in route.methods or ():
            operation = document["paths"][PREFIX + route.path_format].get(method.lower())
            if operation is not None:
                operation["x-roles"] = list(needed.allowed) if needed is not None else []
    return document


def main() -> None:
    """Print the document."""
    json.dump(openapi(), sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
