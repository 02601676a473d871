"""What every reasoner, gradient policy and halting policy must do; a new one is found by its base class.

Each reasoner is built small, with every two of the choices that its config offers (fields of type `Literal` or `bool`)
together, and at the edges of the sizes that it has.
"""

import dataclasses
import itertools
import typing

import pytest
import torch

import loopwise.reasoners
from judging import judged
from loopwise.checkpoint import Model, load_model, save_weights, write_config
from loopwise.config import from_json, to_json
from loopwise.errors import ConfigError
from loopwise.reasoners.base import GradientPolicy, Reasoner, detach
from loopwise.reasoners.carry import empty_carry, refill
from loopwise.reasoners.halting import HaltingPolicy
from loopwise.registry import discover
from loopwise.tasks.sorting import Sorting, SortingConfig
from loopwise.training.losses import answer_loss
from loopwise.types import Batch

PACKAGE = loopwise.reasoners.__name__
REASONERS = discover(PACKAGE, Reasoner)
GRADIENTS = discover(PACKAGE, GradientPolicy)
HALTINGS = discover(PACKAGE, HaltingPolicy)

SMALL = {
    "hidden_size": 32, "num_layers": 2, "H_cycles": 2, "L_cycles": 2,
    "num_heads": 2, "registers": 2, "width_multiple": 8,
}  # fmt: skip
"""Sizes under which a test is quick, for the fields that exist."""
EDGES = ({"registers": 0}, {"registers": 1}, {"num_layers": 1}, {"H_cycles": 1}, {"L_cycles": 1}, {"num_heads": 1})

TASK = Sorting(SortingConfig(n=6, values=5))
SPEC = dataclasses.replace(TASK.spec, num_puzzle_ids=4)
SLOTS = 4


def choices(config_class):
    """{field: the values it can take} of the fields that offer a choice."""
    hints = typing.get_type_hints(config_class)
    found = {name: typing.get_args(hint) for name, hint in hints.items() if typing.get_origin(hint) is typing.Literal}
    return found | {name: (False, True) for name, hint in hints.items() if hint is bool}


def small(config_class, **options):
    """A small config; options that the class does not have are dropped."""
    names = {field.name for field in dataclasses.fields(config_class)}
    return config_class(**{name: value for name, value in {**SMALL, **options}.items() if name in names})


def configs():
    """(name, config) of every reasoner: every two choices together, and every edge."""
    for name, cls in REASONERS.items():
        offered = choices(cls.Config)
        variants = {small(cls.Config): "default"}
        for fields in itertools.combinations(offered, min(2, len(offered))):
            for values in itertools.product(*(offered[field] for field in fields)):
                options = dict(zip(fields, values, strict=True))
                label = "-".join(f"{k}={v}" for k, v in options.items())
                variants.setdefault(small(cls.Config, **options), label)
        for edge in EDGES:
            variants.setdefault(small(cls.Config, **edge), "-".join(f"{k}={v}" for k, v in edge.items()))
        yield from (pytest.param(name, config, id=f"{name}-{label}") for config, label in variants.items())


every_reasoner = pytest.mark.parametrize(("name", "config"), list(configs()))
every_gradient = pytest.mark.parametrize("gradient", list(GRADIENTS))
every_halting = pytest.mark.parametrize("halting", list(HALTINGS))


def build(name, config, dtype=torch.float32, spec=SPEC):
    return REASONERS[name](config, spec, dtype)


def puzzles(length=SPEC.length, seed=0):
    """A batch in which all tokens and all identities occur, for any length of more than one."""
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.arange(2 * SLOTS * length) % SPEC.vocab_size
    inputs, labels = tokens[torch.randperm(len(tokens), generator=rng)].view(2, SLOTS, length)
    return Batch(inputs, labels, torch.arange(SLOTS) % SPEC.num_puzzle_ids)


def loss_of(prediction, batch, halting):
    answer, _, correct = answer_loss("softmax", prediction.logits, batch.labels)
    return answer + halting.loss(judged(prediction, correct))


@every_reasoner
@every_gradient
@every_halting
def test_a_gradient_reaches_every_parameter(name, config, gradient, halting):
    """Within three steps of training every parameter has had a gradient that is finite and not all zero."""
    reasoner, policy = build(name, config), GRADIENTS[gradient]()
    judge = HALTINGS[halting](HALTINGS[halting].Config())
    batch, state = puzzles(), reasoner.init_state(SLOTS, SPEC.length)
    waiting = {parameter for parameter, _ in reasoner.named_parameters()}
    for _ in range(3):
        state, prediction = reasoner(state, batch, policy)
        loss_of(prediction, batch, judge).backward()
        for parameter, p in reasoner.named_parameters():
            values = p.grad.to_dense() if p.grad is not None else torch.zeros(1)
            assert torch.isfinite(values).all()
            if values.abs().max() > 0:
                waiting.discard(parameter)
            with torch.no_grad():
                p.add_(values, alpha=-0.01)
            p.grad = None
    assert not waiting


@every_reasoner
@every_gradient
def test_the_state_is_cut_and_the_prediction_is_not(name, config, gradient):
    """After a step no tensor of the state asks for a gradient, the given state has received none, and both the answer
    and the halting logit can be differentiated; shapes and formats are as documented.
    """
    reasoner = build(name, config, torch.bfloat16)
    given = type(state := reasoner.init_state(SLOTS, SPEC.length))(*(t.clone() for t in state))
    batch = puzzles()
    state, prediction = reasoner(given, batch, GRADIENTS[gradient]())
    assert type(state) is type(given)
    for new, old in zip(state, given, strict=True):
        assert not new.requires_grad
        assert (new.shape, new.dtype) == (old.shape, old.dtype)
        assert new.shape[0] == SLOTS
    assert all(torch.equal(a, b) for a, b in zip(given, reasoner.init_state(SLOTS, SPEC.length), strict=True))
    assert prediction.logits.shape == (SLOTS, SPEC.length, SPEC.vocab_size)
    assert prediction.logits.requires_grad
    for logits in (prediction.halt_logits, prediction.continue_logits):
        assert (logits.shape, logits.dtype) == ((SLOTS,), torch.float32)
    assert prediction.halt_logits.requires_grad


@every_reasoner
@every_gradient
def test_a_row_does_not_depend_on_its_neighbours(name, config, gradient):
    """At equal batch size a row's prediction and state are the same bits whoever sits beside it, NaN included."""
    reasoner, policy = build(name, config), GRADIENTS[gradient]()
    batch, other = puzzles(), puzzles(seed=1)
    state, _ = reasoner(reasoner.init_state(SLOTS, SPEC.length), batch, policy)
    expected_state, expected = reasoner(state, batch, policy)
    for row in range(SLOTS):
        alone = torch.arange(SLOTS) == row
        company = Batch(*(torch.where(alone.view(-1, *(1,) * (a.dim() - 1)), a, b)
                          for a, b in zip(batch, other, strict=True)))  # fmt: skip
        poisoned = type(state)(*(t.clone() for t in state))
        for tensor in poisoned:
            tensor[~alone] = float("nan")
        new_state, prediction = reasoner(poisoned, company, policy)
        for a, b in zip((*new_state, *prediction), (*expected_state, *expected), strict=True):
            assert torch.equal(a[row], b[row])


@every_reasoner
def test_state_and_weights_are_fixed_by_the_seed(name, config):
    """Equal configs give equal weights and equal initial states, whatever the global generator; another seed others."""
    first = build(name, config)
    torch.rand(1)
    same = build(name, config)
    other = build(name, dataclasses.replace(config, seed=config.seed + 1))
    assert first.state_dict().keys() == same.state_dict().keys()
    for key, tensor in first.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[key])
    differs = [not torch.equal(tensor, other.state_dict()[key]) for key, tensor in first.state_dict().items()]
    assert sum(differs) > len(differs) / 2
    one, many = first.init_state(1, SPEC.length), same.init_state(SLOTS, SPEC.length)
    for a, b, c in zip(one, many, other.init_state(1, SPEC.length), strict=True):
        assert torch.equal(a.expand_as(b), b)
        assert not torch.equal(a, c)


@every_reasoner
def test_the_global_generator_is_left_alone(name, config):
    """Building a reasoner and taking a step draw nothing from torch's global generator."""
    before = torch.get_rng_state()
    reasoner = build(name, config)
    reasoner(reasoner.init_state(SLOTS, SPEC.length), puzzles(), next(iter(GRADIENTS.values()))())
    assert torch.equal(torch.get_rng_state(), before)


@every_reasoner
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_checkpoint_gives_the_same_predictions(name, config, dtype, tmp_path):
    """A model that was written and read predicts the same bits, and is the same model in everything it says."""
    reasoner = build(name, config, dtype, TASK.spec)
    with torch.no_grad():
        rng = torch.Generator().manual_seed(0)
        for p in reasoner.parameters():
            p.add_(torch.randn(p.shape, generator=rng), alpha=0.02)
    gradient, halting = next(iter(GRADIENTS.values()))(), next(iter(HALTINGS.values()))
    model = Model(
        task=TASK, reasoner=reasoner, gradient=gradient, halting=halting(halting.Config(max_steps=5, exploration=0.25))
    )
    write_config(tmp_path, model, {"steps": 7})
    save_weights(tmp_path, reasoner, {"step": 3})
    again, notes = load_model(tmp_path)
    assert notes["step"] == 3
    assert type(again.reasoner) is type(reasoner)
    assert (again.reasoner.config, again.reasoner.spec, again.reasoner.dtype) == (config, TASK.spec, dtype)
    assert (again.task.config, again.halting.config) == (TASK.config, model.halting.config)
    assert not again.reasoner.training
    batch = puzzles()._replace(puzzle_ids=torch.zeros(SLOTS, dtype=torch.int64))
    outputs = []
    for r, g in ((reasoner, gradient), (again.reasoner, again.gradient)):
        state, first = r(r.init_state(SLOTS, SPEC.length), batch, g)
        state, second = r(state, batch, g)
        outputs.append((*first, *second, *state))
    for a, b in zip(*outputs, strict=True):
        assert torch.equal(a, b)


@every_gradient
@every_halting
def test_every_policy_survives_a_checkpoint(gradient, halting, tmp_path):
    """The policies that a model was trained by are those that a checkpoint gives back."""
    name, cls = next(iter(REASONERS.items()))
    reasoner = build(name, small(cls.Config), spec=TASK.spec)
    halts = HALTINGS[halting](HALTINGS[halting].Config(max_steps=3))
    write_config(tmp_path, Model(task=TASK, reasoner=reasoner, gradient=GRADIENTS[gradient](), halting=halts), {})
    save_weights(tmp_path, reasoner, {})
    again, _ = load_model(tmp_path)
    assert type(again.gradient) is GRADIENTS[gradient]
    assert type(again.halting) is HALTINGS[halting]
    assert again.halting.config == halts.config


@every_reasoner
@every_gradient
def test_a_step_compiles_without_a_graph_break(name, config, gradient):
    """`torch.compile(fullgraph=True)` traces a step as a whole, and the trace computes the same bits."""
    shallow = {"num_layers": 1, "L_cycles": 1}  # tracing takes time for each layer of each update
    shallow = {option: value for option, value in shallow.items() if hasattr(config, option)}
    assert_compiles(build(name, dataclasses.replace(config, **shallow)), GRADIENTS[gradient]())


@every_gradient
@pytest.mark.parametrize("name", list(REASONERS))
def test_a_step_without_gradient_compiles(name, gradient):
    """The same where no gradient is asked for, as in solving."""
    with torch.no_grad():
        assert_compiles(build(name, small(REASONERS[name].Config)), GRADIENTS[gradient]())


def assert_compiles(reasoner, policy):
    torch.compiler.reset()
    batch, state = puzzles(), reasoner.init_state(SLOTS, SPEC.length)
    compiled = torch.compile(lambda *args: reasoner(*args, policy), fullgraph=True, backend="eager")
    expected_state, expected = reasoner(state, batch, policy)
    new_state, prediction = compiled(state, batch)
    for a, b in zip((*new_state, *prediction), (*expected_state, *expected), strict=True):
        assert torch.equal(a, b)
        assert a.requires_grad == b.requires_grad


@every_reasoner
@every_gradient
def test_accepts_tells_the_truth(name, config, gradient):
    """Puzzles of an accepted length get an answer of that length; those of a refused length fail, or get another."""
    reasoner, policy = build(name, config), GRADIENTS[gradient]()
    assert reasoner.accepts(SPEC.length)
    for length in (1, 2, SPEC.length - 1, SPEC.length, SPEC.length + 1, 3 * SPEC.length):
        try:
            _, prediction = reasoner(reasoner.init_state(SLOTS, length), puzzles(length), policy)
        except RuntimeError:
            runs = False
        else:
            runs = prediction.logits.shape == (SLOTS, length, SPEC.vocab_size)
            runs = runs and all(torch.isfinite(column).all() for column in prediction)
        assert reasoner.accepts(length) is bool(runs), f"length {length}"


@every_reasoner
def test_networks_and_table_are_parts_of_the_reasoner(name, config):
    """`networks` and `puzzle_table` name parts of the module itself; the parameter counts add up."""
    reasoner = build(name, config)
    modules = set(reasoner.modules())
    assert all(network in modules for network in reasoner.networks())
    table = reasoner.puzzle_table()
    assert table is None or any(table is p for p in reasoner.parameters())
    assert table is None or table.shape[0] == SPEC.num_puzzle_ids
    in_networks, in_table = reasoner.num_parameters()
    assert in_networks + in_table == sum(p.numel() for p in reasoner.parameters())


@every_reasoner
def test_refilled_slots_work(name, config):
    """A fresh slot among old ones computes what it would compute in a fresh carry, bit for bit."""
    reasoner, policy = build(name, config), next(iter(GRADIENTS.values()))()
    batch = puzzles()
    fresh = refill(reasoner, empty_carry(reasoner, batch), batch, torch.ones(SLOTS, dtype=torch.bool))
    _, expected = reasoner(fresh.state, fresh.batch, policy)
    state, _ = reasoner(fresh.state, puzzles(seed=1), policy)
    late = torch.arange(SLOTS) == 2
    carry = refill(reasoner, fresh._replace(state=detach(state)), batch, late)
    _, prediction = reasoner(carry.state, carry.batch, policy)
    for a, b in zip(prediction, expected, strict=True):
        assert torch.equal(a[2], b[2])
        assert not torch.equal(prediction.logits[1], expected.logits[1])


# ---------------------------------------------------------------- options

CONFIGS = {f"{name}": cls.Config for group in (REASONERS, HALTINGS) for name, cls in group.items()}
every_config = pytest.mark.parametrize("config_class", CONFIGS.values(), ids=CONFIGS.keys())


def refusal(build_it):
    """The message of the ConfigError that it raises; None where it accepts."""
    try:
        build_it()
    except ConfigError as error:
        return str(error)
    return None


@every_config
def test_absurd_numbers_are_refused(config_class):
    """A negative size or a size of -1 in any option but the seed, and a float that is no number, raise ConfigError in
    one line that names the option.
    """
    hints = typing.get_type_hints(config_class)
    defaults = config_class()
    tried = 0
    for field in dataclasses.fields(config_class):
        absurd = {int: (-1, -(10**6)), float: (-1.0, float("nan"), float("inf"))}.get(hints[field.name], ())
        for value in absurd if field.name != "seed" else ():
            message = refusal(lambda f=field, v=value: dataclasses.replace(defaults, **{f.name: v}))
            assert message is not None, f"{field.name} = {value} is accepted"
            assert field.name in message
            assert "\n" not in message
            tried += 1
    assert tried


@every_config
def test_unknown_choices_are_refused(config_class):
    """A value that is not among the choices of an option raises ConfigError, in Python as from a file."""
    for option, values in choices(config_class).items():
        assert refusal(lambda o=option: config_class(**{o: "no such choice"})) is not None
        for value in values:
            assert refusal(lambda o=option, v=value: from_json(config_class, {o: v})) is None


@every_config
def test_options_travel_through_json(config_class):
    """Options survive JSON; unknown ones and values of a wrong type raise ConfigError, in one line that names them."""
    config = small(config_class)
    assert from_json(config_class, to_json(config)) == config
    for field in dataclasses.fields(config_class):
        message = refusal(lambda f=field: from_json(config_class, {f.name: ["wrong"]}))
        assert message is not None
        assert field.name in message
        assert "\n" not in message
    message = refusal(lambda: from_json(config_class, {"hiden_size": 3}))
    assert message is not None
    assert "hiden_size" in message


@every_reasoner
def test_sizes_that_do_not_fit_are_refused(name, config):
    """A width that the heads do not divide is refused with ConfigError, or else the model is built and runs."""
    for size in (31, 33, 34):
        message = refusal(lambda size=size: dataclasses.replace(config, hidden_size=size))
        if message is not None:
            assert "\n" not in message
            continue
        reasoner = build(name, dataclasses.replace(config, hidden_size=size))
        _, prediction = reasoner(reasoner.init_state(SLOTS, SPEC.length), puzzles(), next(iter(GRADIENTS.values()))())
        assert prediction.logits.shape == (SLOTS, SPEC.length, SPEC.vocab_size)
