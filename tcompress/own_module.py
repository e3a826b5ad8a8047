"""Users' own modules: how they are called, and what they become when they are opened."""

import inspect
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .anatomy import Anatomy
from .attention import HeadAttention, replace_attention_
from .blueprint import (
    ANATOMY_FILE,
    Blueprint,
    Call,
    Declared,
    MaskForm,
    read_blueprint,
    running_plain,
)
from .discovery import FusedProjectionError, discover, record
from .encoded import ATTENTION_MASK
from .errors import ModelError
from .factories import built_by, factory_of, recorded_source, source_of_factory, write_factory
from .intake import read_json
from .storage import write_json
from .transformer import TensorInputs

PREFIX = "module."
_TOKEN_TYPES = "token_type_ids"
_EXAMPLES, _TOKENS = 3, 7
_UNLIMITED = 512
# Of the largest answer: what two orders of summation may differ by.
_TOLERANCE = 1e-4
_Inputs = dict[str, Tensor]


class JoinedProjection(nn.Module):
    """Query, key and value projections in place of one that gave all three side by side.

    Args:
        fused: The projection; its output rows are those of query, key and value.
    """

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        parts = fused.weight.chunk(3)
        biases = (None,) * 3 if fused.bias is None else fused.bias.chunk(3)
        names = ("query", "key", "value")
        for name, weight, bias in zip(names, parts, biases, strict=True):
            linear = nn.Linear(fused.in_features, len(weight), bias=bias is not None)
            linear.weight = nn.Parameter(weight.detach().clone())
            if bias is not None:
                linear.bias = nn.Parameter(bias.detach().clone())
            self.add_module(name, linear)

    def forward(self, x: Tensor) -> Tensor:
        """Project.

        Args:
            x: `(..., in)`.

        Returns:
            `(..., queries + keys + values)`.
        """
        return torch.cat([linear(x) for linear in self.children()], -1)


class OwnModule(nn.Module):
    """A module of the user's, called with the inputs that tcompress names.

    Args:
        module: The module.
        blueprint: Where its pieces are, and how it is called.
    """

    def __init__(self, module: nn.Module, blueprint: Blueprint) -> None:
        super().__init__()
        self.module = module
        self.blueprint = blueprint
        # in a list, so that it is not registered: its pieces are the module's
        self._plain: list[tuple[Any, ...]] = []

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the answers: the module's `labels`, or their numbers."""
        named = getattr(self.module, "labels", None)
        count = self.blueprint.call.outputs
        return tuple(map(str, range(count) if named is None else named))

    @property
    def inputs(self) -> TensorInputs:
        """What it reads, where that is no text."""
        embedding = self.blueprint.anatomy(self.module).embedding
        tokens = embedding.tokens
        return TensorInputs(
            input_name=embedding.input_name,
            vocab_size=tokens.num_embeddings if isinstance(tokens, nn.Embedding) else 0,
            feature_size=tokens.in_features if isinstance(tokens, nn.Linear) else 0,
            max_positions=embedding.max_tokens or _UNLIMITED,
            masked=self.masked,
        )

    @property
    def masked(self) -> bool:
        """Whether it can be told what is padding."""
        return self.blueprint.call.mask is not None

    def anatomy(self) -> Anatomy:
        """Return its pieces as they are now."""
        anatomy = self.blueprint.anatomy(self.module)
        if not self.blueprint.runs_plain:
            return anatomy
        return running_plain(anatomy, cast("Any", self._as_plain(anatomy)).layers)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Answer.

        Args:
            inputs: Inputs by tcompress's names.

        Returns:
            Logits, `(batch, labels)`.
        """
        if not self.blueprint.runs_plain:
            return call(self.module, self.blueprint.call, inputs)
        module = self._as_plain(self.blueprint.anatomy(self.module))
        names = cast("tuple[str, ...]", module.input_names)
        answers: Tensor = module(*(inputs[name] for name in names))
        return answers

    def write_description(self, directory: Path) -> None:
        """Write where the pieces are, so that nothing has to be found again, and of which source.

        Args:
            directory: A directory with the `factory.json` of what the module was made of.
        """
        write_json(directory / ANATOMY_FILE, self.blueprint.to_json())
        write_factory(factory_of(directory), directory)

    def _as_plain(self, anatomy: Anatomy) -> nn.Module:
        """Return the pieces put together, anew when one of them was replaced or moved."""
        pieces = [
            piece
            for layer in anatomy.layers
            for piece in (*layer.projections(), layer.output, *layer.ffn_readers(), layer.ffn_out)
        ]
        where = anatomy.embedding.tokens.weight.device
        form = (anatomy.head_counts, anatomy.neuron_counts, where)
        if self._plain:
            known, old_form, module = self._plain[0]
            if form == old_form and all(a is b for a, b in zip(known, pieces, strict=False)):
                return cast("nn.Module", module)
        module = _assembled(anatomy, self.blueprint.call)
        self._plain[:] = [(pieces, form, module)]
        return module


def build(directory: Path) -> nn.Module:
    """Call the factory that a model directory names.

    Args:
        directory: The directory.

    Raises:
        RequestError: If the factory is not trusted.
        ModelError: If it returns no module.
    """
    module = built_by(directory)
    if not isinstance(module, nn.Module):
        msg = f"{directory}: its factory returned a {type(module).__name__}, not an nn.Module"
        raise ModelError(msg)
    return module.float().eval()


def is_described(directory: Path) -> bool:
    """Tell whether a directory was written by `OwnModule.write_description`.

    Args:
        directory: A model directory.
    """
    path = directory / ANATOMY_FILE
    return path.is_file() and "runs_plain" in read_json(path)


def described(directory: Path, module: nn.Module) -> OwnModule:
    """Give a module the form in which it was saved, before its weights are loaded.

    Args:
        directory: Where it was saved.
        module: What its factory returned.

    Raises:
        ModelError: If the description does not fit the module.
    """
    _warn_of_other_source(directory)
    blueprint = read_blueprint(directory / ANATOMY_FILE, module)
    _replace_attention_(module)
    for name in blueprint.fused:
        _take_apart_(module, name)
    return OwnModule(module, blueprint)


def opened(directory: Path, module: nn.Module, padding_id: int | None) -> OwnModule:
    """Find out how a module with its weights is called and built, unless that is declared.

    Args:
        directory: Its directory, perhaps with an `anatomy.json`.
        module: The module; its fused projections are taken apart.
        padding_id: Token id at padded places, or None.

    Raises:
        ModelError: If its pieces are neither declared nor found.
    """
    _replace_attention_(module)
    probes = _Probes.of(module, padding_id)
    declared = getattr(module, "anatomy", None)
    if isinstance(declared, Declared):
        blueprint = declared.blueprint(module)
    elif (directory / ANATOMY_FILE).is_file():
        blueprint = read_blueprint(directory / ANATOMY_FILE, module)
    else:
        blueprint = _discovered(module, probes)
    blueprint = replace(blueprint, call=probes.call)
    return OwnModule(module, _checked(blueprint, module, probes))


def call(module: nn.Module, how: Call, inputs: Mapping[str, Tensor]) -> Tensor:
    """Call a user's module.

    Args:
        module: The module.
        how: Names and forms of its arguments.
        inputs: Inputs by tcompress's names.

    Returns:
        Its answers.
    """
    arguments = {how.main: next(v for n, v in inputs.items() if n in ("input_ids", "inputs"))}
    if how.mask is not None and ATTENTION_MASK in inputs:
        arguments[how.mask] = _formed(inputs[ATTENTION_MASK], how.mask_form)
    if how.token_types is not None and _TOKEN_TYPES in inputs:
        arguments[how.token_types] = inputs[_TOKEN_TYPES]
    output: Any = module(**arguments)
    if isinstance(output, Mapping):
        output = output.get("logits", next(iter(output.values())))
    elif isinstance(output, tuple | list):
        output = output[0]
    answers: Tensor = getattr(output, "logits", output)
    return answers


def _warn_of_other_source(directory: Path) -> None:
    recorded = recorded_source(directory)
    if recorded is not None and recorded != source_of_factory(directory):
        msg = (
            f"{directory}: the source of {factory_of(directory)} changed since this was made of "
            "it; run the stage that wrote it again"
        )
        warnings.warn(msg, stacklevel=2)


def _formed(mask: Tensor, form: MaskForm) -> Tensor:
    if form is MaskForm.PADDING:
        return mask == 0
    return mask != 0 if form is MaskForm.REAL else mask


class _Probes:
    """Made-up inputs that a module takes, and how it takes them.

    Attributes:
        call: Names and forms of its arguments.
    """

    def __init__(self, module: nn.Module, call: Call, vocabulary: int, features: int) -> None:
        self._module = module
        self.call = call
        self._vocabulary, self._features = vocabulary, features
        self.padding_id = 0

    @classmethod
    def of(cls, module: nn.Module, padding_id: int | None) -> "_Probes":
        """Try what the module takes.

        Raises:
            ModelError: If it takes nothing that was tried.
        """
        names = [
            name
            for name, parameter in inspect.signature(module.forward).parameters.items()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        types = _TOKEN_TYPES if _TOKEN_TYPES in names else None
        tried, reason = [], ""
        for vocabulary, features in _sizes(module):
            what = f"ids below {vocabulary}" if vocabulary else f"{features} features"
            tried.append(what)
            plain = Call(names[0], token_types=types)
            for how in (plain, *_masked_calls(plain, names[1:])):
                probes = cls(module, how, vocabulary, features)
                probes.padding_id = padding_id or 0
                try:
                    answers = probes.answer(probes.batch(_EXAMPLES, _TOKENS))
                except Exception as error:  # the user's code raises anything
                    reason = str(error).partition("\n")[0]
                    continue
                if isinstance(answers, Tensor) and answers.is_floating_point():
                    probes.call = replace(how, outputs=answers.shape[-1])
                    probes._find_mask(names[1:])
                    return probes
        msg = (
            f"{type(module).__name__}: its forward takes none of what was tried "
            f"(3 x 7 {', '.join(tried) or 'nothing: it has no linear layer'}): {reason}"
        )
        raise ModelError(msg)

    def batch(self, size: int, tokens: int, seed: int = 0) -> _Inputs:
        """Make inputs without padding."""
        generator = torch.Generator().manual_seed(seed)
        inputs: _Inputs
        if self._vocabulary:
            ids = torch.randint(1, self._vocabulary, (size, tokens), generator=generator)
            ids[ids == self.padding_id] = (self.padding_id + 1) % self._vocabulary
            inputs = {"input_ids": ids}
        else:
            inputs = {"inputs": torch.randn(size, tokens, self._features, generator=generator)}
        if self.call.token_types is not None:
            inputs[_TOKEN_TYPES] = torch.zeros(size, tokens, dtype=torch.int64)
        if self.call.mask is not None:
            inputs[ATTENTION_MASK] = torch.ones(size, tokens, dtype=torch.int64)
        return inputs

    def padded(self, size: int, tokens: int, padding: int) -> _Inputs:
        """Make inputs whose last tokens are padding."""
        batch = self.batch(size, tokens, seed=1)
        if self._vocabulary:
            batch["input_ids"][:, -padding:] = self.padding_id
        if ATTENTION_MASK in batch:
            batch[ATTENTION_MASK][:, -padding:] = 0
        return batch

    def answer(self, inputs: _Inputs, how: Call | None = None) -> Tensor:
        """Call the module."""
        with torch.no_grad():
            return call(self._module, how or self.call, inputs)

    def _find_mask(self, names: list[str]) -> None:
        """Find the argument, and its form, with which padding changes no answer."""
        for how in _masked_calls(self.call, names):
            if self._hides_padding(how):
                self.call = how
                return

    def _hides_padding(self, how: Call) -> bool:
        plain, self.call = self.call, how
        try:
            padded = self.padded(2, _TOKENS, padding=2)
            short = {name: value[:, : _TOKENS - 2] for name, value in padded.items()}
            changed = dict(padded)
            main = next(iter(changed))
            changed[main] = torch.cat([changed[main][:, :-2], changed[main][:, :2]], 1)
            answers = [self.answer(inputs) for inputs in (short, padded, changed)]
        except Exception:  # the user's code refuses this form
            return False
        finally:
            self.call = plain
        return answers[0].dim() == 2 and all(_close(answers[0], other) for other in answers[1:])


def _masked_calls(how: Call, names: list[str]) -> Iterator[Call]:
    """Yield calls with each argument that may say what is padding, in each form."""
    for name in sorted((n for n in names if "mask" in n or "pad" in n), key=_unlikeliness):
        forms = [MaskForm.NUMBER, MaskForm.REAL, MaskForm.PADDING]
        for form in forms[::-1] if "pad" in name else forms:
            yield replace(how, mask=name, mask_form=form)


def _unlikeliness(name: str) -> int:
    return next((i for i, part in enumerate(("pad", "attention_mask", "mask")) if part in name), 3)


def _sizes(module: nn.Module) -> Iterator[tuple[int, int]]:
    """Yield vocabularies and widths of features that a module may take, likely ones first."""
    tables = {child.num_embeddings for child in module.modules() if isinstance(child, nn.Embedding)}
    yield from ((rows, 0) for rows in sorted(tables, reverse=True))
    widths = [child.in_features for child in module.modules() if isinstance(child, nn.Linear)]
    yield from ((0, width) for width in dict.fromkeys(widths))


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    return bool((a - b).abs().max() <= _TOLERANCE * max(1.0, float(a.abs().max())))


def _replace_attention_(module: nn.Module) -> None:
    try:
        replace_attention_(module)
    except ValueError as error:
        msg = f"{type(module).__name__}: {error}"
        raise ModelError(msg) from error


def _take_apart_(module: nn.Module, name: str) -> None:
    fused = module.get_submodule(name)
    if not isinstance(fused, nn.Linear) or fused.out_features % 3:
        msg = f"{name!r} gives query, key and value, and cannot be taken apart; declare the anatomy"
        raise ModelError(msg)
    owner, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner), attribute, JoinedProjection(fused))


def _discovered(module: nn.Module, probes: _Probes) -> Blueprint:
    fused: list[str] = []
    inputs = probes.batch(_EXAMPLES, _TOKENS)

    def forward(own: nn.Module, given: dict[str, Tensor]) -> Tensor:
        return call(own, probes.call, given)

    while True:
        try:
            found = discover(record(module, forward, inputs), module)
        except FusedProjectionError as error:
            _take_apart_(module, error.name)
            fused.append(error.name)
        else:
            return replace(found, fused=tuple(fused))


def _checked(blueprint: Blueprint, module: nn.Module, probes: _Probes) -> Blueprint:
    """Hold the pieces against the module's own answers, and choose what runs."""
    anatomy = blueprint.anatomy(module)
    plain = blueprint.plain and bool(blueprint.head) and _same_answers(anatomy, probes)
    prunable = all(isinstance(layer.attention, HeadAttention) for layer in anatomy.layers)
    if not (plain or prunable):
        msg = (
            f"{type(module).__name__}: its attention is its own code, and its forward does more "
            "than embedding, layers, pooling and linear head do, so heads cannot be removed; "
            "use nn.MultiheadAttention, or declare the anatomy (docs/own-modules.md)"
        )
        raise ModelError(msg)
    return replace(blueprint, plain=plain, runs_plain=plain and not prunable)


def _same_answers(anatomy: Anatomy, probes: _Probes) -> bool:
    module = _assembled(anatomy, probes.call)
    longest = min(anatomy.embedding.max_tokens or 16, 16)
    batches = [probes.batch(2, 5, seed=2), probes.batch(1, longest, seed=3)]
    batches.append(probes.padded(3, min(9, longest), padding=3))
    names = cast("tuple[str, ...]", module.input_names)
    with torch.no_grad():
        return all(
            _close(probes.answer(batch), module(*(batch[name] for name in names)))
            for batch in batches
        )


def _assembled(anatomy: Anatomy, how: Call) -> nn.Module:
    """Put the pieces together as usual; every layer gives all tokens, for who looks between."""
    from .plain import PlainEncoder, PlainLayer
    from .plan import CompressionPlan

    names = [anatomy.embedding.input_name]
    names += [_TOKEN_TYPES] if anatomy.embedding.token_types is not None else []
    names += [ATTENTION_MASK] if how.mask is not None else []
    dense = CompressionPlan.dense(anatomy.head_counts, anatomy.neuron_counts)
    module = PlainEncoder(anatomy, dense.layers, tuple(names))
    for layer in module.layers:
        cast("PlainLayer", layer).first_only = False
    return module
