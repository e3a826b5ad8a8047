"""The noise of this machine: an encoder timed against itself, without one of the user's."""

import tempfile
from pathlib import Path

from tcompress.transformer import ARCHITECTURE_FILE, TransformerClassifier, TransformerSpec

from .engine_process import EngineProcess
from .latency import race
from .measurement import Speedup

TOKENS = 128
"""Length of the timed input; the batch is 1."""

# MiniLM's layers: small enough to be quick, large enough to use every thread.
_STAND_IN = TransformerSpec(
    labels=("no", "yes"),
    d_model=384,
    num_heads=12,
    feed_forward_size=1536,
    num_layers=6,
    feature_size=8,
    max_positions=TOKENS,
)


def measure_noise(budget_s: float, threads: int | None = None, seed: int = 0) -> Speedup:
    """Time an encoder of MiniLM's size, with random weights, against itself.

    Args:
        budget_s: How long.
        threads: Threads of both; None for all CPUs that may be used.
        seed: Seed of the orders.

    Returns:
        Its speed-up over itself, which would be exactly 1 without noise.

    Raises:
        MeasurementError: If an engine fails.
    """
    with tempfile.TemporaryDirectory(prefix="tcompress-doctor-") as name:
        directory = Path(name)
        _write_stand_in(directory)
        first = EngineProcess(directory, name="the stand-in", threads=threads)
        second = EngineProcess(directory, name="the stand-in again", threads=threads)
        with first, second:
            for engine in (first, second):
                engine.fix(1, TOKENS, seed=seed)
            contenders = {"first": first, "second": second}
            return race(contenders, "first", budget_s=budget_s, seed=seed).speedups["second"]


def _write_stand_in(directory: Path) -> None:
    import torch

    from tcompress.encoder import save_tensors

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = TransformerClassifier(_STAND_IN)
    _STAND_IN.write(directory / ARCHITECTURE_FILE)
    save_tensors(model.state_dict(), directory / "model.safetensors")
