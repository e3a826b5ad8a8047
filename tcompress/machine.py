"""What this machine is: processor, instruction sets, GPU, library versions."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import platformdirs
import psutil

CACHE_VARIABLE = "TCOMPRESS_CACHE"

_FEATURES = {
    "avx2": "avx2",
    "avx512_f": "avx512",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "avx512_bf16": "avx512_bf16",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "asimd_dot": "arm_dot",
    "neon_dot": "arm_dot",
    "i8mm": "arm_i8mm",
}
_PARAMETERS_WORTH_THREADS = 1_000_000
_LIBRARIES = (
    "torch",
    "transformers",
    "tokenizers",
    "torch-pruning",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "optimum",
    "numpy",
)


def cpu_features() -> dict[str, bool]:
    """Return the instruction sets that matter for int8 and bf16, by name."""
    import torch

    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    features = dict.fromkeys(_FEATURES.values(), False)
    for raw, name in _FEATURES.items():
        features[name] |= bool(found.get(raw, False))
    if not found:  # torch before 2.12
        features["avx2"] = torch.cpu._is_avx2_supported()
        features["avx512"] = torch.cpu._is_avx512_supported()
        features["avx512_vnni"] = torch.cpu._is_vnni_supported()
    return features


def has_int8_dot(features: dict[str, bool]) -> bool:
    """Tell whether int8 products accumulate without saturating on this CPU.

    Args:
        features: From `cpu_features`.
    """
    names = ("avx512_vnni", "avx_vnni", "amx_int8", "arm_dot", "arm_i8mm")
    return any(features.get(name, False) for name in names)


def int8_saturates() -> bool:
    """Tell whether sums of two u8 x s8 products saturate here unless weights use 7 bits."""
    return not has_int8_dot(cpu_features())


def has_fast_bf16(features: dict[str, bool]) -> bool:
    """Tell whether bf16 products run in hardware on this CPU.

    Args:
        features: From `cpu_features`.
    """
    return features.get("avx512_bf16", False) or features.get("amx_bf16", False)


def usable_cpus() -> int:
    """Return the number of logical CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def threads_for(parameters: int) -> Iterator[None]:
    """Let torch use as many threads as a model of this size gains from, while the block runs.

    A second thread costs more than it brings where a step takes less than a millisecond, and on
    a busy machine far more, since torch's threads wait for each other by spinning.

    Args:
        parameters: Number of parameters of the model.

    Yields:
        Nothing.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1 if parameters < _PARAMETERS_WORTH_THREADS else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def library_versions() -> dict[str, str]:
    """Return the versions of tcompress and the libraries that decide results."""
    versions = {"python": platform.python_version()}
    for name in ("tcompress", *_LIBRARIES):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def gpu_name() -> str | None:
    """Return the name of the GPU that torch would use, or None."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def cpu_name() -> str:
    """Return the processor's model, as far as the system tells it."""
    import torch

    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return str(found.get("cpu_name") or platform.processor() or platform.machine())


def cache_directory() -> Path:
    """Return where is kept what can be made again: `TCOMPRESS_CACHE`, or the user's cache."""
    explicit = os.environ.get(CACHE_VARIABLE)
    return Path(explicit) if explicit else platformdirs.user_cache_path("tcompress")


def describe_machine() -> dict[str, Any]:
    """Return everything about the machine that a measurement should be read with."""
    return {
        "cpu": cpu_name(),
        "cpu_features": cpu_features(),
        "cpus_usable": usable_cpus(),
        "cpus_physical": psutil.cpu_count(logical=False),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": list(psutil.getloadavg()),
        "system": f"{platform.system()} {platform.release()}",
        "gpu": gpu_name(),
        "versions": library_versions(),
    }
