"""The strategies by name. A new one is a file beside this and a line here."""

from __future__ import annotations

from typing import Final

from edgewise_server.errors import InvalidError
from edgewise_server.federation.strategies.fedavg import FedAvg
from edgewise_server.federation.strategies.strategy import Strategy

STRATEGIES: Final[dict[str, type[Strategy]]] = {"fedavg": FedAvg}


def strategy_named(name: str) -> type[Strategy]:
    """The strategy's class; raise `InvalidError` if there is none of that name."""
    try:
        return STRATEGIES[name]
    except KeyError:
        raise InvalidError(f"there is no strategy {name!r}; known: {', '.join(sorted(STRATEGIES))}") from None
