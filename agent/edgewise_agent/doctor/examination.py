"""The whole examination, in order: what is wrong further up often explains what is wrong below."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from edgewise_agent.app import INSTALLED_FILE
from edgewise_agent.config import AgentConfig
from edgewise_agent.doctor import identity, installed, machine, network, process, state_folder, trust
from edgewise_agent.doctor.check import Check, warn
from edgewise_agent.errors import AgentError
from edgewise_agent.identity.identity import Identity
from edgewise_agent.session.proxy import parse_proxy
from edgewise_agent.session.shell import Endpoint


def examine(state: Path, config: AgentConfig, *, deep: bool = False, offline: bool = False) -> tuple[Check, ...]:
    """Look at everything, judge it; changes nothing.

    Args:
        deep: check every byte of the bundles in use.
        offline: try no connection.
    """
    now = datetime.now(UTC)
    folder = state_folder.look(state)
    checks = list(state_folder.judge(folder, config.min_free_mib))
    if not folder.exists or not folder.readable:
        return tuple(checks)
    identities = identity.look(state, now)
    found = installed.look(state, INSTALLED_FILE, deep=deep)
    models = found.state.models if found.state is not None else {}
    running = process.look(state, {name: model.boots for name, model in models.items()})
    checks += process.judge(running, config.probation.max_boots)
    checks += identity.judge(identities, now)
    checks.append(identity.judge_clock(identity.look_at_clock(state, identities.identity, now.timestamp())))
    checks += trust.judge(trust.look(state / "metadata"), now)
    needed = frozenset(m.target.custom.engine for m in models.values() if m.target and m.target.custom.engine)
    board = identities.card.simulated_board if identities.card is not None else ""
    checks += machine.judge(machine.look(needed, board, config.board))
    checks += installed.judge(found)
    checks.append(machine.judge_outbox(machine.look_at_outbox(state / "outbox.sqlite"), config.outbox_max_mib))
    if offline:
        checks.append(warn("network", "not tried (--offline)"))
    elif identities.identity is not None:
        checks += _network(identities.identity, config, running)
    return tuple(checks)


def _network(found: Identity, config: AgentConfig, running: process.Process) -> list[Check]:
    server = network.reach_server(found.card.server_url, found.fleet_ca)
    try:
        broker: network.Reach | AgentError = network.reach_broker(
            endpoint_of(found, config), say_connect=not running.runs
        )
    except AgentError as error:
        broker = error
    return [
        network.judge_reach("server", server),
        network.judge_reach("broker", broker, running_online=running.online),
    ]


def endpoint_of(found: Identity, config: AgentConfig) -> Endpoint:
    """Where the agent finds its broker; raises `IdentityError`, `ConfigError`."""
    broker = found.card.broker
    return Endpoint(
        broker.host,
        config.broker_port or broker.port,
        found.card.device_id,
        config.keepalive_s,
        found.tls(),
        config.broker_transport or broker.transport,
        broker.path,
        parse_proxy(config.proxy_url),
    )
