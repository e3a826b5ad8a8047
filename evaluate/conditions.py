"""What the machine was like while it measured: what it allowed, and what it did besides.

Systems differ in what they tell. What cannot be read is None, and never an error.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import psutil

SPINNING = "allowed, but every other process is suspended"
"""What engines' threads do between two calls, and why it hurts no one: see `worker_process`."""
BUSY = 0.15
"""Load by other programs, a fraction of the CPUs, from which on timings are doubted."""

_LISTEN_S = 0.5
_ROOT = Path("/")
_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal")


@dataclass(frozen=True)
class CpuClock:
    """How the usable CPUs have spent their time until now.

    Attributes:
        total_s: All of it, idle time included.
        stolen_s: What the hypervisor gave to other guests; None where the system does not tell.
    """

    total_s: float
    stolen_s: float | None

    @classmethod
    def read(cls) -> Self:
        """Read the clock; two of them tell what was stolen in between."""
        times = _of_usable(psutil.cpu_times(percpu=True))
        # A guest's time is in its user time too.
        total = sum(sum(one) - sum(_guest(one)) for one in times)
        stolen = [one.steal for one in times if hasattr(one, "steal")]
        return cls(total, sum(stolen) if stolen else None)

    def steal_until(self, later: "CpuClock") -> float | None:
        """Return the fraction of the time that was stolen since this clock was read.

        Args:
            later: A clock that was read after this one.
        """
        passed = later.total_s - self.total_s
        if self.stolen_s is None or later.stolen_s is None or passed <= 0:
            return None
        return max(0.0, later.stolen_s - self.stolen_s) / passed


@dataclass(frozen=True)
class Conditions:
    """What the machine was like while it measured; None is what it does not tell.

    Attributes:
        affinity: CPUs that this process may run on.
        cgroup_cpus: CPUs' worth of time that its control groups allow; None where unlimited.
        governor: Frequency governor of these CPUs; several are separated by commas.
        turbo: Whether they may run above their nominal frequency.
        temperature_c: Of the hottest sensor of the CPU.
        steal: Fraction of these CPUs' time that the hypervisor gave to other guests.
        foreign_load: Fraction of these CPUs that other programs kept busy before or after a race,
            at most.
        spinning: What threads of engines do between two calls.
        gpu_clock_mhz: Clock of the GPU's multiprocessors.
        gpu_temperature_c: Of the GPU.
        gpu_memory_bytes: What is in use of the GPU's memory, by all programs.
    """

    affinity: tuple[int, ...]
    cgroup_cpus: float | None
    governor: str | None
    turbo: bool | None
    temperature_c: float | None
    steal: float | None
    foreign_load: float
    spinning: str = SPINNING
    gpu_clock_mhz: float | None = None
    gpu_temperature_c: float | None = None
    gpu_memory_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return everything, with the CPUs as a list."""
        return asdict(self) | {"affinity": list(self.affinity)}


def read_conditions(
    since: CpuClock,
    foreign_load: float,
    *,
    gpu: Mapping[str, Any] = MappingProxyType({}),
    root: Path = _ROOT,
) -> Conditions:
    """Read what the machine is like, at the end of measuring.

    Args:
        since: The clock as measuring began.
        foreign_load: The most that `foreign_load` found meanwhile.
        gpu: What `read_gpu` found.
        root: Where `sys` and `proc` are mounted.
    """
    cpus = usable()
    return Conditions(
        affinity=cpus,
        cgroup_cpus=cgroup_cpus(root),
        governor=_governor(root, cpus),
        turbo=_turbo(root),
        temperature_c=_temperature_c(),
        steal=since.steal_until(CpuClock.read()),
        foreign_load=foreign_load,
        **gpu,
    )


def foreign_load() -> float:
    """Return the fraction of the usable CPUs that is busy; all engines must be asleep."""
    busy = psutil.cpu_percent(interval=_LISTEN_S, percpu=True)
    return float(np.mean(_of_usable(busy))) / 100


def usable() -> tuple[int, ...]:
    """Return the numbers of the CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def cgroup_cpus(root: Path = _ROOT) -> float | None:
    """Return the CPUs' worth of time that this process's control groups allow.

    Every group on the way up counts, so the least of them is what holds.

    Args:
        root: Where `sys` and `proc` are mounted.

    Returns:
        The limit; None where there is none.
    """
    groups = root / "sys/fs/cgroup"
    limits: list[float] = []
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        mounts = [groups, groups / "unified"] if not controllers else [groups / controllers]
        if not controllers or "cpu" in controllers.split(","):
            limits += (limit for mount in mounts for limit in _quotas(mount, path))
    return min(limits, default=None)


def _quotas(mount: Path, path: str) -> Iterator[float]:
    """Yield the limits of a group and of those above it, of either version of control groups."""
    # Inside a container the path may be that of the host, and its own group be the mount itself.
    inner = PurePosixPath(path.lstrip("/"))
    for directory in (mount / inner, *(mount / above for above in inner.parents)):
        version2 = (_text(directory / "cpu.max") or "").split()
        version1 = [_text(directory / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
        for quota, period in filter(_are_two_numbers, (version2, version1)):
            yield int(quota) / int(period)


def _are_two_numbers(words: list[str]) -> bool:
    """Tell a quota and a period from `max` and -1, which are no limit."""
    return len(words) == 2 and all(word.isdecimal() and int(word) for word in words)


def _governor(root: Path, cpus: tuple[int, ...]) -> str | None:
    frequency = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor"
    found = {_text(root / frequency.format(cpu)) for cpu in cpus} - {None, ""}
    return ", ".join(sorted(map(str, found))) or None


def _turbo(root: Path) -> bool | None:
    cpus = root / "sys/devices/system/cpu"
    if forbidden := _text(cpus / "intel_pstate/no_turbo"):
        return forbidden == "0"
    allowed = _text(cpus / "cpufreq/boost")
    return allowed == "1" if allowed else None


def _temperature_c() -> float | None:
    sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    found = [one.current for name in _CPU_SENSORS for one in sensors.get(name, ())]
    return max(found, default=None)


def read_gpu() -> dict[str, Any]:
    """Read the GPU that engines use, by its driver alone: CUDA would take memory on it.

    Returns:
        The fields of `Conditions` that could be read; the driver's library is in the extra `gpu`.
    """
    import torch

    readers: dict[str, Callable[[int], Any]] = {
        "gpu_clock_mhz": torch.cuda.clock_rate,
        "gpu_temperature_c": torch.cuda.temperature,
        "gpu_memory_bytes": torch.cuda.device_memory_used,
    }
    found = {}
    for name, reader in readers.items():
        # The driver's errors are of classes of a library that need not be installed.
        with suppress(Exception):
            found[name] = reader(0)
    return found


def _of_usable(per_cpu: list[Any]) -> list[Any]:
    """Keep the usable CPUs'; all, where the system numbers them in another way."""
    cpus = set(usable())
    return [value for cpu, value in enumerate(per_cpu) if cpu in cpus] or per_cpu


def _guest(times: Any) -> list[float]:
    return [getattr(times, name, 0.0) for name in ("guest", "guest_nice")]


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
