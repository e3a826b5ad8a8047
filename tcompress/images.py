"""Images and spectrograms as model inputs: every input has the same shape, so nothing is padded."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .data import Examples
from .encoded import Array, Batch, Encoded
from .errors import DataError, MissingExtraError, ModelError
from .intake import read_json

PROCESSOR_FILE = "preprocessor_config.json"
_LARGEST_SIDE = 8192
# Pillow reads more, by code that is tried less.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_Take = Callable[[Sequence[int]], Array]
"""From positions of examples to what the model reads of them."""


@dataclass(frozen=True)
class PatchPreprocessor:
    """Passes arrays of one shape on, and lets the model's image processor make them of images.

    Attributes:
        directory: The model's directory, where a `preprocessor_config.json` may be.
        input_name: Name of the model's input.
        shape: Of one input: `(channels, height, width)`, or `(frames, bins)` of a spectrogram.
        tokens: Tokens that the model makes of it.
    """

    directory: Path
    input_name: str
    shape: tuple[int, ...]
    tokens: int

    @property
    def max_tokens(self) -> int:
        """Tokens of an input: there are neither more nor fewer."""
        return self.tokens

    @property
    def fixed_tokens(self) -> int | None:
        """Tokens of every input; see `Preprocessor.fixed_tokens`."""
        return self.tokens

    @property
    def padding_id(self) -> int | None:
        """None: nothing is padded."""
        return None

    def encode(self, examples: Examples) -> Encoded:
        """Check arrays; see `Preprocessor.encode`.

        Args:
            examples: Tensor examples: floats `(examples, *shape)`, or images of bytes, `(examples,
                height, width, channels)`.

        Raises:
            DataError: If the examples are of another kind or shape.
        """
        source = self._files if examples.images is not None else self._arrays
        take = source(examples)

        def collate(positions: Sequence[int]) -> Batch:
            return {self.input_name: take(positions)}

        return Encoded(np.full(len(examples), self.tokens, dtype=np.int64), 0, collate)

    def random_batch(self, size: int, tokens: int, seed: int = 0) -> Batch:
        """Make a batch of random inputs; see `Preprocessor.random_batch`.

        Args:
            size: Examples.
            tokens: Not read: the shape of the inputs tells it.
            seed: Seed of the values.
        """
        rng = np.random.default_rng(seed)
        return {self.input_name: rng.standard_normal((size, *self.shape), dtype=np.float32)}

    @property
    def _kind(self) -> str:
        return "images" if len(self.shape) == 3 else "spectrograms"

    def _files(self, examples: Examples) -> _Take:
        paths = examples.images or ()
        if len(self.shape) != 3:
            msg = f"{examples.origin}: this model reads {self._kind}, the file names images"
            raise DataError(msg)
        mode = "L" if self.shape[0] == 1 else "RGB"
        return self._processing(examples.origin, lambda i: read_image(paths[i], mode))

    def _arrays(self, examples: Examples) -> _Take:
        origin, inputs = examples.origin, examples.inputs
        if inputs is None:
            msg = (
                f"{origin}: this model reads {self._kind}, the file holds texts; give an NPZ file "
                "with arrays 'inputs' and 'labels'"
            )
            raise DataError(msg)
        if len(self.shape) == 3 and inputs.ndim == 4 and inputs.dtype == np.uint8:
            return self._processing(origin, lambda i: inputs[i])
        if not np.issubdtype(inputs.dtype, np.floating) or inputs.shape[1:] != self.shape:
            expected = ", ".join(map(str, ("examples", *self.shape)))
            images = " or bytes (examples, height, width, channels)"
            msg = (
                f"{origin}: 'inputs' must be floats ({expected})"
                f"{images if len(self.shape) == 3 else ''}, got {inputs.dtype} {inputs.shape}"
            )
            raise DataError(msg)
        return lambda positions: inputs[list(positions)].astype(np.float32)

    def _processing(self, origin: str, image: Callable[[int], Array]) -> _Take:
        """Scale and normalize images, `(height, width, channels)`."""

        def take(positions: Sequence[int]) -> Array:
            images = [image(i) for i in positions]
            found = self._processor(images=images, input_data_format="channels_last")
            made = [np.asarray(one, np.float32) for one in found[self.input_name]]
            if wrong := [one.shape for one in made if one.shape != self.shape]:
                msg = (
                    f"{origin}: {PROCESSOR_FILE} makes images {wrong[0]} of these, the model "
                    f"reads {self.shape}"
                )
                raise DataError(msg)
            return np.stack(made)

        take([0])
        return take

    @cached_property
    def _processor(self) -> Any:
        return _open_processor(self.directory)


def read_image(path: Path, mode: str) -> Array:
    """Read an image.

    Args:
        path: Its file: PNG, JPEG, WebP or BMP.
        mode: `RGB`, or `L` for grey.

    Returns:
        `(height, width, channels)`, uint8.

    Raises:
        DataError: If it is no such file, or too large to be meant well.
        MissingExtraError: If Pillow is not installed.
    """
    _check_pillow()
    from PIL import Image

    try:
        with warnings.catch_warnings():
            # Pillow only warns of what is up to twice too large.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                pixels = np.asarray(image.convert(mode))
    except Exception as error:  # its parsers raise many kinds for a damaged file
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        msg = f"{path}: cannot be read as {', '.join(_FORMATS)}: {reason}; replace the image"
        raise DataError(msg) from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _check_pillow() -> None:
    if find_spec("PIL") is None:
        raise MissingExtraError("images", "reading and scaling images")


def _open_processor(directory: Path) -> Any:
    """Open the image processor of a model, the one that computes with Pillow."""
    _check_pillow()
    import transformers
    from transformers import AutoImageProcessor

    if not (directory / PROCESSOR_FILE).is_file():
        msg = (
            f"{directory}: no {PROCESSOR_FILE} in it, which says how images of bytes are "
            "normalized; add it, or give floats"
        )
        raise ModelError(msg)
    _check_config(directory / PROCESSOR_FILE)
    is_4 = transformers.__version__.startswith("4.")
    backend: dict[str, Any] = {"use_fast": False} if is_4 else {"backend": "pil"}
    try:
        return AutoImageProcessor.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False, **backend
        )
    except Exception as error:  # the parsers raise many kinds
        msg = f"{directory / PROCESSOR_FILE}: cannot be read: {str(error).splitlines()[0]}"
        raise ModelError(msg) from error


def _check_config(path: Path) -> None:
    """Raise where a processor's file asks for code, or for images that no memory holds."""
    config = read_json(path)
    if config.get("auto_map"):
        msg = f"{path}: 'auto_map' asks for code from the model's directory, which is never run"
        raise ModelError(msg)
    for key in ("size", "crop_size"):
        sides = config.get(key)
        for side in sides.values() if isinstance(sides, dict) else [sides]:
            if isinstance(side, int | float) and not 0 <= side <= _LARGEST_SIDE:
                msg = f"{path}: {key!r} must be 0 to {_LARGEST_SIDE} pixels, got {side}"
                raise ModelError(msg)
