"""Set the clocks of devices: one small interface, behind it a simulation, NVML, or the kernel's cpufreq.

A back end never leaves a device as it set it: `reset` gives it back, at exit too, and when the process dies without a
word a watchdog does it (see `watchdog`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from elaswave.config import Dvfs, DvfsBackend
from elaswave.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a back end can do here.

    Attributes:
        name: of the back end.
        nominal_mhz: the clock that a device runs at, or up to, by itself.
        boost: clocks above the nominal one can be set.
        power: `power_w` measures.
        guarded: clocks are reset even when the process is killed; false where nothing real is set.
    """

    name: str
    nominal_mhz: int
    boost: bool
    power: bool
    guarded: bool


class Backend(Protocol):
    """Clocks of the devices of one host, by index. Not for several threads at once."""

    def capabilities(self, device: int) -> Capabilities: ...

    def range_mhz(self, device: int) -> tuple[int, ...]:
        """Clocks that can be asked for, ascending, never empty."""
        ...

    def set(self, device: int, mhz: int) -> int:
        """Ask for a clock; returns the one that is applied: another one when the request is clipped or refused.

        Asking again for the same changes nothing. Raises ConfigError for a device that is not there.
        """
        ...

    def get(self, device: int) -> int:
        """The clock that is in force now, MHz."""
        ...

    def power_w(self, device: int) -> float | None:
        """What the device draws now; None where that cannot be measured."""
        ...

    def reset(self) -> None:
        """Give every device back as it was found; calling it again does nothing. Never raises."""
        ...


def open_backend(settings: Dvfs, devices: Sequence[int]) -> Backend | None:
    """The back end that the settings name, ready to set these devices; None when clocks are left alone.

    Raises:
        ConfigError: it cannot work here; says what is missing.
    """
    match settings.backend:
        case DvfsBackend.OFF:
            return None
        case DvfsBackend.SIMULATED:
            from elaswave.dvfs.simulated import Simulated

            return Simulated(settings)
        case DvfsBackend.CPUFREQ:
            from elaswave.dvfs.cpufreq import Cpufreq

            return Cpufreq(settings, devices)
        case DvfsBackend.NVML:
            from elaswave.dvfs.nvml import Nvml

            return Nvml(settings, devices)


def within(settings: Dvfs, offered: Sequence[int], key: str) -> tuple[int, ...]:
    """Of the clocks that a device offers those that the settings allow, ascending.

    Args:
        settings: `min_mhz` and `max_mhz` bound what is offered.
        offered: MHz.
        key: of the device, for the error.

    Raises:
        ConfigError: none is left.
    """
    found = tuple(
        sorted(
            {mhz for mhz in offered if settings.min_mhz <= mhz and (not settings.max_mhz or mhz <= settings.max_mhz)}
        )
    )
    if not found:
        bounds = f"{settings.min_mhz or '-'} .. {settings.max_mhz or '-'} MHz"
        offers = f"{min(offered)} .. {max(offered)} MHz" if offered else "no clocks"
        raise ConfigError(
            "dvfs.min_mhz, dvfs.max_mhz", bounds, f"{key} offers {offers}; widen the bounds, or set them to 0"
        )
    return found


def nearest(range_mhz: Sequence[int], mhz: float) -> int:
    """The clock that can be asked for and is next to `mhz`; the lower of two."""
    return min(range_mhz, key=lambda offered: (abs(offered - mhz), offered))
