"""From a model to ONNX graphs: what is traced, how the parts are told apart, how a step is put together from them."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from loopwise.checkpoint import Model
from loopwise.errors import ConfigError
from loopwise.reasoners.base import Reasoner, Recursion, State
from loopwise.reasoners.gradients import FixedPointConfig
from loopwise.runtime import generator
from loopwise.types import Batch

__all__ = ["KEY", "SAID", "Graph", "Tracer", "silence"]

Graph: TypeAlias = Any
"""An onnx.ModelProto."""

KEY = "loopwise"
OPSET = 18
UNROLLED = 16
"""Most updates of a step that stand in its graph one after the other; more are a Loop over the cycle.

The time in which onnxruntime loads a graph grows with the square of its nodes, and no Ctrl-C ends it: half a minute for
64 updates of a small network, minutes for 128, less than a second for the Loop. Few need no operator that a runtime may
lack.
"""
LONGEST = 128
"""Most updates that may stand one after the other all the same, where they are not the same cycle again and again."""
EXAMPLE_ROWS = 3
GIVEN = ("tokens", "puzzle_ids")
SAID = ("logits", "halt_logits", "continue_logits")


class _Part(NamedTuple):
    """A function of named tensors that becomes a graph."""

    function: Callable[..., Sequence[Tensor]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Tracer:
    """Makes the graphs of a model, from a copy of its reasoner in float32 on the CPU."""

    def __init__(self, model: Model) -> None:
        self.gradient = model.gradient
        self.reasoner: Reasoner[Any] = copy.deepcopy(model.reasoner).to("cpu", torch.float32).eval()
        self.reasoner.dtype = torch.float32
        self.length = self.reasoner.spec.length
        self.state_class = type(self.reasoner.init_state(1, self.length))
        self.state = tuple(f"state_{field}" for field in self.state_class._fields)
        self.new_state = tuple(f"new_{name}" for name in self.state)
        cycle, self.num_cycles = self._recursion(self.length)
        kinds = list(dict.fromkeys(map(id, cycle)))
        self.cycle = [kinds.index(id(update)) for update in cycle]
        # A recursion over the positions has other updates for another length.
        longer = self.length + 1
        self.any_length = self.reasoner.accepts(longer) and len(self._recursion(longer).cycle) == len(cycle)

    def puzzles(self, rows: int, length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Random tokens [rows, length], none of them padding, and puzzle ids [rows]."""
        spec, rng = self.reasoner.spec, generator("cpu", seed)
        tokens = torch.randint(min(1, spec.vocab_size - 1), spec.vocab_size, (rows, length), generator=rng)
        return tokens, torch.randint(spec.num_puzzle_ids, (rows,), generator=rng)

    def step(self) -> dict[str, Graph]:
        """The graphs `start` and `step`.

        Where the policy applies the updates one after the other, each distinct one is traced once and the step is put
        together from them: to trace them all takes minutes. Any other policy is traced as it is, as is a reasoner with
        a `forward` of its own.
        """
        order = self._order() if type(self.reasoner).forward is Reasoner.forward else None
        if order:
            times = len(order) // len(self.cycle)
            if len(order) > UNROLLED and order == self.cycle * times:
                order = self.cycle
            else:
                times = 1
            if len(order) > LONGEST:
                raise ConfigError(
                    f"a cycle of this model is {len(order)} updates in a row, which takes minutes to load (at most "
                    f"{LONGEST}); export single updates with --unit update"
                )
            graphs = self.updates()
            return {"start": graphs.pop("start"), "step": _join(graphs, order, times, self.state, self.new_state)}
        policy = self.gradient
        if isinstance(policy.config, FixedPointConfig) and policy.config.solver == "anderson":
            raise ConfigError(
                "Anderson mixing, by which a step of this model searches its fixed point, is not in ONNX; use --unit "
                "update and search outside, or train with --gradient.solver plain"
            )

        def step(tokens: Tensor, ids: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
            new, said = self.reasoner(self.state_class(*state), Batch(tokens, tokens, ids), policy)
            return (*new, *said[: len(SAID)])

        whole = _Part(step, (*GIVEN, *self.state), (*self.new_state, *SAID))
        return self._trace({"start": self._start(), "step": whole})

    def updates(self) -> dict[str, Graph]:
        """The graphs `start`, `encode`, `update_0` and so on, `readout`."""

        def encode(tokens: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
            return (self.reasoner.encode(Batch(tokens, tokens, ids)),)

        def update(place: int) -> Callable[..., Sequence[Tensor]]:
            def apply(x: Tensor, *state: Tensor) -> State:
                return self.reasoner.recursion(x).cycle[place](self.state_class(*state))

            return apply

        def readout(*state: Tensor) -> Sequence[Tensor]:
            return self.reasoner.readout(self.state_class(*state))[: len(SAID)]

        parts = {"start": self._start(), "encode": _Part(encode, GIVEN, ("x",))}
        for kind in sorted(set(self.cycle)):
            one = update(self.cycle.index(kind))
            parts[f"update_{kind}"] = _Part(one, ("x", *self.state), self.new_state)
        return self._trace({**parts, "readout": _Part(readout, self.state, SAID)})

    def _start(self) -> _Part:
        def start(tokens: Tensor, ids: Tensor) -> State:
            return self.reasoner.init_state(tokens.shape[0], tokens.shape[1])

        return _Part(start, GIVEN, self.state)

    @torch.no_grad()
    def _recursion(self, length: int) -> Recursion:
        tokens, ids = self.puzzles(1, length)
        return self.reasoner.recursion(self.reasoner.encode(Batch(tokens, tokens, ids)))

    @torch.no_grad()
    def _order(self) -> list[int] | None:
        """The updates that the policy applies in a step, by their kinds; None where it does anything else with them."""
        last: State = self.reasoner.init_state(1, self.length)
        order: list[int] | None = []

        def record(kind: int) -> Callable[[State], State]:
            def update(state: State) -> State:
                nonlocal last, order
                order = [*order, kind] if order is not None and state is last else None
                last = type(state)(*(tensor.clone() for tensor in state))
                return last

            return update

        made = self.gradient(Recursion(tuple(map(record, self.cycle)), self.num_cycles), last)
        return order if made is last else None

    @torch.no_grad()
    def _samples(self, rows: int, length: int) -> dict[str, Tensor]:
        """Something of the right shape for every name."""
        tokens, ids = self.puzzles(rows, length)
        x, state = self.reasoner.encode(Batch(tokens, tokens, ids)), self.reasoner.init_state(rows, length)
        names = (*GIVEN, "x", *self.state, *self.new_state, *SAID)
        return dict(
            zip(names, (tokens, ids, x, *state, *state, *self.reasoner.readout(state)[: len(SAID)]), strict=True)
        )

    def _shapes(self) -> dict[str, list[int | str]]:
        """For every name the sizes of its axes, as words where they depend on the puzzles at hand."""
        samples = self._samples(EXAMPLE_ROWS, self.length)
        wider = self._samples(EXAMPLE_ROWS + 1, self.length)
        longer = self._samples(EXAMPLE_ROWS, self.length + 1) if self.any_length else samples

        def size(here: int, in_wider: int, in_longer: int) -> int | str:
            if in_wider != here:
                return "batch"
            if in_longer == here:
                return here
            return f"length + {here - self.length}" if here > self.length else "length"

        return {name: list(map(size, samples[name].shape, wider[name].shape, longer[name].shape)) for name in samples}

    def _trace(self, parts: Mapping[str, _Part]) -> dict[str, Graph]:
        """The graphs of functions.

        They are traced together, side by side, because a call of torch's exporter takes a second whatever it traces.
        """
        samples, shapes = self._samples(EXAMPLE_ROWS, self.length), self._shapes()
        inputs = [(part, name) for part in parts for name in parts[part].inputs]
        outputs = [(part, name) for part in parts for name in parts[part].outputs]
        auto = torch.export.Dim.AUTO
        try:
            with silence(), torch.no_grad():
                program = torch.onnx.export(
                    _SideBySide(self.reasoner, list(parts.values())).eval(),
                    tuple(samples[name].clone(memory_format=torch.contiguous_format) for _, name in inputs),
                    dynamo=True,
                    opset_version=OPSET,
                    input_names=list(map(".".join, inputs)),
                    output_names=list(map(".".join, outputs)),
                    dynamic_shapes=(
                        tuple(
                            {i: auto for i, n in enumerate(shapes[name]) if isinstance(n, str)} for _, name in inputs
                        ),
                    ),
                    verbose=False,
                )
        except Exception as error:  # of many kinds, from each of the stages of torch's exporter
            reason = " ".join(str(error.__cause__ or error).split())[:120]
            raise ConfigError(f"this model computes what does not export to ONNX ({reason}...)") from error
        assert program is not None
        return {name: _cut(program.model_proto, name, part, samples, shapes) for name, part in parts.items()}


class _SideBySide(nn.Module):
    """Functions that use a reasoner's weights as one module, each with inputs and outputs of its own."""

    def __init__(self, reasoner: Reasoner[Any], parts: Sequence[_Part]) -> None:
        super().__init__()
        self.reasoner = reasoner
        self.parts = parts

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        made: list[Tensor] = []
        for part in self.parts:
            own, tensors = tensors[: len(part.inputs)], tensors[len(part.inputs) :]
            made += part.function(*own)
        # Clones, because an output of a graph cannot be one of its inputs.
        return tuple(tensor.clone() for tensor in made)


def _cut(
    whole: Graph, name: str, part: _Part, samples: Mapping[str, Tensor], shapes: Mapping[str, list[int | str]]
) -> Graph:
    """What computes one part, out of all that was traced; without stack traces, which name files of this machine."""
    from onnx import TensorProto, helper

    needed, nodes = {f"{name}.{output}" for output in part.outputs}, []
    for node in reversed(whole.graph.node):
        if needed.isdisjoint(node.output):
            continue
        needed.update(node.input)
        kept = type(node)()
        kept.CopyFrom(node)
        kept.doc_string = ""
        del kept.metadata_props[:]
        for values in (kept.input, kept.output):
            values[:] = [value.removeprefix(f"{name}.") for value in values]
        nodes.append(kept)
    weights = []
    for weight in whole.graph.initializer:
        if weight.name in needed:
            weights.append(type(weight)())
            weights[-1].CopyFrom(weight)
            weights[-1].doc_string = ""
            del weights[-1].metadata_props[:]

    def value(name: str) -> Any:
        kind = TensorProto.FLOAT if samples[name].is_floating_point() else TensorProto.INT64
        return helper.make_tensor_value_info(name, kind, shapes[name])

    graph = helper.make_graph(nodes[::-1], name, list(map(value, part.inputs)), list(map(value, part.outputs)), weights)
    return helper.make_model(graph, opset_imports=whole.opset_import, ir_version=whole.ir_version, producer_name=KEY)


def _join(
    parts: Mapping[str, Graph], order: Sequence[int], times: int, state: Sequence[str], new_state: Sequence[str]
) -> Graph:
    """One graph of encode, so many times the updates in the given order, and readout. Weights that they share are there
    once; what is to be done several times is a Loop.
    """
    import onnx.inliner
    from onnx import helper

    opsets = list(parts["encode"].opset_import)
    weights = {weight.name: weight for part in parts.values() for weight in part.graph.initializer}
    passed = {name: [weight.name for weight in part.graph.initializer] for name, part in parts.items()}
    functions = []
    for name, part in parts.items():
        told = [*(value.name for value in part.graph.input), *passed[name]]
        made = [value.name for value in part.graph.output]
        functions.append(helper.make_function(KEY, name, told, made, part.graph.node, opsets))

    def call(name: str, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
        return helper.make_node(name, [*inputs, *passed[name]], outputs, domain=KEY)

    def numbered(number: int) -> list[str]:
        return [f"{name}_{number}" for name in state]

    values = {v.name: v for part in parts.values() for v in (*part.graph.input, *part.graph.output)}
    now, nodes = state if times == 1 else numbered(0), []
    for number, kind in enumerate(order, 1):
        after = new_state if times == 1 and number == len(order) else numbered(number)
        nodes.append(call(f"update_{kind}", ("x", *now), after))
        now = after
    if times > 1:
        nodes = _loop(nodes, times, [values[name] for name in state], numbered(0), now, new_state)
    nodes = [call("encode", GIVEN, ("x",)), *nodes, call("readout", new_state, SAID)]
    inputs, outputs = ([values[name] for name in names] for names in ((*GIVEN, *state), (*new_state, *SAID)))
    model = helper.make_model(
        helper.make_graph(nodes, "step", inputs, outputs, list(weights.values())),
        functions=functions,
        opset_imports=[*opsets, helper.make_opsetid(KEY, 1)],
        ir_version=parts["encode"].ir_version,
        producer_name=KEY,
    )
    return onnx.inliner.inline_local_functions(model)


def _loop(
    nodes: Sequence[Any],
    times: int,
    state: Sequence[Any],
    before: Sequence[str],
    after: Sequence[str],
    new_state: Sequence[str],
) -> list[Any]:
    """Nodes that do to a state so many times what the given ones do from its names `before` to those `after`."""
    from onnx import TensorProto, helper

    def told(names: Sequence[str]) -> list[Any]:
        return [helper.make_value_info(name, value.type) for name, value in zip(names, state, strict=True)]

    cycle = helper.make_tensor_value_info("cycle", TensorProto.INT64, [])
    on, still_on = (helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("on", "still_on"))
    going_on = helper.make_node("Identity", ["on"], ["still_on"])
    body = helper.make_graph([*nodes, going_on], "cycle", [cycle, on, *told(before)], [still_on, *told(after)])
    names = [value.name for value in state]
    return [
        helper.make_node("Constant", [], ["num_cycles"], value_int=times),
        helper.make_node("Loop", ["num_cycles", "", *names], new_state, body=body),
    ]


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep the exporter's progress, warnings and logs off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    nowhere = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
