"""Dependencies of routes: the running server's context."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from edgewise_server.context import Context


def get_context(request: Request) -> Context:
    """What the roles of the server share."""
    context: Context = request.app.state.edgewise
    return context


ContextDep = Annotated[Context, Depends(get_context)]
