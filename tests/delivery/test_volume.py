"""Danger: what holds for a few hundred messages does not hold for very many, through one fault after another."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", [5_000, 100_000])
def test_through_a_broker_restart_a_server_kill_and_a_bridge_stall(make_world: Callable[..., Any], number: int) -> None:
    world = make_world(devices=20 if number < 50_000 else 50, queued=500)
    began = time.monotonic()
    fill = threading.Thread(target=world.put, args=(number,))
    fill.start()
    try:
        world.wait("a tenth is stored", lambda: world.stored() > number // 10, 120)
        world.broker.restart()
        world.wait("three tenths are stored", lambda: world.stored() > 3 * number // 10, 240)
        world.server.kill()
        world.start_server()
        world.wait("half is stored", lambda: world.stored() > number // 2, 240)
        world.signal(signal.SIGSTOP)
        waiting = world.stored()
        # Longer than the devices wait before they send again: the broker's queue of 500 overflows meanwhile.
        stalled_until = time.monotonic() + 5.0
        world.wait("the stall is over", lambda: time.monotonic() > stalled_until)
        assert world.stored() == waiting
        world.signal(signal.SIGCONT)
    finally:
        fill.join()
    world.settle(600)
    elapsed = time.monotonic() - began
    assert world.stored() == number
    dropped = sum(phone.outbox.dropped for phone in world.phones)
    print(f"\n{number} messages of {len(world.phones)} devices in {elapsed:.1f} s; lost 0, twice 0, given up {dropped}")
