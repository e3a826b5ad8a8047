"""Finding attention, feed-forward, embedding and head in a module nobody described.

One forward pass is recorded as a graph of operators (`torch.fx`, before anything is decomposed).
Attention is where a `scaled_dot_product_attention` or a softmax between two products stands; all
else is read off the paths that lead there and away from it, and head counts off the shapes seen.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from .anatomy import Activation
from .blueprint import Blueprint, LayerPaths, StagePaths
from .errors import ModelError
from .transformer import Pooling, pooled

_SAME = ("dropout", "contiguous", "clone", "alias", "detach", "to", "_to_copy", "type_as")
_MOVES = (
    *("view", "reshape", "_unsafe_view", "transpose", "permute", "t", "numpy_T", "movedim"),
    *("swapaxes", "unsqueeze", "squeeze", "flatten", "unflatten", "expand", "select", "slice"),
    *("chunk", "unsafe_chunk", "split", "split_with_sizes", "unbind", "getitem"),
)
_SCALES = ("mul", "div", "mul_", "div_")
_ACTIVATIONS = {
    "relu": Activation.RELU,
    "relu_": Activation.RELU,
    "gelu": Activation.GELU,
    "silu": Activation.SILU,
    "silu_": Activation.SILU,
    "tanh": Activation.TANH,
    "tanh_": Activation.TANH,
}


@dataclass
class Trace:
    """One forward pass of a module.

    Attributes:
        graph: Its operators.
        values: What each of them gave.
        owner: The parameter or buffer that a node of the graph stands for.
        inputs: The nodes of the module's inputs, by name.
        output: The node of the answers.
    """

    graph: fx.Graph
    values: dict[fx.Node, Any]
    owner: dict[fx.Node, str]
    inputs: dict[str, fx.Node]
    output: fx.Node

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Return the shape of what a node gave."""
        return tuple(self.values[node].shape)

    def weight(self, node: fx.Node, place: int) -> str:
        """Return the module whose parameter a node reads, empty where it reads none."""
        found = node.args[place] if len(node.args) > place else None
        name = self.owner.get(found, "") if isinstance(found, fx.Node) else ""
        return name.rpartition(".")[0]

    def depends_on_inputs(self, node: fx.Node) -> bool:
        """Tell whether what a node gave depends on what the module was given."""
        return any(source in self.inputs.values() for source in _ancestors(node))


def record(
    module: nn.Module,
    call: Callable[[nn.Module, dict[str, Tensor]], Tensor],
    inputs: Mapping[str, Tensor],
) -> Trace:
    """Record one forward pass.

    Args:
        module: The module, in evaluation mode.
        call: Gives the module named inputs and returns its answers.
        inputs: The inputs.

    Raises:
        ModelError: If the module cannot be traced.
    """
    named = dict((*module.named_parameters(), *module.named_buffers()))
    names, tensors = list(named), [tensor.detach() for tensor in named.values()]
    keys, given = list(inputs), list(inputs.values())

    def run(state: list[Tensor], arguments: list[Tensor]) -> Tensor:
        class Bound(nn.Module):
            def forward(self, *values: Tensor) -> Tensor:
                return call(module, dict(zip(keys, values, strict=True)))

        bound = Bound()
        bound.add_module("own", module)
        prefixed = {f"own.{n}": tensor for n, tensor in zip(names, state, strict=True)}
        answers: Tensor = functional_call(bound, prefixed, tuple(arguments))
        return answers

    try:
        with torch.no_grad():
            traced = make_fx(run, pre_dispatch=True, _error_on_data_dependent_ops=False)(
                tensors, given
            )
            interpreter = _Recorder(traced)
            interpreter.run(*tensors, *given)
    except Exception as error:  # the user's code and torch's tracer raise many kinds
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        msg = f"{type(module).__name__}: its forward pass cannot be traced: {reason}"
        raise ModelError(msg) from error
    places = [node for node in traced.graph.nodes if node.op == "placeholder"]
    output = next(node for node in traced.graph.nodes if node.op == "output").args[0]
    output = output[0] if isinstance(output, list | tuple) else output
    owner = dict(zip(places, names, strict=False))
    arguments = dict(zip(keys, places[len(names) :], strict=True))
    return Trace(traced.graph, interpreter.seen, owner, arguments, output)


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps what every node gave."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and keep a copy: what is changed in place later must not show."""
        result = super().run_node(n)
        self.seen[n] = result.clone() if isinstance(result, Tensor) else result
        return result


def discover(trace: Trace, module: nn.Module) -> Blueprint:
    """Find the pieces of a module.

    Args:
        trace: A forward pass of it.
        module: The module.

    Raises:
        ModelError: If there is no attention in it, or a layer is of an unknown form. What is not
            understood outside the layers makes the blueprint one that is not plain.
    """
    return _Discovery(trace, module).blueprint()


class _Discovery:
    def __init__(self, trace: Trace, module: nn.Module) -> None:
        self.trace, self.module = trace, module
        self.size = next(iter(trace.values[n] for n in trace.inputs.values())).shape[0]

    def blueprint(self) -> Blueprint:
        cores = list(self._cores())
        if not cores:
            raise ModelError(_nothing_found(self.trace, self.module))
        stream: fx.Node | None = None
        order, first = [], None
        layers: list[LayerPaths] = []
        for index, core in enumerate(cores):
            layer, entered, stream = self._layer(index, core)
            layers += [layer] if layer not in layers else []
            order.append(layers.index(layer))
            first = first or entered
        assert first is not None
        assert stream is not None
        blueprint = self._embedding(first, tuple(layers))
        shared = () if len(order) == len(layers) else tuple(order)
        return self._head(replace(blueprint, shared_order=shared), stream)

    # Attention

    def _cores(self) -> Iterator[tuple[fx.Node, fx.Node, fx.Node, fx.Node]]:
        """Yield query, key and value nodes of each attention, and the node of its result."""
        for node in self.trace.graph.nodes:
            name = _name(node)
            if name == "scaled_dot_product_attention":
                q, k, v = node.args[:3]
                yield q, k, v, node
            elif name in ("matmul", "bmm", "einsum"):
                found = self._by_hand(node)
                if found is not None:
                    yield *found, node

    def _by_hand(self, node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node] | None:
        """Return query, key and value where a product mixes values by a softmax of scores."""
        factors = _factors(node)
        if len(factors) != 2:
            return None
        softmax = _back(factors[0], (*_SAME, *_MOVES))
        if _name(softmax) not in ("softmax", "_softmax"):
            return None
        scores = softmax.args[0]
        ways = (*_SAME, *_MOVES, *_SCALES, "add", "add_", "masked_fill", "masked_fill_", "where")
        product = _reach(scores, ("matmul", "bmm", "baddbmm", "einsum"), ways)
        if product is None or len(_factors(product)) != 2:
            return None
        q, k = _factors(product)
        return q, k, factors[1]

    def _layer(
        self, index: int, core: tuple[fx.Node, fx.Node, fx.Node, fx.Node]
    ) -> tuple[LayerPaths, fx.Node, fx.Node]:
        q, k, v, mixed = core
        where = f"layer {index}"
        ways = (*_SAME, *_MOVES, *_SCALES)
        given = [
            self._linear_behind(node, ways, f"{where}: {name}")
            for node, name in ((q, "query"), (k, "key"), (v, "value"))
        ]
        query, key, value = self._separate(given)
        head_size = self._head_size(q, given[0], where)
        output = self._next(mixed, "linear", (*_SAME, *_MOVES))
        if output is None:
            raise ModelError(self._lost(where, "an output projection behind attention", mixed))
        stream, attention_norm, norm_first = self._entry(given[0], output, where)
        behind = self._residual(output, where)
        entered, ffn_norm = behind, None
        if not norm_first:
            entered, attention_norm = self._norm_behind(behind)
        ffn = self._feed_forward(entered, norm_first, where)
        left = self._residual(ffn.last, where)
        ffn_norm = ffn.norm
        if not norm_first:
            left, ffn_norm = self._norm_behind(left)
        paths = LayerPaths(
            query=query,
            key=key,
            value=value,
            output=self.trace.weight(output, 1),
            ffn_in=self.trace.weight(ffn.first, 1),
            ffn_out=self.trace.weight(ffn.last, 1),
            head_size=head_size,
            activation=ffn.activation,
            attention_norm=attention_norm,
            ffn_norm=ffn_norm,
            norm_first=norm_first,
            gate=None if ffn.gate is None else self.trace.weight(ffn.gate, 1),
            ffn_batch_dim=int(self.trace.shape(ffn.last)[0] != self.size),
        )
        return paths, stream, left

    def _linear_behind(self, node: fx.Node, ways: tuple[str, ...], what: str) -> fx.Node:
        found = _reach(node, ("linear",), ways)
        joined = _reach(node, ("cat",), ways) if found is None else None
        if joined is not None:
            parts = [_reach(part, ("linear",), ways) for part in joined.all_input_nodes]
            found = next((p for p in parts if p is not None and self._makes(p, node)), None)
        if found is None or not self.trace.weight(found, 1):
            raise ModelError(self._lost(what, "an nn.Linear that makes it", node))
        return found

    def _makes(self, linear: fx.Node, node: fx.Node) -> bool:
        """Tell whether heads are a projection's channels in order, but for a factor."""
        made, heads = self.trace.values[linear], self.trace.values[node]
        heads = heads if heads.dim() == 4 else heads.unflatten(0, (self.size, -1))
        # keys may be given as (batch, heads, head_size, tokens)
        for blocks in (heads, heads.mT):
            if made.dim() == 3 and made.shape[-1] % blocks.shape[-1] == 0:
                parts = made.unflatten(-1, (-1, blocks.shape[-1])).transpose(1, 2)
                if parts.shape == blocks.shape and _parallel(parts, blocks):
                    return True
        return False

    def _separate(self, given: list[fx.Node]) -> tuple[str, str, str]:
        """Name query, key and value projections; a fused one has been taken apart before."""
        q, k, v = (self.trace.weight(node, 1) for node in given)
        if len({q, k, v}) != 3:
            raise FusedProjectionError(q)
        return q, k, v

    def _head_size(self, q: fx.Node, linear: fx.Node, where: str) -> int:
        # (batch, heads, tokens, head_size), or (batch * heads, tokens, head_size)
        head_size, width = self.trace.shape(q)[-1], self.trace.shape(linear)[-1]
        if head_size == 0 or width % head_size:
            msg = (
                f"{where}: queries of {width} channels do not make heads of "
                f"{head_size}: {self.trace.shape(q)}; declare the anatomy"
            )
            raise ModelError(msg)
        return head_size

    # The residual stream

    def _entry(
        self, query: fx.Node, output: fx.Node, where: str
    ) -> tuple[fx.Node, str | None, bool]:
        """Return the stream that a layer reads, and its norm where that stands in front."""
        source = _back(query.args[0], (*_SAME, "transpose", "permute"))
        add = self._next(output, "add", (*_SAME, "transpose", "permute"))
        if add is None:
            raise ModelError(self._lost(where, "a residual sum behind attention", output))
        others = [
            _back(arg, (*_SAME, "transpose")) for arg in add.args[:2] if isinstance(arg, fx.Node)
        ]
        if source in others:
            return source, None, False
        if _name(source) == "layer_norm":
            stream = _back(source.args[0], (*_SAME, "transpose"))
            if stream in others:
                return stream, self.trace.weight(source, 2), True
        raise ModelError(self._lost(where, "the stream that attention is added to", query))

    def _residual(self, node: fx.Node, where: str) -> fx.Node:
        found = self._next(node, "add", (*_SAME, "transpose", "permute"))
        if found is None:
            raise ModelError(self._lost(where, "a residual sum", node))
        return found

    def _norm_behind(self, node: fx.Node) -> tuple[fx.Node, str | None]:
        found = self._next(node, "layer_norm", (*_SAME, "transpose"))
        return (node, None) if found is None else (found, self.trace.weight(found, 2))

    def _feed_forward(self, entered: fx.Node, norm_first: bool, where: str) -> "_FeedForward":
        norm = None
        if norm_first:
            entered, norm = self._norm_behind(entered)
        readers = list(self._all_next(entered, "linear", (*_SAME, "transpose")))
        for first in readers:
            found = self._excited(first)
            if found is None:
                continue
            activation, node = found
            gate = None
            product = self._next(node, "mul", _SAME)
            if product is not None and len(readers) == 2:
                gate = next(r for r in readers if r is not first)
                node = product
            last = self._next(node, "linear", _SAME)
            if last is not None:
                return _FeedForward(first, last, activation, gate, norm)
        raise ModelError(self._lost(where, "two linear layers with an activation between", entered))

    def _excited(self, linear: fx.Node) -> tuple[Activation, fx.Node] | None:
        for user in _users(linear, _SAME):
            name = _name(user)
            if name in _ACTIVATIONS:
                tanh = user.kwargs.get("approximate") == "tanh"
                return (Activation.GELU_TANH if tanh else _ACTIVATIONS[name]), user
        return None

    # Both ends

    def _embedding(self, first: fx.Node, layers: tuple[LayerPaths, ...]) -> Blueprint:
        """Walk back from what the first layer reads to the tokens."""
        node, norm, positions = first, None, None
        scale, understood = 1.0, True
        while True:
            node = _back(node, (*_SAME, "transpose"))
            name = _name(node)
            if name in ("embedding", "linear"):
                break
            if name == "layer_norm" and norm is None and positions is None:
                norm, node = self.trace.weight(node, 2), _back(node.args[0], ())
            elif name in ("add", "add_") and positions is None:
                node, table = self._positioned(node)
                positions, understood = table, understood and table is not None
            elif name in ("mul", "mul_") and isinstance(node.args[1], int | float):
                scale, node = scale * float(node.args[1]), _back(node.args[0], ())
            elif name in ("div", "div_") and isinstance(node.args[1], int | float):
                scale, node = scale / float(node.args[1]), _back(node.args[0], ())
            else:
                found = _reach(node, ("embedding", "linear"), None, self.trace.depends_on_inputs)
                if found is None:
                    raise ModelError(self._lost("input", "a token table or projection", node))
                node, understood = found, False
                break
        tokens = self.trace.weight(node, 0 if _name(node) == "embedding" else 1)
        return Blueprint(layers, tokens, positions, scale, norm, plain=understood)

    def _positioned(self, add: fx.Node) -> tuple[fx.Node, str | None]:
        """Return the side of a sum that the tokens come from, and the table on the other."""
        sides = [arg for arg in add.args[:2] if isinstance(arg, fx.Node)]
        dependent = [side for side in sides if self._reads_content(side)]
        if len(sides) != 2 or len(dependent) != 1:
            return sides[0], None
        token, other = dependent[0], next(side for side in sides if side is not dependent[0])
        value = self.trace.values[other]
        for source in _ancestors(other):
            name = self.trace.owner.get(source)
            table = self.trace.values.get(source)
            if name is None or table is None or table.dim() not in (2, 3):
                continue
            rows = table.reshape(-1, table.shape[-1])
            tokens = next(iter(self.trace.inputs.values()))
            length = self.trace.shape(tokens)[1]
            seen = value.reshape(-1, value.shape[-1])[:length]
            if rows.shape[0] >= length and torch.equal(seen, rows[:length]):
                owner, _, last = name.rpartition(".")
                is_table = isinstance(self.module.get_submodule(owner), nn.Embedding)
                return token, owner if is_table and last == "weight" else name
        return token, None

    def _reads_content(self, node: fx.Node) -> bool:
        main = next(iter(self.trace.inputs.values()))
        if main not in _ancestors(node):
            return False
        # `zeros_like(ids)` and the like have the input's shape, not its content
        return any(
            main in user.all_input_nodes
            and _name(user) in ("embedding", "linear")
            and user in {node, *_ancestors(node)}
            for user in main.users
        )

    def _head(self, blueprint: Blueprint, stream: fx.Node) -> Blueprint:
        """Walk back from the answers to what the head reads of the stream."""
        behind, final_norm = stream, None
        if blueprint.layers[-1].norm_first or self._next(
            stream, "layer_norm", (*_SAME, "transpose")
        ):
            behind, final_norm = self._norm_behind(stream)
        stages, node = self._stages(behind)
        value = self.trace.values[behind]
        if value.shape[0] != self.size:
            value = value.transpose(0, 1)
        read, norm = self.trace.values[node], None
        pooling = self._pooling(value, read)
        if pooling is None and _name(node) == "layer_norm":
            norm, node = self.trace.weight(node, 2), _back(node.args[0], _SAME)
            pooling = self._pooling(value, self.trace.values[node])
        if pooling is None and final_norm is not None:  # the norm stands behind pooling
            raw = self.trace.values[stream]
            raw = raw if raw.shape[0] == self.size else raw.transpose(0, 1)
            pooling = self._pooling(raw, self.trace.values[node])
            final_norm = None if pooling is not None else final_norm
        return replace(
            blueprint,
            final_norm=final_norm,
            head=tuple(stages),
            head_norm=norm,
            pooling=pooling or Pooling.NONE,
            plain=blueprint.plain and pooling is not None,
        )

    def _stages(self, behind: fx.Node) -> tuple[list[StagePaths], fx.Node]:
        stages: list[StagePaths] = []
        node = _back(self.trace.output, _SAME)
        while True:
            start, norm, activation = node, None, None
            if _name(node) == "layer_norm" and node is not behind:
                norm, node = self.trace.weight(node, 2), _back(node.args[0], _SAME)
            if _name(node) in _ACTIVATIONS:
                tanh = node.kwargs.get("approximate") == "tanh"
                activation = Activation.GELU_TANH if tanh else _ACTIVATIONS[_name(node)]
                node = _back(node.args[0], _SAME)
            if _name(node) != "linear" or not self.trace.weight(node, 1):
                return stages[::-1], start
            stages.append(StagePaths(self.trace.weight(node, 1), activation, norm))
            node = _back(node.args[0], _SAME)

    def _pooling(self, stream: Tensor, read: Tensor) -> Pooling | None:
        mask = next(
            (self.trace.values[n] for name, n in self.trace.inputs.items() if "mask" in name), None
        )
        for pooling in (Pooling.FIRST, Pooling.MEAN, Pooling.MAX, Pooling.NONE):
            found = pooled(pooling, stream, None if mask is None else mask.long())
            if found.shape == read.shape and torch.allclose(found, read, rtol=1e-4, atol=1e-5):
                return pooling
        return None

    # Walking forward

    def _next(self, node: fx.Node, name: str, ways: tuple[str, ...]) -> fx.Node | None:
        return next(self._all_next(node, name, ways), None)

    def _all_next(self, node: fx.Node, name: str, ways: tuple[str, ...]) -> Iterator[fx.Node]:
        for user in _users(node, ways):
            if _name(user).rstrip("_") == name:
                yield user

    def _lost(self, where: str, what: str, node: fx.Node) -> str:
        shape = self.trace.shape(node) if isinstance(self.trace.values[node], Tensor) else ()
        near = next((n for n in _ancestors(node) if _name(n) == "linear"), None)
        name = "" if near is None else f" behind {self.trace.weight(near, 1)!r}"
        return (
            f"{type(self.module).__name__}, {where}: found no {what.removeprefix('a ')} at "
            f"{_name(node)} {list(shape)}{name}; declare the anatomy (docs/own-modules.md)"
        )


class FusedProjectionError(Exception):
    """A projection gives query, key and value at once.

    Args:
        name: Its name.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True)
class _FeedForward:
    first: fx.Node
    last: fx.Node
    activation: Activation
    gate: fx.Node | None
    norm: str | None


def _parallel(a: Tensor, b: Tensor) -> bool:
    cosine = torch.cosine_similarity(a.reshape(-1), b.reshape(-1), dim=0)
    return bool(cosine > 1 - 1e-5)


def _nothing_found(trace: Trace, module: nn.Module) -> str:
    linears = [
        f"{name} ({child.in_features}->{child.out_features})"
        for name, child in module.named_modules()
        if isinstance(child, nn.Linear)
    ]
    softmaxes = sum(_name(node) in ("softmax", "_softmax") for node in trace.graph.nodes)
    return (
        f"{type(module).__name__}: found no attention: no nn.MultiheadAttention, no "
        f"scaled_dot_product_attention, {softmaxes} softmax without products on both sides; "
        f"linear layers: {', '.join(linears[:8]) or 'none'}; declare the anatomy "
        "(docs/own-modules.md)"
    )


def _name(node: fx.Node) -> str:
    target = node.target
    if node.op != "call_function":
        return ""
    overload = getattr(target, "overloadpacket", None)
    return str(overload.__name__) if overload is not None else getattr(target, "__name__", "")


def _factors(node: fx.Node) -> list[fx.Node]:
    """Return what a product multiplies."""
    arguments = node.args[1] if _name(node) == "einsum" else node.args
    assert isinstance(arguments, list | tuple)
    return [arg for arg in arguments if isinstance(arg, fx.Node)]


def _back(node: Any, ways: tuple[str, ...]) -> fx.Node:
    """Go back as long as nothing but the form changes."""
    found: fx.Node = node
    while _name(found) in ways and isinstance(found.args[0], fx.Node):
        found = found.args[0]
    return found


def _reach(
    node: Any,
    names: tuple[str, ...],
    ways: tuple[str, ...] | None,
    allowed: Callable[[fx.Node], bool] = lambda _node: True,
) -> fx.Node | None:
    """Return the nearest operator of a name behind a node, by given ways (None: any)."""
    queue, seen = [node], set()
    while queue:
        current = queue.pop(0)
        if not isinstance(current, fx.Node) or current in seen:
            continue
        seen.add(current)
        if _name(current) in names and allowed(current):
            return current
        if ways is None or _name(current) in ways:
            queue += current.all_input_nodes
    return None


def _ancestors(node: fx.Node) -> set[fx.Node]:
    queue, seen = [node], {node}
    while queue:
        for source in queue.pop().all_input_nodes:
            if source not in seen:
                seen.add(source)
                queue.append(source)
    return seen


def _users(node: fx.Node, ways: tuple[str, ...]) -> Iterator[fx.Node]:
    """Yield who reads a node, also by way of operators that change nothing but the form."""
    queue, seen = [node], {node}
    while queue:
        for user in queue.pop(0).users:
            if user in seen:
                continue
            seen.add(user)
            yield user
            if _name(user) in ways:
                queue.append(user)
