"""Clocks of CPU cores through the kernel's cpufreq files: the highest frequency that the governor may choose.

Needs write access to `scaling_max_freq`, which root has. A device is a core; cores that share a clock share its limit.
"""

from collections.abc import Sequence
from pathlib import Path

from elaswave.config import Dvfs
from elaswave.dvfs.backend import Capabilities, nearest, within
from elaswave.dvfs.guard import Guard
from elaswave.errors import ConfigError

SYSFS = Path("/sys/devices/system/cpu")
STEPS = 32
"""Clocks that are offered of a range that the kernel does not list."""
KHZ = 1000


class Cpufreq:
    """Cores of this machine.

    Args:
        settings: range.
        devices: cores that are to be set.
        sysfs: where the kernel's files are.

    Raises:
        ConfigError: the kernel has no cpufreq, or its files cannot be written by this user.
    """

    def __init__(self, settings: Dvfs, devices: Sequence[int], sysfs: Path = SYSFS) -> None:
        self._settings, self._sysfs = settings, sysfs
        self._ranges = {device: within(settings, self._offered(device), f"core {device}") for device in devices}
        self._found: dict[int, str] = {}
        for device in devices:
            self._check_writable(device)
        self._guard = Guard("cpufreq", self.reset)

    def capabilities(self, device: int) -> Capabilities:
        nominal = self._nominal(device)
        boost = self.range_mhz(device)[-1] > nominal
        return Capabilities(name="cpufreq", nominal_mhz=nominal, boost=boost, power=False, guarded=True)

    def range_mhz(self, device: int) -> tuple[int, ...]:
        self._check(device)
        return self._ranges[device]

    def set(self, device: int, mhz: int) -> int:
        limit = self._file(device, "scaling_max_freq")
        target = nearest(self.range_mhz(device), mhz) * KHZ
        try:
            before = self._found.get(device) or limit.read_text().strip()
            self._guard.before(device, {"path": str(limit), "text": before})
            self._found[device] = before
            limit.write_text(str(target))
        except OSError:
            pass  # a refusal: what is applied is told all the same
        return self._limit(device)

    def get(self, device: int) -> int:
        """The limit; the clock below it is the governor's choice."""
        self._check(device)
        return self._limit(device)

    def power_w(self, device: int) -> None:
        """Energy counters are of whole packages, not of cores."""
        return

    def reset(self) -> None:
        for device, text in self._found.items():
            try:
                self._file(device, "scaling_max_freq").write_text(text)
            except OSError:
                continue
        self._found.clear()
        self._guard.close()

    def _file(self, device: int, name: str) -> Path:
        return self._sysfs / f"cpu{device}" / "cpufreq" / name

    def _read(self, device: int, name: str) -> int | None:
        try:
            return int(self._file(device, name).read_text())
        except (OSError, ValueError):
            return None

    def _limit(self, device: int) -> int:
        return (self._read(device, "scaling_max_freq") or self.range_mhz(device)[-1] * KHZ) // KHZ

    def _nominal(self, device: int) -> int:
        """The base frequency where it is told, else the limit that was found."""
        if self._settings.nominal_mhz:
            return self._settings.nominal_mhz
        before = self._found.get(device)
        known = self._read(device, "base_frequency") or (int(before) if before else None)
        return known // KHZ if known else self._limit(device)

    def _offered(self, device: int) -> list[int]:
        """The clocks that are listed, or evenly spaced ones between the hardware's bounds, MHz."""
        low, high = self._read(device, "cpuinfo_min_freq"), self._read(device, "cpuinfo_max_freq")
        if device < 0 or low is None or high is None:
            told = f"core {device} has no {self._file(device, 'cpuinfo_max_freq')}; virtual machines have none: "
            raise ConfigError("dvfs.backend", "cpufreq", told + "use 'simulated'")
        try:
            listed = self._file(device, "scaling_available_frequencies").read_text().split()
            return [int(khz) // KHZ for khz in listed] or [high // KHZ]
        except (OSError, ValueError):
            return [(low + (high - low) * step // STEPS) // KHZ for step in range(STEPS + 1)]

    def _check_writable(self, device: int) -> None:
        try:
            self._file(device, "scaling_max_freq").open("r+").close()
        except OSError as error:
            told = f"{self._file(device, 'scaling_max_freq')} cannot be written: {error.strerror}; run as root, or use "
            raise ConfigError("dvfs.backend", "cpufreq", told + "'simulated'") from error

    def _check(self, device: int) -> None:
        if device not in self._ranges:
            raise ConfigError("device", device, f"was not opened; use one of {sorted(self._ranges)}")
