"""Clocks of NVIDIA GPUs through NVML: one locked clock per device, which root may set on Volta and newer.

Written from the documentation of NVML (nvmlDeviceSetGpuLockedClocks, nvmlDeviceResetGpuLockedClocks); it has been run
against a stand-in for `pynvml` alone, never against a GPU. A lock is a wish: heat and power limits go below it. NVML
does not tell which lock it finds, so giving a device back also lifts a lock that an administrator had set.
"""

import importlib
from collections.abc import Sequence
from typing import Any

from elaswave.config import Dvfs
from elaswave.dvfs.backend import Capabilities, nearest, within
from elaswave.dvfs.guard import Guard
from elaswave.errors import ConfigError

INSTALL = "pip install nvidia-ml-py"


class Nvml:
    """GPUs of this machine, by NVML's index, which CUDA_VISIBLE_DEVICES does not change.

    Args:
        settings: range.
        devices: GPUs that are to be set.
        library: what has the functions of `pynvml`; imported by default.

    Raises:
        ConfigError: there is no `pynvml`, no driver, no such GPU, or this user may not set clocks.
    """

    def __init__(self, settings: Dvfs, devices: Sequence[int], library: Any = None) -> None:
        self._settings, self._nvml = settings, library or _library()
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            raise _refusal(f"NVML does not start: {error}; a driver and a GPU are needed") from error
        self._handles = {device: self._handle(device) for device in devices}
        self._ranges = {device: within(settings, self._offered(device), f"GPU {device}") for device in devices}
        self._nominal = {device: self._default(device) for device in devices}
        self._asked: dict[int, int] = {}
        self._guard = Guard("nvml", self.reset)
        for device in devices:
            self._lock_nominal(device)

    def capabilities(self, device: int) -> Capabilities:
        nominal, top = self._nominal[device], self.range_mhz(device)[-1]
        measured = self.power_w(device) is not None
        return Capabilities(name="nvml", nominal_mhz=nominal, boost=top > nominal, power=measured, guarded=True)

    def range_mhz(self, device: int) -> tuple[int, ...]:
        self._check(device)
        return self._ranges[device]

    def set(self, device: int, mhz: int) -> int:
        target = nearest(self.range_mhz(device), mhz)
        if self._asked.get(device) == target:
            return target
        try:
            self._guard.before(device, {"nvml": [device]})
            self._nvml.nvmlDeviceSetGpuLockedClocks(self._handles[device], target, target)
        except (OSError, self._nvml.NVMLError):
            return self._asked.get(device, self._nominal[device])
        self._asked[device] = target
        return target

    def get(self, device: int) -> int:
        """The clock that the device runs at now, below the locked one when it is idle or hot."""
        self._check(device)
        return int(self._nvml.nvmlDeviceGetClockInfo(self._handles[device], self._nvml.NVML_CLOCK_SM))

    def power_w(self, device: int) -> float | None:
        self._check(device)
        try:
            return self._nvml.nvmlDeviceGetPowerUsage(self._handles[device]) / 1000
        except self._nvml.NVMLError:
            return None

    def reset(self) -> None:
        for device in self._asked:
            try:
                self._nvml.nvmlDeviceResetGpuLockedClocks(self._handles[device])
            except self._nvml.NVMLError:
                continue
        self._asked.clear()
        self._guard.close()

    def _handle(self, device: int) -> Any:
        try:
            return self._nvml.nvmlDeviceGetHandleByIndex(device)
        except self._nvml.NVMLError as error:
            raise ConfigError("device", device, f"there is no such GPU: {error}") from error

    def _offered(self, device: int) -> list[int]:
        """Graphics clocks at the highest memory clock, MHz."""
        handle = self._handles[device]
        try:
            memory = max(self._nvml.nvmlDeviceGetSupportedMemoryClocks(handle))
            return [int(mhz) for mhz in self._nvml.nvmlDeviceGetSupportedGraphicsClocks(handle, memory)]
        except (ValueError, self._nvml.NVMLError) as error:
            raise _refusal(f"GPU {device} does not tell its clocks: {error}") from error

    def _default(self, device: int) -> int:
        """The clock that applications get by default, else the highest."""
        if self._settings.nominal_mhz:
            return self._settings.nominal_mhz
        try:
            kind = self._nvml.NVML_CLOCK_GRAPHICS
            return int(self._nvml.nvmlDeviceGetDefaultApplicationsClock(self._handles[device], kind))
        except self._nvml.NVMLError:
            return self._ranges[device][-1]

    def _lock_nominal(self, device: int) -> None:
        """Begin at the nominal clock; where that is not permitted nothing is."""
        target = nearest(self._ranges[device], self._nominal[device])
        try:
            self._guard.before(device, {"nvml": [device]})
            self._nvml.nvmlDeviceSetGpuLockedClocks(self._handles[device], target, target)
        except (OSError, self._nvml.NVMLError) as error:
            self.reset()
            told = f"the clocks of GPU {device} may not be set: {error}; run as root, or let an administrator allow it"
            raise _refusal(told) from error
        self._asked[device] = target

    def _check(self, device: int) -> None:
        if device not in self._handles:
            raise ConfigError("device", device, f"was not opened; use one of {sorted(self._handles)}")


def _library() -> Any:
    try:
        return importlib.import_module("pynvml")
    except ImportError as error:
        raise _refusal(f"needs pynvml: {INSTALL}") from error


def _refusal(told: str) -> ConfigError:
    return ConfigError("dvfs.backend", "nvml", f"{told}; or use 'simulated'")
