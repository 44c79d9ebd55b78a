"""Danger: a server that dies at a bad moment leaves a rollout stuck, tells a device twice, or gives a version to two.

The server is killed by SIGKILL right before and right after every commit, publication and acknowledgement of a
rollout, and started again; the rollout must complete with every device on the new version by one assignment.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import httpx
import pytest

MAX_STEPS = 300


class Kills:
    """Rollouts on one site, one version each."""

    def __init__(self, site: Any) -> None:
        self.site = site
        self._versions = count(1)

    def undisturbed(self) -> list[str]:
        """A whole rollout; its steps."""
        version = next(self._versions)
        self.site.publish(1)
        self.site.start_server()
        rollout = self.site.ask_for_rollout(version)
        self.site.wait_for("completion", lambda: self.site.completed(rollout))
        self.site.check(rollout, version)
        self.site.server.stop()
        steps: list[str] = self.site.server.steps()
        assert 0 < len(steps) < MAX_STEPS
        return steps

    def killed(self, step: int, side: str) -> bool:
        """A rollout whose server dies at a step; whether it came to that step."""
        site, version = self.site, next(self._versions)
        site.publish(1)
        site.start_server((step, side))
        rollout = site.ask_for_rollout(version)
        if rollout:
            site.wait_for("completion or death", lambda: site.completed(rollout), or_death=True)
        else:
            site.wait_for("death", lambda: False, or_death=True)
        died = site.server.dead
        if died:
            assert site.server.status == -9
            site.start_server()
            rollout = site.ask_for_rollout(version)
            site.wait_for("completion after the kill", lambda: site.completed(rollout))
        try:
            site.check(rollout, version)
        except httpx.TransportError:
            assert not died
            site.wait_for("death, at a step that it came to after completion", lambda: False, or_death=True)
            died = True
        else:
            site.server.stop(or_killed=True)
        return died or site.server.status == -9


@pytest.fixture(scope="module")
def kills(make_site: Callable[[], Any]) -> Kills:
    """A site on which a rollout has been through."""
    made = Kills(make_site())
    made.undisturbed()
    return made


def test_killed_at_a_sample_of_steps(kills: Kills) -> None:
    steps = kills.undisturbed()
    print(f"\n{len(steps)} steps in a rollout of three devices")
    chosen = [1, len(steps) // 3, 2 * len(steps) // 3]
    died = [kills.killed(step, side) for step, side in zip(chosen, ("after", "before", "after"), strict=True)]
    assert died[0] and sum(died) >= 2, f"died at {died} of {chosen}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_every_step(kills: Kills) -> None:
    """Until a whole rollout passes without coming to the step: the number of steps depends on how packets fall."""
    points = []
    for side in ("before", "after"):
        for step in range(1, MAX_STEPS):
            if not kills.killed(step, side):
                break
            points.append((step, side))
    print(f"\nkilled at {len(points)} points of a rollout on {kills.site.context.settings.url.partition(':')[0]}")
    # Seen: 39 and 40; fewer where packets of one moment come as one.
    assert len(points) >= 24
