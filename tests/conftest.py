"""What every room's tests share: Hypothesis judges answers, not how busy the machine is."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Both measure wall-clock time, which other processes on the cores make long.
settings.register_profile("edgewise", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("edgewise")
