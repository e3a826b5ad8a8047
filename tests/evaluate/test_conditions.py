import os
import time
from pathlib import Path

import psutil
import pytest
import torch

from tcompress.evaluate.conditions import (
    CpuClock,
    cgroup_cpus,
    foreign_load,
    read_conditions,
    read_gpu,
    usable,
)

CPUS = Path("sys/devices/system/cpu")
GROUPS = Path("sys/fs/cgroup")


def written(root: Path, texts: dict[Path, str]) -> Path:
    for path, text in texts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text + "\n")
    return root


def in_group(line: str, texts: dict[str, str]) -> dict[Path, str]:
    return {Path("proc/self/cgroup"): line} | {GROUPS / name: text for name, text in texts.items()}


@pytest.mark.parametrize(
    ("texts", "cpus"),
    [
        pytest.param(in_group("0::/", {"cpu.max": "150000 100000"}), 1.5, id="v2-container"),
        pytest.param(in_group("0::/a/b", {"a/b/cpu.max": "max 100000"}), None, id="v2-unlimited"),
        pytest.param(
            in_group("0::/a/b", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000"}),
            2.0,
            id="v2-least-of-all-above",
        ),
        pytest.param(
            in_group(
                "4:memory:/x\n3:cpu,cpuacct:/docker/5f",
                {
                    "cpu,cpuacct/cpu.cfs_quota_us": "50000",
                    "cpu,cpuacct/cpu.cfs_period_us": "100000",
                },
            ),
            0.5,
            id="v1-container-with-the-host's-path",
        ),
        pytest.param(
            in_group("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}),
            None,
            id="v1-unlimited",
        ),
        pytest.param(in_group("no group", {"cpu.max": "?"}), None, id="not-understood"),
    ],
)
def test_quota_of_control_groups_is_found(tmp_path, texts, cpus):
    assert cgroup_cpus(written(tmp_path, texts)) == cpus


@pytest.mark.parametrize(
    ("file", "text", "on"),
    [
        pytest.param("intel_pstate/no_turbo", "0", True, id="intel-on"),
        pytest.param("intel_pstate/no_turbo", "1", False, id="intel-off"),
        pytest.param("cpufreq/boost", "1", True, id="boost-on"),
        pytest.param("cpufreq/boost", "0", False, id="boost-off"),
    ],
)
def test_governor_and_turbo_are_read(tmp_path, file, text, on):
    texts = {CPUS / f"cpu{cpu}/cpufreq/scaling_governor": "powersave" for cpu in usable()}
    root = written(tmp_path, {CPUS / file: text} | texts)
    found = read_conditions(CpuClock.read(), 0.0, root=root)
    assert (found.governor, found.turbo) == ("powersave", on)


def test_what_cannot_be_read_is_null_and_no_error(tmp_path):
    found = read_conditions(CpuClock.read(), 0.25, gpu=read_gpu(), root=tmp_path).to_json()
    assert found["affinity"] == list(usable())
    assert found["foreign_load"] == 0.25
    for name in ("cgroup_cpus", "governor", "turbo"):
        assert found[name] is None


def test_steal_is_the_stolen_part_of_the_time_in_between():
    assert CpuClock(100.0, 1.0).steal_until(CpuClock(120.0, 2.0)) == pytest.approx(0.05)
    assert CpuClock(100.0, None).steal_until(CpuClock(120.0, None)) is None
    assert CpuClock(100.0, 1.0).steal_until(CpuClock(100.0, 1.0)) is None


def test_clock_counts_the_seconds_of_every_usable_cpu():
    before, start = CpuClock.read(), time.perf_counter()
    time.sleep(0.3)
    passed = CpuClock.read().total_s - before.total_s
    # The system counts in ticks of 10 ms, for each CPU.
    lasted = (time.perf_counter() - start) * len(usable())
    assert passed == pytest.approx(lasted, abs=0.1 * len(usable()))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_load_of_others_is_that_of_the_usable_cpus_alone(monkeypatch):
    monkeypatch.setattr(psutil, "cpu_percent", lambda **_: [100.0, 20.0, 60.0])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 2})
    assert foreign_load() == pytest.approx(0.4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_is_read_where_its_driver_tells():
    pytest.importorskip("pynvml", reason="torch reads the GPU through nvidia-ml-py")
    found = read_conditions(CpuClock.read(), 0.0, gpu=read_gpu())
    assert found.gpu_clock_mhz > 0
    assert found.gpu_temperature_c > 0
    assert found.gpu_memory_bytes > 0
