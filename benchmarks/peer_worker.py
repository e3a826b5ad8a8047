"""The process of one contender: opens it on its engine, then answers until its parent is gone.

It runs in the environment of the peers too, so it knows nothing of tcompress. Requests and replies
are pickles on its standard input and output, as `tcompress.worker_process` speaks them,
between a program and itself.
"""

import ctypes
import gc
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import numpy as np

Batch = dict[str, np.ndarray[Any, Any]]
Predict = Callable[[Batch], np.ndarray[Any, Any]]
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


@dataclass(frozen=True)
class Opened:
    """A contender, ready to answer.

    Attributes:
        predict: Computes logits, `(batch, labels)`, from a batch.
        threads: Threads that the engine says it uses.
        libraries: What computes.
        predict_fixed: The same where one shape comes again and again; None: no difference.
    """

    predict: Predict
    threads: int
    libraries: tuple[str, ...]
    predict_fixed: Predict | None = None


class Worker:
    """One contender; every public method answers one request."""

    def __init__(self) -> None:
        self._engine: Opened | None = None
        self._held: dict[str, tuple[Predict, Sequence[Batch]]] = {}

    def open(self, engine: str, directory: Path, threads: int) -> dict[str, Any]:
        """Open a contender.

        Args:
            engine: One of `ENGINES`.
            directory: Where its files are.
            threads: Threads that it may use.

        Returns:
            Its `threads` and the `versions` of its libraries.
        """
        self._engine = ENGINES[engine](directory, threads)
        gc.collect()
        gc.freeze()
        versions = {name: metadata.version(name) for name in self._engine.libraries}
        return {"threads": self._engine.threads, "versions": versions}

    def predict(self, batches: Sequence[Batch]) -> list[np.ndarray[Any, Any]]:
        """Answer batches.

        Args:
            batches: The batches.

        Returns:
            Their logits, `(batch, labels)` float32.
        """
        predict = self._opened.predict
        return [np.asarray(predict(batch), dtype=np.float32) for batch in batches]

    def hold(self, name: str, batches: Sequence[Batch]) -> None:
        """Keep what `time` answers, and answer it once.

        Args:
            name: What to call it.
            batches: One batch, or several that count as one call.
        """
        engine = self._opened
        fixed = engine.predict_fixed if len(batches) == 1 else None
        self._held[name] = (fixed or engine.predict, batches)
        self.time(name, 1, 0)

    def time(self, name: str, calls: int, warmup: int) -> list[int]:
        """Measure calls; each ends when its last logits are in main memory.

        Args:
            name: What to answer.
            calls: Measured calls.
            warmup: Answers to its first batch before them.

        Returns:
            Duration of each measured call, in ns.
        """
        predict, batches = self._held[name]
        clock, samples = time.perf_counter_ns, []
        gc.disable()
        try:
            for _ in range(warmup):
                predict(batches[0])
            for _ in range(calls):
                start = clock()
                for batch in batches:
                    predict(batch)
                samples.append(clock() - start)
        finally:
            gc.enable()
        return samples

    def memory(self) -> int:
        """Return the most memory that this process has held, in bytes."""
        status = Path("/proc/self/status")
        if status.is_file():
            # Not ru_maxrss, which an exec inherits: it would tell the size of the parent.
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            return int(fields["VmHWM"].split()[0]) * 1024
        import psutil

        info = psutil.Process().memory_info()
        return int(getattr(info, "peak_wset", info.rss))

    @property
    def _opened(self) -> Opened:
        if self._engine is None:
            msg = "asked before anything was opened"
            raise RuntimeError(msg)
        return self._engine


def open_transformers(directory: Path, threads: int) -> Opened:
    """Open a Hugging Face classifier in PyTorch, as it comes.

    Args:
        directory: A model directory.
        threads: Threads.
    """
    return _torch_engine(_classifier(directory, threads))


def open_compiled(directory: Path, threads: int) -> Opened:
    """Open it under `torch.compile`: for any shape, and for each shape that comes alone.

    Args:
        directory: A model directory.
        threads: Threads.
    """
    import torch

    model = _classifier(directory, threads)
    fixed = _torch_engine(torch.compile(model, dynamic=False))
    opened = _torch_engine(torch.compile(model, dynamic=True))
    return Opened(opened.predict, opened.threads, opened.libraries, fixed.predict)


def open_torch_int8(directory: Path, threads: int) -> Opened:
    """Open it with its linear layers in torch's dynamic int8.

    Args:
        directory: A model directory.
        threads: Threads.
    """
    import torch
    from torch.ao.quantization import quantize_dynamic

    model = _classifier(directory, threads)
    return _torch_engine(quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8))


def open_onnxruntime(directory: Path, threads: int) -> Opened:
    """Open the ONNX file of a directory in ONNX Runtime, with its default optimisations.

    Args:
        directory: A directory with one `.onnx` file.
        threads: Threads.
    """
    import onnxruntime

    (path,) = directory.glob("*.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )
    names = [item.name for item in session.get_inputs()]

    def predict(batch: Batch) -> Any:
        return session.run(None, {name: batch[name] for name in names})[0]

    return Opened(predict, session.get_session_options().intra_op_num_threads, ("onnxruntime",))


def open_openvino(directory: Path, threads: int, precision: str = "f32") -> Opened:
    """Open the IR of a directory in OpenVINO, for low latency.

    Args:
        directory: A directory with one `.xml` file and its `.bin`.
        threads: Threads.
        precision: `f32` or `bf16`: of what is not int8.
    """
    import openvino

    (path,) = directory.glob("*.xml")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    model = openvino.Core().compile_model(path, "CPU", settings)
    request = model.create_infer_request()
    names = [item.get_any_name() for item in model.inputs]

    def predict(batch: Batch) -> Any:
        inputs = {name: batch[name] for name in names}
        return next(iter(request.infer(inputs, share_inputs=True).values()))

    return Opened(predict, int(model.get_property("INFERENCE_NUM_THREADS")), ("openvino",))


def open_openvino_bf16(directory: Path, threads: int) -> Opened:
    """Open an fp32 IR in OpenVINO's bf16.

    Args:
        directory: A directory with one `.xml` file and its `.bin`.
        threads: Threads.
    """
    return open_openvino(directory, threads, "bf16")


def open_ctranslate2(directory: Path, threads: int) -> Opened:
    """Open an encoder with its pooler in CTranslate2; the classifier behind it is NumPy's.

    Args:
        directory: A converted model, with `classifier.npz` beside it.
        threads: Threads.
    """
    import ctranslate2

    encoder = ctranslate2.Encoder(
        str(directory), device="cpu", compute_type="int8", inter_threads=1, intra_threads=threads
    )
    with np.load(directory / "classifier.npz") as arrays:
        weight, bias = arrays["weight"].T.copy(), arrays["bias"]

    def predict(batch: Batch) -> Any:
        ids = ctranslate2.StorageView.from_array(batch["input_ids"].astype(np.int32))
        lengths = batch["attention_mask"].sum(axis=1, dtype=np.int32)
        types = batch.get("token_type_ids")
        given = types.tolist() if types is not None and types.any() else None  # None: all 0
        answer = encoder.forward_batch(ids, ctranslate2.StorageView.from_array(lengths), given)
        return np.asarray(answer.pooler_output) @ weight + bias

    return Opened(predict, threads, ("ctranslate2",))


ENGINES: dict[str, Callable[[Path, int], Opened]] = {
    "transformers": open_transformers,
    "torch.compile": open_compiled,
    "torch-int8": open_torch_int8,
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
    "openvino-bf16": open_openvino_bf16,
    "ctranslate2": open_ctranslate2,
}


def _classifier(directory: Path, threads: int) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(threads)
    model = AutoModelForSequenceClassification.from_pretrained(
        str(directory), local_files_only=True, dtype=torch.float32
    )
    return model.eval()


def _torch_engine(model: Any) -> Opened:
    import torch

    def predict(batch: Batch) -> Any:
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
            return model(**tensors).logits.numpy()

    return Opened(predict, torch.get_num_threads(), ("torch", "transformers"))


def main() -> None:
    """Answer requests until the standard input ends."""
    requests, replies = _take_over_streams()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's business
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    worker = Worker()
    for name, arguments in _read(requests):
        pickle.dump(_answer(getattr(worker, name), arguments), replies)
        replies.flush()


def _read(requests: IO[bytes]) -> Iterable[tuple[str, dict[str, Any]]]:
    while True:
        try:
            yield pickle.load(requests)
        except EOFError:
            return


def _answer(method: Callable[..., Any], arguments: dict[str, Any]) -> tuple[str, Any]:
    try:
        return "done", method(**arguments)
    except Exception as error:  # engines raise many kinds; the parent names the contender
        return "failed", f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _take_over_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Keep the two pipes for ourselves; what libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return sys.stdin.buffer, replies


if __name__ == "__main__":
    main()
