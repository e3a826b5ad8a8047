"""What an engine process tells its parent; apart from the other nouns, as engines import it."""

from dataclasses import dataclass

from tcompress.errors import RequestError
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
        fixed_tokens: Length of every input, where all are equally long; else None.
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
    fixed_tokens: int | None = None

    def tokens_for(self, wanted: int | None, usual: int) -> int:
        """Return the length of inputs to measure with.

        Args:
            wanted: What was asked for, or None.
            usual: What is measured otherwise, if the model reads as much.

        Raises:
            RequestError: If all inputs are equally long, and otherwise than asked for.
        """
        if self.fixed_tokens is None:
            return min(wanted or usual, self.max_tokens)
        if wanted not in (None, self.fixed_tokens):
            msg = (
                f"--tokens {wanted}: every input of this model has {self.fixed_tokens} tokens; "
                "leave the option out"
            )
            raise RequestError(msg)
        return self.fixed_tokens
