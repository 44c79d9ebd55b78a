"""The agent's watchdog as a whole: which parts must make progress, and the event loop's own sign of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final

from edgewise_agent.config import WatchdogConfig
from edgewise_agent.watchdog.keeper import Keeper
from edgewise_agent.watchdog.liveness import Part
from edgewise_agent.watchdog.notify import Notifier, watchdog_s
from edgewise_agent.watchdog.pulse import Beat, Pulse

_LOOP_BEAT_S: Final = 1.0


class Supervision:
    """Args:
    config: how long each part may be silent.
    status: one line on what the agent does.
    stalled: told of the stuck parts' names when they change.
    """

    def __init__(
        self, config: WatchdogConfig, status: Callable[[], str], stalled: Callable[[tuple[str, ...]], None]
    ) -> None:
        # Named as their threads are, so that the log can show where a stuck one stands.
        self._pulse = Pulse(
            [
                Part("event loop", config.event_loop_s),
                Part("installer", config.installer_s),
                *(Part(name, config.others_s) for name in ("session", "pump", "probation", "identity")),
            ]
        )
        notifier = Notifier(os.environ.get("NOTIFY_SOCKET", ""))
        self._keeper = Keeper(self._pulse, notifier, watchdog_s(os.environ, os.getpid()), status, stalled)
        self._beating: asyncio.Task[None] | None = None

    def beat(self, part: str) -> Beat:
        """What a part calls when it makes progress."""
        return self._pulse.beat(part)

    def ready(self) -> None:
        """The agent serves. Call it from the event loop."""
        self._beating = asyncio.create_task(self._beat_for_ever())
        self._keeper.ready()

    def leave(self) -> None:
        """The agent stops in order."""
        self._keeper.leave()

    async def stop(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
        await asyncio.to_thread(self._keeper.stop)

    async def _beat_for_ever(self) -> None:
        beat = self._pulse.beat("event loop")
        while True:
            beat()
            await asyncio.sleep(_LOOP_BEAT_S)
