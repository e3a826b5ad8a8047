"""What an engine process tells its parent; apart from the other nouns, as engines import it."""

from dataclasses import dataclass

from tcompress.plan import CompressionPlan


@dataclass(frozen=True)
class EngineInfo:
    """What an engine process says about itself once it has opened its artifact.

    Attributes:
        backend: `pytorch`, `onnxruntime`, `torchscript`, `torch.export` or `openvino`.
        device: `cpu` or `cuda`.
        threads: Threads that its matrix products may use.
        labels: Class names, in the order of the logits.
        max_tokens: Longest input.
        versions: Versions of the libraries that compute.
        hidden_size: Width of the residual stream; 0 for an exported file.
        head_sizes: Width of a head, per layer; empty for an exported file.
        plan: What an encoder keeps of its source; None for an exported file.
    """

    backend: str
    device: str
    threads: int
    labels: tuple[str, ...]
    max_tokens: int
    versions: dict[str, str]
    hidden_size: int = 0
    head_sizes: tuple[int, ...] = ()
    plan: CompressionPlan | None = None
