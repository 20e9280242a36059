"""Clocks of devices that do not exist: what is asked for is applied, unless a device is told to refuse or to clip.

The job's modelled time scales with them by the model of the planner; nothing real is changed.
"""

from collections.abc import Mapping

from elaswave.config import Dvfs
from elaswave.dvfs.backend import Capabilities, nearest, within
from elaswave.errors import ConfigError
from elaswave.planner.frequency import ClockProfile, profile_of

NOMINAL_MHZ = 1000
FLOOR, CEILING = 0.5, 1.2
"""The range, as shares of the nominal clock."""
STEP_MHZ = 10


class Simulated:
    """Devices that obey.

    Args:
        settings: range and profile.
        caps: highest clock, MHz, that a device really reaches, as when it is too hot; 0 for one that refuses.
    """

    def __init__(self, settings: Dvfs, caps: Mapping[int, int] | None = None) -> None:
        self.profile: ClockProfile = profile_of(settings, NOMINAL_MHZ)
        nominal = self.profile.nominal_mhz
        low, high = settings.min_mhz or round(FLOOR * nominal), settings.max_mhz or round(CEILING * nominal)
        self._range = within(settings, [*range(low, high, STEP_MHZ), high], "the simulated device")
        self._caps, self._set = dict(caps or {}), dict[int, int]()

    def capabilities(self, device: int) -> Capabilities:
        nominal = self.profile.nominal_mhz
        return Capabilities(
            name="simulated", nominal_mhz=nominal, boost=self._range[-1] > nominal, power=True, guarded=False
        )

    def range_mhz(self, device: int) -> tuple[int, ...]:
        return self._range

    def set(self, device: int, mhz: int) -> int:
        if device < 0:
            raise ConfigError("device", device, "give an index that is not negative")
        cap = self._caps.get(device)
        if cap == 0:
            return self.get(device)
        self._set[device] = nearest(self._range, mhz if cap is None else min(mhz, cap))
        return self._set[device]

    def get(self, device: int) -> int:
        return self._set.get(device, nearest(self._range, self.profile.nominal_mhz))

    def slowdown(self, device: int) -> float:
        """How many times as long as at the nominal clock work takes on it; modelled time is multiplied with this."""
        return self.profile.slowdown(self.get(device))

    def power_w(self, device: int) -> float:
        """Of a device that computes, by the model."""
        return self.profile.power_w(self.get(device))

    def reset(self) -> None:
        self._set.clear()
