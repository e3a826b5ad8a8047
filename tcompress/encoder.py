"""A trained encoder with its head, preprocessing, labels and compression plan."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from . import families, storage
from .anatomy import Anatomy
from .attention import replace_attention_
from .blueprint import ANATOMY_FILE
from .data import Examples, label_index
from .digests import document_digest, file_digest
from .embedder import (
    Embedder,
    EmbedderSpec,
    check_dense,
    dense_weights,
    embedder_files,
    is_embedder,
)
from .errors import DataError, DeviceError, ModelError
from .factories import FACTORY_FILE, source_of_factory
from .images import PROCESSOR_FILE
from .intake import check_files
from .intake.configs import CONFIG_FILE, check_sizes, read_config_document, sizes_of
from .intake.weights import WEIGHTS_FILE, read_headers, read_weights, weight_names
from .own_module import PREFIX, OwnModule, build, described, is_described, opened
from .plan import CompressionPlan
from .preprocessing import TOKENIZER_FILES, Batch, Preprocessor, open_preprocessor
from .pruned_checkpoints import plan_without, take_pruned_heads_
from .tasks import Task, check_task, infer_task, unit_of
from .transformer import ARCHITECTURE_FILE, TransformerClassifier, TransformerSpec

ANSWER_ENDS = ("start", "end")
"""Names of the outputs for each token of a context."""
_AUTO_CLASSES = {
    Task.TOKEN_CLASSIFICATION: "AutoModelForTokenClassification",
    Task.QUESTION_ANSWERING: "AutoModelForQuestionAnswering",
    Task.EMBEDDING: "AutoModel",
}
# Weights of these parts that a model has no place for would be missed.
_COMPUTING_PARTS = ("attention", "embedding")
_DESCRIPTIONS = (CONFIG_FILE, ARCHITECTURE_FILE, FACTORY_FILE, ANATOMY_FILE)
_CARRIED_FILES = (*_DESCRIPTIONS, *TOKENIZER_FILES, PROCESSOR_FILE)


@dataclass
class Encoder:
    """A trained encoder that tcompress can work on.

    Attributes:
        model: The module; its logits are `(batch, labels)`, `(batch, tokens, labels)` where every
            token is an answer, or vectors, `(batch, width)`.
        plan: What is left of the source encoder, and in which precision it is to run.
        labels: Class names, in the order of the logits.
        preprocessor: Turns examples into the model's inputs.
        directory: Where it was opened from.
        task: What its outputs mean.
    """

    model: nn.Module
    plan: CompressionPlan
    labels: tuple[str, ...]
    preprocessor: Preprocessor
    directory: Path
    task: Task = Task.CLASSIFICATION

    @property
    def anatomy(self) -> Anatomy:
        """The pieces of the model as it is now."""
        return families.anatomy_of(self.model)

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.model.parameters()).device

    def logits(self, batch: Batch) -> Tensor:
        """Compute logits, with gradients where autograd is on.

        Args:
            batch: Model inputs from the preprocessor.

        Returns:
            `(batch, labels)`, on the model's device.
        """
        tensors = {name: torch.from_numpy(array).to(self.device) for name, array in batch.items()}
        return logits_of(self.model, tensors)

    def predict(self, batch: Batch) -> Any:
        """Compute logits as a NumPy array, in evaluation mode without gradients.

        Args:
            batch: Model inputs from the preprocessor.

        Returns:
            `(batch, labels)`, float32.
        """
        with torch.inference_mode(), evaluating(self.model):
            return self.logits(batch).float().cpu().numpy()

    def example_tensors(self, size: int = 2, tokens: int = 8) -> dict[str, Tensor]:
        """Make inputs for tracing.

        Args:
            size: Examples.
            tokens: Tokens per example.
        """
        tokens = min(tokens, self.preprocessor.max_tokens)
        batch = self.preprocessor.random_batch(size, tokens)
        return {name: torch.from_numpy(array).to(self.device) for name, array in batch.items()}

    def to(self, device: str) -> "Encoder":
        """Move the model; returns the encoder itself.

        Args:
            device: `cpu` or `cuda`.

        Raises:
            DeviceError: If there is no such device.
        """
        if device != "cpu" and not torch.cuda.is_available():
            msg = f"device {device!r} was asked for, but torch finds no GPU here"
            raise DeviceError(msg)
        self.model.to(device)
        return self

    def save(self, directory: Path) -> None:
        """Write weights, configuration and tokenizer files; the plan goes into a manifest.

        Args:
            directory: An existing directory; its files of the same names are replaced.
        """
        copy_carried_files(self.directory, directory)
        if isinstance(self.model, OwnModule):
            self.model.write_description(directory)
        state = {name: value.contiguous() for name, value in self.model.state_dict().items()}
        for prefix, name in _weight_files(self.model).items():
            # copies, because safetensors refuses what is shared
            part = {n[len(prefix) :]: v.clone() for n, v in state.items() if n.startswith(prefix)}
            if self.plan.is_dense:
                part = families.published(self.model, part)
            save_tensors(part, directory / name)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file.

    Args:
        tensors: Tensors by name; no two share memory.
        path: The file.

    Raises:
        StorageError: If the file system refuses.
    """
    size = sum(tensor.nbytes for tensor in tensors.values())
    write = partial(save_file, tensors, metadata={"format": "pt"})
    storage.write_with(path, write, size)


def logits_of(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Run a model of any supported kind on named inputs.

    Args:
        model: A Hugging Face classifier or a `TransformerClassifier`.
        inputs: Its inputs by name.

    Returns:
        What `Encoder.model` is said to give.
    """
    if isinstance(model, Embedder | OwnModule):
        answers: Tensor = model(**inputs)
        return answers
    if isinstance(model, TransformerClassifier):
        output: Tensor = model(inputs[model.spec.input_name], inputs.get("attention_mask"))
        return output
    found = model(**inputs)
    if "start_logits" in found:
        return torch.stack([found["start_logits"], found["end_logits"]], dim=-1)
    logits: Tensor = found["logits"]
    return logits


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and back as it was afterwards.

    Args:
        model: The module.

    Yields:
        Nothing.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def copy_carried_files(source: Path, target: Path) -> None:
    """Copy configuration and tokenizer files byte by byte; nothing else.

    Args:
        source: A model directory.
        target: An existing directory.
    """
    for name in _carried_files(source):
        storage.make_directory((target / name).parent)
        storage.copy_file(source / name, target / name)


def model_digest(directory: Path) -> str:
    """Return a digest of everything that a model directory's answers depend on.

    Args:
        directory: A model directory.

    Raises:
        ModelError: If it holds no weights in safetensors form, or files that may not be opened.
    """
    dense = dense_weights(EmbedderSpec.read(directory)).values() if is_embedder(directory) else ()
    parts = [part for name in (WEIGHTS_FILE, *dense) for part in weight_names(directory, name)]
    digests = {name: file_digest(directory / name) for name in (*parts, *_carried_files(directory))}
    own = (directory / FACTORY_FILE).is_file()
    return document_digest(digests | ({"source": source_of_factory(directory)} if own else {}))


def _carried_files(directory: Path) -> list[str]:
    """Return the configuration and tokenizer files that are there, below the directory.

    Raises:
        ModelError: If one of them may not be opened.
    """
    check_files(directory, _CARRIED_FILES)
    found = [name for name in _CARRIED_FILES if (directory / name).is_file()]
    return [*found, *embedder_files(directory)]


def _weight_files(model: nn.Module) -> dict[str, str]:
    """Return which part of a model's state goes into which file, by prefix of its names."""
    if isinstance(model, Embedder):
        return {"base.": WEIGHTS_FILE} | dense_weights(model.spec)
    if isinstance(model, OwnModule):
        return {PREFIX: WEIGHTS_FILE}
    return {"": WEIGHTS_FILE}


def label_indices(labels: tuple[str, ...], examples: Examples) -> Tensor:
    """Map the examples' label names to the model's classes, by name; see `label_index`.

    Args:
        labels: The model's class names.
        examples: Labelled examples.

    Returns:
        `(examples,)`, int64.

    Raises:
        DataError: If the examples have no labels, or one the model does not know.
    """
    if examples.labels is None:
        msg = f"{examples.origin}: no labels in it; name their column with --label-column"
        raise DataError(msg)
    index = label_index(labels, examples.labels, examples.origin)
    return torch.tensor([index[name] for name in examples.labels], dtype=torch.int64)


def open_encoder(
    directory: Path, plan: CompressionPlan | None = None, task: Task | None = None
) -> Encoder:
    """Open a model directory.

    Args:
        directory: A Hugging Face or sentence-transformers directory (safetensors), or one with
            `architecture.json` and `model.safetensors`.
        plan: The plan that the weights were cut by; None for an unpruned model, or one whose
            configuration names heads that transformers 4 cut off.
        task: What it was trained for; None for what its files say.

    Raises:
        ModelError: If the directory cannot be opened as an encoder.
        RequestError: If it has a head for another task.
    """
    if not directory.is_dir():
        msg = f"{directory}: no such model directory"
        raise ModelError(msg)
    _carried_files(directory)  # which checks them
    model: nn.Module
    if (directory / FACTORY_FILE).is_file():
        model = _open_own(directory, plan)
        labels = model.labels
        task = check_task(directory, Task.CLASSIFICATION, task)
    elif (directory / ARCHITECTURE_FILE).is_file():
        model, labels = _open_torch(directory, plan)
        task = check_task(directory, Task.CLASSIFICATION, task)
    elif (directory / CONFIG_FILE).is_file():
        config = read_config(directory)
        task = infer_task(directory, config, task)
        model, labels, plan = _open_transformers(directory, config, task, plan)
    else:
        msg = (
            f"{directory}: neither {CONFIG_FILE} nor {ARCHITECTURE_FILE} in it; not a model (of a "
            "module of your own: --model package.module:factory --weights DIR)"
        )
        raise ModelError(msg)
    model.eval()
    anatomy = families.anatomy_of(model)
    tokens = anatomy.embedding.tokens
    limits = [anatomy.embedding.max_tokens]
    limits += [model.spec.max_tokens] if isinstance(model, Embedder) else []
    preprocessor = open_preprocessor(
        directory,
        max_positions=min((limit for limit in limits if limit is not None), default=None),
        vocab_size=tokens.num_embeddings if isinstance(tokens, nn.Embedding) else 0,
        token_types=anatomy.embedding.token_types is not None,
        patches=anatomy.embedding.patches,
        unit=unit_of(task),
        masked=not isinstance(model, OwnModule) or model.masked,
        tensors=asdict(model.inputs) if isinstance(model, OwnModule) else None,
    )
    if plan is None:
        plan = CompressionPlan.dense(anatomy.head_counts, anatomy.neuron_counts)
    return Encoder(model, plan, labels, preprocessor, directory, task)


def _open_own(directory: Path, plan: CompressionPlan | None) -> OwnModule:
    module, state = build(directory), read_weights(directory)
    if is_described(directory):
        model = described(directory, module)
        if plan is not None:
            model.anatomy().resize_(plan)
        _load_state(directory, model.module, state)
        return model
    _load_state(directory, module, _with_tied(module, state))
    return opened(directory, module, _padding_id(directory))


def _with_tied(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under all their names: files may hold what is shared once."""
    places: dict[int, str] = {}
    own = module.state_dict()
    for name, value in own.items():
        if name in state:
            places.setdefault(value.data_ptr(), name)
    tied = {
        name: state[places[value.data_ptr()]]
        for name, value in own.items()
        if name not in state and value.data_ptr() in places
    }
    return state | tied


def _padding_id(directory: Path) -> int | None:
    """Return the tokenizer's padding id, where there is a tokenizer."""
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        return None
    return open_preprocessor(
        directory, max_positions=None, vocab_size=0, token_types=False
    ).padding_id


def _open_torch(directory: Path, plan: CompressionPlan | None) -> tuple[nn.Module, tuple[str, ...]]:
    path = directory / ARCHITECTURE_FILE
    spec = TransformerSpec.read(path)
    check_sizes(path, spec.sizes, read_headers(directory))
    model, state = TransformerClassifier(spec), read_weights(directory)
    if any(name.endswith("in_proj_weight") for name in state):
        _load_state(directory, model, state)
        replace_attention_(model)
    else:
        replace_attention_(model)
        if plan is not None:
            families.anatomy_of(model).resize_(plan)
        _load_state(directory, model, state)
    return model, spec.labels


def read_config(directory: Path) -> Any:
    """Read a Hugging Face configuration; nothing is imported that it names.

    Args:
        directory: A model directory.

    Raises:
        ModelError: If it cannot be read, or asks for more than its weights hold.
    """
    from transformers import CONFIG_MAPPING

    path = directory / CONFIG_FILE
    document = read_config_document(directory, families.known_families())
    try:
        config = CONFIG_MAPPING[document["model_type"]].from_dict(document)
    except Exception as error:  # the parsers raise many kinds
        msg = f"{path}: cannot be read: {_one_line(error)}"
        raise ModelError(msg) from error
    config.return_dict, config.torchscript = True, False
    return config


def _open_transformers(
    directory: Path, config: Any, task: Task, plan: CompressionPlan | None
) -> tuple[nn.Module, tuple[str, ...], CompressionPlan | None]:
    pruned = take_pruned_heads_(config)
    path = directory / CONFIG_FILE
    check_sizes(path, sizes_of(path, config), read_headers(directory))
    model, state = _build_model(directory, config, task), read_weights(directory)
    families.prepare_(model)
    if plan is None and pruned:
        plan = plan_without(path, pruned, families.anatomy_of(model))
    if plan is not None:
        families.anatomy_of(model).resize_(plan)
    if isinstance(model, Embedder):
        _load_embedder(directory, model, state)
        return model, (), plan
    _load_state(directory, model, families.translated(model, state))
    labels = ANSWER_ENDS if task is Task.QUESTION_ANSWERING else _label_names(directory, config)
    return model, labels, plan


def _load_embedder(directory: Path, model: Embedder, state: dict[str, Tensor]) -> None:
    named = {f"base.{n}": v for n, v in families.translated(model, state).items()}
    for prefix, name in dense_weights(model.spec).items():
        dense = read_weights(directory, name)
        named |= {f"{prefix}{n}": v for n, v in dense.items()}
    _load_state(directory, model, named)


def _build_model(directory: Path, config: Any, task: Task) -> nn.Module:
    import transformers

    name = _AUTO_CLASSES.get(task) or families.classifier_of(config.model_type)
    model: nn.Module = _build(directory, config, getattr(transformers, name)).float()
    if task is not Task.EMBEDDING:
        return model
    spec = EmbedderSpec.read(directory)
    check_dense(directory, spec)
    return Embedder(model, spec)


def _build(directory: Path, config: Any, auto_class: Any) -> Any:
    """Build a model with an attention of torch's own, whatever the configuration names."""
    build = auto_class.from_config
    try:
        try:
            return build(config, attn_implementation="sdpa", trust_remote_code=False)
        except ValueError:  # ELECTRA on transformers 4.57 has no fused attention
            return build(config, attn_implementation="eager", trust_remote_code=False)
    except Exception as error:  # of a value that means nothing, the library raises many kinds
        msg = (
            f"{directory / CONFIG_FILE}: no {auto_class.__name__} of type {config.model_type!r} "
            f"can be built of it: {_one_line(error)}"
        )
        raise ModelError(msg) from error


def _one_line(error: Exception) -> str:
    return shorten(str(error), 200) or type(error).__name__


def _label_names(directory: Path, config: Any) -> tuple[str, ...]:
    names = dict(config.id2label)
    labels = tuple(str(names[i]) for i in range(len(names)) if i in names)
    if len(labels) != len(names) or len(set(labels)) != len(labels):
        msg = (
            f"{directory / CONFIG_FILE}: id2label must name each class once, by indices from 0, "
            f"got {names}"
        )
        raise ModelError(msg)
    return labels


def _load_state(directory: Path, model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load weights; every parameter of the model must be there and fit."""
    expected = model.state_dict()
    missing = sorted(set(expected) - set(state))
    if missing:
        head = [n for n in missing if n.startswith(("classifier", "pre_classifier"))]
        what = "a classification head" if head == missing else f"the weights {missing[0]!r}"
        hint = " (fine-tune it for classification first)" if head == missing else ""
        msg = f"{directory / WEIGHTS_FILE}: {what} is missing{hint}"
        raise ModelError(msg)
    for name in sorted(set(state) - set(expected)):
        if any(part in name for part in _COMPUTING_PARTS) and not name.endswith("position_ids"):
            msg = f"{directory / WEIGHTS_FILE}: {name!r} has no place in a model of this kind"
            raise ModelError(msg)
    for name, value in expected.items():
        if state[name].shape != value.shape:
            msg = (
                f"{directory / WEIGHTS_FILE}: {name!r} has shape {tuple(state[name].shape)}, "
                f"the model expects {tuple(value.shape)}"
            )
            raise ModelError(msg)
        if value.is_floating_point() and not state[name].is_floating_point():
            msg = (
                f"{directory / WEIGHTS_FILE}: {name!r} holds {state[name].dtype}, whose scales are "
                "not known; save the model in float32, bfloat16 or float16"
            )
            raise ModelError(msg)
    for name, value in state.items():
        if not torch.isfinite(value).all():
            msg = f"{directory / WEIGHTS_FILE}: {name!r} holds values that are not finite"
            raise ModelError(msg)
    model.load_state_dict({name: state[name] for name in expected})
