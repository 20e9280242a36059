"""Back ends of clocks: what is applied is told, and every device is given back, whatever becomes of the process."""

import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

from elaswave.config import Config, Dvfs, from_mapping
from elaswave.dvfs.backend import open_backend
from elaswave.dvfs.cpufreq import Cpufreq
from elaswave.dvfs.nvml import Nvml
from elaswave.dvfs.simulated import Simulated
from elaswave.dvfs.watchdog import carry_out
from elaswave.errors import ConfigError
from elaswave.planner.frequency import choose, settle

SETTER = """
import os, signal, sys
from pathlib import Path
from elaswave.config import Dvfs
from elaswave.dvfs.cpufreq import Cpufreq

backend = Cpufreq(Dvfs(), [0, 1], Path(sys.argv[1]))
backend.set(0, 1800)
backend.reset()  # the next clock needs a new watchdog
assert [backend.set(core, 1200) for core in (0, 1)] == [1200, 1200]
forked = os.fork()  # holds copies of every descriptor, and outlives its parent
if forked == 0:
    os.close(1)
    signal.pause()
print(forked, flush=True)
sys.stdin.read()
"""


class Refused(Exception):
    pass


class FakeNvml(types.SimpleNamespace):
    """As much of pynvml as is used: two GPUs, of which the locks are recorded."""

    NVMLError = Refused
    NVML_CLOCK_SM, NVML_CLOCK_GRAPHICS = 1, 0

    def __init__(self, permitted=True):
        super().__init__(locked={}, calls=[], permitted=permitted)

    def nvmlInit(self):
        self.calls.append("init")

    def nvmlDeviceGetHandleByIndex(self, index):
        if index > 1:
            raise Refused("Invalid Argument")
        return index

    def nvmlDeviceGetSupportedMemoryClocks(self, handle):
        return [1593, 810]

    def nvmlDeviceGetSupportedGraphicsClocks(self, handle, memory):
        return [1980, 1500, 1200, 900, 600] if memory == 1593 else [300]

    def nvmlDeviceGetDefaultApplicationsClock(self, handle, kind):
        return 1500

    def nvmlDeviceSetGpuLockedClocks(self, handle, low, high):
        if not self.permitted:
            raise Refused("Insufficient Permissions")
        if low == 900:
            raise Refused("Not Supported")
        self.calls.append((handle, low))
        self.locked[handle] = (low, high)

    def nvmlDeviceResetGpuLockedClocks(self, handle):
        self.locked.pop(handle, None)

    def nvmlDeviceGetClockInfo(self, handle, kind):
        return self.locked.get(handle, (345, 345))[0]

    def nvmlDeviceGetPowerUsage(self, handle):
        if handle == 1:
            raise Refused("Not Supported")
        return 71_500


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """Two cores with cpufreq; the second lists its clocks."""
    for core in (0, 1):
        folder = tmp_path / f"cpu{core}" / "cpufreq"
        folder.mkdir(parents=True)
        for name, khz in {"cpuinfo_min_freq": 800_000, "cpuinfo_max_freq": 2_400_000}.items():
            (folder / name).write_text(f"{khz}\n")
        (folder / "scaling_max_freq").write_text("2000000\n")
        (folder / "base_frequency").write_text("1800000\n")
    (tmp_path / "cpu1/cpufreq/scaling_available_frequencies").write_text("2400000 1800000 1200000 800000\n")
    return tmp_path


def limits(sysfs: Path) -> list[str]:
    return [(sysfs / f"cpu{core}/cpufreq/scaling_max_freq").read_text().strip() for core in (0, 1)]


def test_clocks_are_left_alone_by_default():
    assert open_backend(Config().dvfs, [0]) is None


def test_the_simulated_device_obeys_within_its_range():
    backend = open_backend(from_mapping({"dvfs": {"backend": "simulated"}}).dvfs, [0])
    assert isinstance(backend, Simulated)
    assert (backend.range_mhz(0)[0], backend.range_mhz(0)[-1], backend.get(0)) == (500, 1200, 1000)
    assert [backend.set(0, mhz) for mhz in (1100, 1503, 1, 914)] == [1100, 1200, 500, 910]
    assert (backend.get(0), backend.get(1)) == (910, 1000)
    assert backend.power_w(0) < backend.power_w(1) == 400
    assert backend.slowdown(0) > backend.slowdown(1) == 1
    backend.reset()
    backend.reset()
    assert backend.get(0) == 1000
    with pytest.raises(ConfigError, match="device = -1"):
        backend.set(-1, 900)


def test_the_simulated_range_is_the_one_that_is_set():
    backend = Simulated(Dvfs(nominal_mhz=1410, min_mhz=705, max_mhz=1410))
    assert (backend.range_mhz(0)[0], backend.range_mhz(0)[-1]) == (705, 1410)
    assert not backend.capabilities(0).boost


def test_a_plan_settles_on_what_devices_apply():
    backend = Simulated(Dvfs(), caps={1: 1000, 2: 0})
    asked = choose([1.0, 1.25, 0.8, 1.0], backend.range_mhz(0), backend.profile, boost=1.1)
    assert asked.mhz[1] == 1100
    clocks = settle(asked, lambda mhz: [backend.set(device, clock) for device, clock in enumerate(mhz)])
    assert clocks.mhz == tuple(backend.get(device) for device in range(4))
    assert clocks.mhz[1:3] == (1000, 1000)
    assert clocks.step_s == pytest.approx(1.25)
    assert clocks.mhz[0] < asked.mhz[0]


def test_cpufreq_sets_the_limit_and_gives_it_back(sysfs: Path):
    backend = Cpufreq(Dvfs(), [0, 1], sysfs)
    assert backend.range_mhz(1) == (800, 1200, 1800, 2400)
    assert (len(backend.range_mhz(0)), backend.range_mhz(0)[0], backend.range_mhz(0)[-1]) == (33, 800, 2400)
    assert backend.capabilities(0).nominal_mhz == 1800
    assert backend.capabilities(0).boost
    assert (backend.set(0, 1000), backend.set(1, 1300)) == (1000, 1200)
    assert limits(sysfs) == ["1000000", "1200000"]
    assert (backend.get(1), backend.power_w(1)) == (1200, None)
    backend.reset()
    backend.reset()
    assert limits(sysfs) == ["2000000", "2000000"]
    assert backend.set(1, 1300) == 1200
    backend.reset()
    assert limits(sysfs) == ["2000000", "2000000"]


def test_what_a_core_refuses_is_told(sysfs: Path):
    backend = Cpufreq(Dvfs(), [0], sysfs)
    limit = sysfs / "cpu0/cpufreq/scaling_max_freq"
    limit.unlink()
    limit.mkdir()
    assert backend.set(0, 1000) == 2400
    backend.reset()


@pytest.mark.parametrize("end", ["exit", "kill", "kill the group"])
def test_clocks_are_put_back_when_the_process_ends(sysfs: Path, end: str):
    setter = subprocess.Popen(
        [sys.executable, "-c", SETTER, str(sysfs)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert setter.stdout is not None
    assert setter.stdin is not None
    forked = int(setter.stdout.readline())
    assert limits(sysfs) == ["1200000", "1200000"]
    try:
        if end == "exit":
            setter.stdin.close()
        elif end == "kill":
            setter.kill()
        else:
            os.killpg(setter.pid, signal.SIGKILL)
        setter.stdout.read()  # ends when the watchdog, which holds no end of it, cannot keep it open
        setter.wait(30)
        wait_for(lambda: limits(sysfs) == ["2000000", "2000000"])
    finally:
        if end != "kill the group":
            os.kill(forked, signal.SIGKILL)
        setter.stdin.close()
        setter.stdout.close()


def wait_for(condition) -> None:
    """Until it holds; the test's own timeout ends a wait in vain."""
    while not condition():
        os.sched_yield()


def test_orders_that_cannot_be_carried_out_keep_none_of_the_others_back(tmp_path: Path):
    carry_out([{"path": str(tmp_path / "no/such"), "text": "1"}, {}, {"path": str(tmp_path / "there"), "text": "2"}])
    assert (tmp_path / "there").read_text() == "2"


def test_no_cpufreq_is_an_error_that_says_so(tmp_path: Path):
    with pytest.raises(ConfigError, match="virtual machines have none: use 'simulated'") as caught:
        Cpufreq(Dvfs(), [0], tmp_path)
    assert caught.value.key == "dvfs.backend"


def test_bounds_that_leave_no_clock_are_an_error(sysfs: Path):
    with pytest.raises(ConfigError, match=r"core 0 offers 800 .. 2400 MHz; widen the bounds"):
        Cpufreq(Dvfs(min_mhz=3000), [0], sysfs)


def test_a_core_that_was_not_opened_is_refused(sysfs: Path):
    backend = Cpufreq(Dvfs(), [0], sysfs)
    with pytest.raises(ConfigError, match="device = 1"):
        backend.set(1, 1000)
    backend.reset()


def test_nvml_locks_and_gives_back():
    library = FakeNvml()
    backend = Nvml(Dvfs(), [0, 1], library)
    assert library.locked == {0: (1500, 1500), 1: (1500, 1500)}
    assert backend.range_mhz(0) == (600, 900, 1200, 1500, 1980)
    assert (backend.set(0, 1900), backend.set(0, 1900), backend.set(1, 900)) == (1980, 1980, 1500)
    assert library.calls == ["init", (0, 1500), (1, 1500), (0, 1980)]
    assert (backend.get(0), backend.power_w(0), backend.power_w(1)) == (1980, 71.5, None)
    assert backend.capabilities(0).boost
    assert not backend.capabilities(1).power
    backend.reset()
    assert library.locked == {}


def test_nvml_says_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="Insufficient Permissions; run as root") as caught:
        Nvml(Dvfs(), [0], FakeNvml(permitted=False))
    assert caught.value.key == "dvfs.backend"
    with pytest.raises(ConfigError, match="no such GPU"):
        Nvml(Dvfs(), [2], FakeNvml())
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(ConfigError, match="needs pynvml: pip install nvidia-ml-py; or use 'simulated'"):
        open_backend(Dvfs(backend="nvml"), [0])


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"backend": "overclock"}, "dvfs.backend"),
        ({"min_mhz": 1200, "nominal_mhz": 1000}, "dvfs.min_mhz"),
        ({"min_mhz": 1200, "max_mhz": 1000}, "dvfs.min_mhz"),
        ({"nominal_mhz": 1200, "max_mhz": 1000}, "dvfs.nominal_mhz"),
        ({"boost": 0.9}, "dvfs.boost"),
        ({"compute_share": 1.5}, "dvfs.compute_share"),
        ({"knee": 1.0}, "dvfs.knee"),
        ({"dynamic_w": 0}, "dvfs.dynamic_w"),
        ({"frequency": 1}, "dvfs.frequency"),
    ],
)
def test_wrong_settings_are_refused(values, key):
    with pytest.raises(ConfigError) as caught:
        from_mapping({"dvfs": values})
    assert caught.value.key == key
