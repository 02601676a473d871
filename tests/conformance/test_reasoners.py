"""What every reasoner, gradient policy and halting policy must do; a new one is found by its base class.

Three sets of cases, all small. PRODUCT: every reasoner with every gradient policy and every halting policy. VARIANTS:
every reasoner with every two of the choices that its config offers (fields of type `Literal` or `bool`) together, and
at the edges of its sizes, under the policies of its paper. POLICIES: the same for the options of the policies, the
reasoners taking turns. A claim is tested on all three, or on as many of them as can matter to it.
"""

import dataclasses
import itertools
import typing

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import loopwise.reasoners
from judging import judged
from loopwise.checkpoint import Model, load_model, save_weights, write_config
from loopwise.config import from_json, to_json
from loopwise.data.stream import Stream
from loopwise.errors import ConfigError
from loopwise.evaluation import evaluate
from loopwise.reasoners.base import GradientPolicy, Reasoner
from loopwise.reasoners.carry import empty_carry, refill
from loopwise.reasoners.halting import HaltingPolicy
from loopwise.registry import discover
from loopwise.solving.solver import Solver
from loopwise.storage import read_tensors, write_tensors
from loopwise.tasks.sorting import Sorting, SortingConfig
from loopwise.training.config import TrainingConfig
from loopwise.training.losses import answer_loss
from loopwise.training.trainer import Trainer
from loopwise.types import Batch

PACKAGE = loopwise.reasoners.__name__
REASONERS = discover(PACKAGE, Reasoner)
GRADIENTS = discover(PACKAGE, GradientPolicy)
HALTINGS = discover(PACKAGE, HaltingPolicy)

SMALL = {
    "hidden_size": 32, "num_heads": 2, "registers": 2, "width_multiple": 8, "num_states": 2,
    "num_layers": 2, "H_layers": 1, "L_layers": 2, "H_cycles": 2, "L_cycles": 2, "cycles": 2,
    "k": 2, "max_cycles": 3, "steps": 2, "max_steps": 3, "max_ponder": 3,
}  # fmt: skip
"""Sizes under which a test is quick, for the fields that exist, of reasoners and of policies."""
TINY = {
    **SMALL, "hidden_size": 8, "registers": 1, "width_multiple": 4, "num_layers": 1, "L_layers": 1,
    "H_cycles": 1, "L_cycles": 1, "cycles": 1, "max_cycles": 2, "steps": 1, "max_ponder": 2,
}  # fmt: skip
"""The least that still has every kind of loop; tracing takes time for each layer of each update."""
NEEDED = {"convolution": {"registers": 0}}
"""What a choice asks of other options."""
EDGES = (
    {"registers": 0}, {"registers": 1}, {"num_heads": 1}, {"num_layers": 1}, {"L_layers": 1}, {"H_cycles": 1},
    {"L_cycles": 1}, {"cycles": 1}, {"num_states": 1}, {"num_states": 3},
    {"k": 1}, {"k": 1000}, {"max_cycles": 1}, {"tolerance": 0.0}, {"tolerance": 0.5}, {"steps": 1}, {"damping": 1.0},
    {"max_steps": 1}, {"max_ponder": 1}, {"epsilon": 0.5}, {"target_every": 2}, {"exploration": 0.0}, {"weight": 0.0},
)  # fmt: skip

SLOTS = 4
TASK = Sorting(SortingConfig(n=6, values=5, train=SLOTS, validation=1, test=1))
SPEC = dataclasses.replace(TASK.spec, num_puzzle_ids=4)
TINY_SPEC = dataclasses.replace(SPEC, shape=(2,))


def choices(config_class):
    """{field: the values it can take} of the fields that offer a choice."""
    hints = typing.get_type_hints(config_class)
    found = {name: typing.get_args(hint) for name, hint in hints.items() if typing.get_origin(hint) is typing.Literal}
    return found | {name: (False, True) for name, hint in hints.items() if hint is bool}


def small(config_class, sizes=SMALL, **options):
    """A small config; options that the class does not have are dropped."""
    names = {field.name for field in dataclasses.fields(config_class)}
    options = {**options, **NEEDED.get(options.get("core"), {})}
    return config_class(**{name: value for name, value in {**sizes, **options}.items() if name in names})


def changed(config_class):
    """A small config in which every option, where that can be, has another value than its default."""
    config = small(config_class)
    for field in dataclasses.fields(config_class):
        if getattr(config, field.name) != field.default:
            continue
        others = choices(config_class).get(field.name, ())
        if not others:
            others = (field.default / 2, 0.25) if isinstance(field.default, float) else (field.default + 1,)
        for value in others:
            if value != field.default and refusal(lambda c=config, f=field, v=value: replaced(c, f.name, v)) is None:
                config = replaced(config, field.name, value)
                break
    return config


def replaced(config, name, value):
    return dataclasses.replace(config, **{name: value})


def refusal(build_it):
    """The message of the ConfigError that it raises; None where it accepts."""
    try:
        build_it()
    except ConfigError as error:
        return str(error)
    return None


def together(offered):
    """Options such that every two values of two fields occur together in one of them; few, by a greedy search."""
    fields = list(offered)
    if len(fields) < 2:
        return [{field: value} for field in fields for value in offered[field]]
    everything = [(field, value) for field in fields for value in offered[field]]
    missing = {(a, b): None for a, b in itertools.combinations(everything, 2) if a[0] != b[0]}
    rows = []
    while missing:
        row = dict(next(iter(missing)))
        for field in fields:
            if field not in row:
                gains = [
                    sum(
                        ((o, row[o]), (field, value)) in missing or ((field, value), (o, row[o])) in missing
                        for o in row
                    )
                    for value in offered[field]
                ]
                row[field] = offered[field][gains.index(max(gains))]
        for pair in itertools.combinations([(field, row[field]) for field in fields], 2):
            missing.pop(pair, None)
        rows.append(row)
    return rows


def each(offered):
    """Options such that every value of every field occurs in one of them."""
    rows = range(max(map(len, offered.values()), default=0))
    return [{field: values[row % len(values)] for field, values in offered.items()} for row in rows]


def variants(config_class, sizes=SMALL, choose=together, edges=EDGES):
    """{label: config}: the small default, every two choices together (or what else is to be chosen), and every edge."""
    found = {small(config_class, sizes): "default"}
    for options in (*choose(choices(config_class)), *edges):
        config = small(config_class, sizes, **options)
        found.setdefault(config, ",".join(f"{k}={v}" for k, v in options.items()))
    return {label: config for config, label in found.items()}


class Parts(typing.NamedTuple):
    """What a model is made of beside its task."""

    name: str
    config: typing.Any
    gradient: typing.Any
    halting: typing.Any

    def build(self, dtype=torch.float32, spec=SPEC):
        return REASONERS[self.name](self.config, spec, dtype)

    def step(self, reasoner, state, batch):
        """One supervision step, as training and solving take it."""
        return self.halting.step(reasoner, state, batch, self.gradient)


def parts(name, config=None, gradient=None, halting=None, sizes=SMALL):
    """A reasoner under the policies of its paper, each part at its small default, but for what is given."""
    cls = REASONERS[name]
    chosen = gradient or cls.default_gradient, halting or cls.default_halting
    policies = [found[n](small(found[n].Config, sizes)) if isinstance(n, str) else n
                for n, found in zip(chosen, (GRADIENTS, HALTINGS), strict=True)]  # fmt: skip
    return Parts(name, config or small(cls.Config, sizes), *policies)


def suits(name, halting):
    """Whether a reasoner can be trained by a halting policy: adaptive computation time takes means of states,
    which a search has none of."""
    return halting != "act" or not REASONERS[name].search


def crossed(reasoners=REASONERS, gradients=GRADIENTS, haltings=HALTINGS, sizes=SMALL):
    """{id: parts} of the product of what is named."""
    names = [n for n in itertools.product(reasoners, gradients, haltings) if suits(n[0], n[2])]
    return {"-".join(n): parts(n[0], None, *n[1:], sizes=sizes) for n in names}


def varied():
    """{id: parts} of every variant of every reasoner, but for the default."""
    return {
        f"{name}-{label}": parts(name, config)
        for name, cls in REASONERS.items()
        for label, config in variants(cls.Config).items()
        if label != "default"
    }


def policy_varied():
    """{id: parts} of every variant of every policy, but for the default; the reasoners take turns."""
    found, turns = {}, itertools.cycle(REASONERS)
    for kind, known in (("gradient", GRADIENTS), ("halting", HALTINGS)):
        for policy, cls in known.items():
            for label, config in variants(cls.Config).items():
                if label != "default":
                    name = next(name for name in turns if kind == "gradient" or suits(name, policy))
                    found[f"{name}-{policy}-{label}"] = parts(name, **{kind: cls(config)})
    return found


def taking_turns():
    """{id: parts} of every gradient policy with every halting policy, the reasoners taking turns."""
    turns = zip(itertools.cycle(REASONERS), itertools.product(GRADIENTS, HALTINGS), strict=False)
    pairs = [(name, policies) for name, policies in turns if suits(name, policies[1])]
    return {"-".join((name, *policies)): parts(name, None, *policies) for name, policies in pairs}


def cases(*groups):
    """A parametrization by parts; two cases that are the same are one."""
    found = {}
    for group in groups:
        for label, p in group.items():
            key = (p.name, p.config, *((type(q), q.config) for q in (p.gradient, p.halting)))
            found.setdefault(key, (label, p))
    return pytest.mark.parametrize("of", [pytest.param(p, id=label) for label, p in found.values()])


PRODUCT, VARIANTS, POLICIES = crossed(), varied(), policy_varied()
DEFAULTS = {name: parts(name) for name in REASONERS}
every_variant = cases(DEFAULTS, VARIANTS)
everything = cases(DEFAULTS, PRODUCT, VARIANTS, POLICIES)


def awaken(reasoner):
    """Draw the weights that start at a constant (of the halting head, of the puzzle table), so that they have a say.

    Not a single number, such as the bias of the lattice's alarm: drawn, it would ring at each step and undo all states.
    """
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in reasoner.parameters():
            if p.numel() > 1 and (p == p.flatten()[0]).all():
                p.copy_(torch.randn(p.shape, generator=rng))
    return reasoner


def puzzles(length=SPEC.length, seed=0):
    """A batch in which all tokens and all identities occur, for any length of more than one."""
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.arange(2 * SLOTS * length) % SPEC.vocab_size
    inputs, labels = tokens[torch.randperm(len(tokens), generator=rng)].view(2, SLOTS, length)
    return Batch(inputs, labels, torch.arange(SLOTS) % SPEC.num_puzzle_ids)


def loss_of(advance, batch, halting):
    answer, _, correct = answer_loss("softmax", advance.prediction.logits, batch.labels)
    answer = answer + advance.prediction.own_loss.sum()
    return answer + halting.loss(judged(advance.prediction, correct, ponder=advance.ponder))


def flat(advance):
    """All tensors of the outcome of a step."""
    return (*advance.state, *advance.prediction, advance.ponder)


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


# ---------------------------------------------------------------- the step


@cases(DEFAULTS, PRODUCT, VARIANTS)
def test_a_gradient_reaches_every_parameter(of):
    """Within three steps of training every parameter has had a gradient that is finite and not all zero."""
    reasoner, batch = of.build(), puzzles()
    state = reasoner.init_state(SLOTS, SPEC.length)
    waiting = {parameter for parameter, _ in reasoner.named_parameters()}
    for _ in range(3):
        advance = of.step(reasoner, state, batch)
        loss_of(advance, batch, of.halting).backward()
        state = advance.state
        for parameter, p in reasoner.named_parameters():
            values = p.grad.to_dense() if p.grad is not None else torch.zeros(1)
            assert torch.isfinite(values).all()
            if values.abs().max() > 0:
                waiting.discard(parameter)
            with torch.no_grad():
                p.add_(values, alpha=-0.01)
            p.grad = None
    assert not waiting


@everything
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_state_is_cut_and_the_prediction_is_not(of, dtype):
    """After a step no tensor of the state asks for a gradient, the given state is as it was, and both the answer and
    the halting logit can be differentiated; shapes and formats are as documented, of verdict and loss too.
    """
    reasoner, batch = awaken(of.build(dtype)), puzzles()
    fresh = reasoner.init_state(SLOTS, SPEC.length)
    given = type(fresh)(*(t.clone() for t in fresh))
    advance = of.step(reasoner, given, batch)
    assert type(advance.state) is type(given)
    for new, old in zip(advance.state, given, strict=True):
        assert not new.requires_grad
        assert (new.shape, new.dtype) == (old.shape, old.dtype)
        assert new.shape[0] == SLOTS
        assert new.dtype == dtype or not new.is_floating_point()
        assert torch.isfinite(new).all()
    assert_same(given, fresh)
    logits, halts, continues, own_loss, hints = advance.prediction
    assert hints.shape == (SLOTS, SPEC.length, 0)
    assert (logits.shape, logits.dtype) == ((SLOTS, SPEC.length, SPEC.vocab_size), dtype)
    assert logits.requires_grad
    assert halts.requires_grad
    for column in (halts, continues, own_loss, advance.ponder):
        assert (column.shape, column.dtype) == ((SLOTS,), torch.float32)
    assert (advance.ponder >= 1).all()
    done = of.halting.done(advance.prediction)
    assert (done.shape, done.dtype) == ((SLOTS,), torch.bool)
    loss = loss_of(advance, batch, of.halting)
    assert loss.shape == ()
    assert torch.isfinite(loss)


# A search that a batch of ordinary rows ends at once, and a batch with a row that never converges does not.
TOLERANT = {f"{label}-tolerant": of for label, of in crossed(sizes={**SMALL, "tolerance": 0.5}).items()}


@cases(DEFAULTS, PRODUCT, VARIANTS, POLICIES, TOLERANT)
def test_a_row_does_not_depend_on_its_neighbours(of):
    """At equal batch size a row's prediction and state are the same bits whoever sits beside it, NaN included."""
    reasoner = awaken(of.build())
    batch, other = puzzles(), puzzles(seed=1)
    state = of.step(reasoner, reasoner.init_state(SLOTS, SPEC.length), batch).state
    expected = flat(of.step(reasoner, state, batch))
    for row in range(SLOTS):
        alone = torch.arange(SLOTS) == row
        company = Batch(*(torch.where(alone.view(-1, *(1,) * (a.dim() - 1)), a, b)
                          for a, b in zip(batch, other, strict=True)))  # fmt: skip
        neighbours = type(state)(*(t.clone() for t in state))
        if row % 2:
            for tensor in neighbours:
                if tensor.is_floating_point():
                    tensor[~alone] = float("nan")
        for a, b in zip(flat(of.step(reasoner, neighbours, company)), expected, strict=True):
            assert torch.equal(a[row], b[row])


@everything
def test_the_global_generator_is_left_alone(of):
    """Building a reasoner and taking a step of training draw nothing from torch's global generator, nor set it."""
    torch.manual_seed(len(of.name))
    before = torch.get_rng_state()
    reasoner, batch = of.build(), puzzles()
    advance = of.step(reasoner, reasoner.init_state(SLOTS, SPEC.length), batch)
    loss_of(advance, batch, of.halting).backward()
    of.halting.explore(SLOTS, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


@cases(DEFAULTS, PRODUCT, VARIANTS)
def test_refilled_slots_work(of):
    """A fresh slot among old ones computes what it would compute in a fresh carry, bit for bit."""
    reasoner, batch = awaken(of.build()), puzzles()
    fresh = refill(reasoner, empty_carry(reasoner, batch), batch, torch.ones(SLOTS, dtype=torch.bool))
    expected = of.step(reasoner, fresh.state, fresh.batch)
    old = of.step(reasoner, fresh.state, puzzles(seed=1)).state
    late = torch.arange(SLOTS) == 2
    carry = refill(reasoner, fresh._replace(state=old), batch, late)
    advance = of.step(reasoner, carry.state, carry.batch)
    for a, b in zip(flat(advance), flat(expected), strict=True):
        assert torch.equal(a[2], b[2])
    assert not torch.equal(advance.prediction.logits[1], expected.prediction.logits[1])


# ---------------------------------------------------------------- checkpoints


def with_all_options(of):
    """The same parts with every option, where that can be, at another value than its default."""
    gradient, halting = (type(policy)(changed(policy.Config)) for policy in (of.gradient, of.halting))
    return Parts(of.name, changed(REASONERS[of.name].Config), gradient, halting)


@cases({f"{label}-all-options": with_all_options(of) for label, of in PRODUCT.items()}, VARIANTS, POLICIES)
def test_a_checkpoint_gives_the_same_model(of, tmp_path):
    """A model that was written and read predicts the same bits, and has the same parts with all their options."""
    assert_written_and_read(of, torch.float32, tmp_path)


@every_variant
def test_a_checkpoint_in_bfloat16_gives_the_same_model(of, tmp_path):
    """The same in the other number format."""
    assert_written_and_read(of, torch.bfloat16, tmp_path)


def assert_written_and_read(of, dtype, folder):
    reasoner = awaken(of.build(dtype, TASK.spec))
    model = Model(task=TASK, reasoner=reasoner, gradient=of.gradient, halting=of.halting)
    write_config(folder, model, {"steps": 7})
    save_weights(folder, reasoner, {"step": 3})
    again, notes = load_model(folder)
    assert notes["step"] == 3
    assert (again.reasoner.spec, again.reasoner.dtype) == (TASK.spec, dtype)
    for part in ("task", "reasoner", "gradient", "halting"):
        assert type(getattr(again, part)) is type(getattr(model, part))
        assert getattr(again, part).config == getattr(model, part).config
    assert not again.reasoner.training
    batch = puzzles()._replace(puzzle_ids=torch.zeros(SLOTS, dtype=torch.int64))
    outcomes = []
    for m in (model, again):
        first = m.step(m.reasoner.init_state(SLOTS, SPEC.length), batch)
        outcomes.append((*flat(first), *flat(m.step(first.state, batch))))
    assert_same(*outcomes)


# ---------------------------------------------------------------- compilation


# Policies that inherit their step are the same program: one of them is traced for all.
STEPS = list({cls.step: name for name, cls in reversed(HALTINGS.items())}.values())


TRACED = {
    f"{name}-{label}": parts(name, config, "last-cycle", sizes=TINY)
    for name, cls in REASONERS.items()
    for label, config in variants(cls.Config, TINY, each, edges=()).items()
}


@cases(crossed(haltings=STEPS, sizes=TINY), TRACED)
def test_a_step_compiles_without_a_graph_break(of):
    """`torch.compile(fullgraph=True)` traces a step of training as a whole, and the trace computes the same bits."""
    assert_compiles(of)


@cases(crossed(reasoners=list(REASONERS)[:1], haltings=STEPS[:1], sizes=TINY))
def test_a_step_without_gradient_compiles(of):
    """The same where no gradient is asked for, as in solving."""
    with torch.no_grad():
        assert_compiles(of)


def assert_compiles(of):
    torch.compiler.reset()
    reasoner, batch = awaken(of.build(spec=TINY_SPEC)), puzzles(TINY_SPEC.length)
    state = reasoner.init_state(SLOTS, TINY_SPEC.length)
    compiled = torch.compile(lambda *args: of.step(reasoner, *args), fullgraph=True, backend="eager")
    one, other = flat(compiled(state, batch)), flat(of.step(reasoner, state, batch))
    assert_same(one, other)
    assert [t.requires_grad for t in one] == [t.requires_grad for t in other]


# ---------------------------------------------------------------- the reasoner by itself


@every_variant
def test_state_and_weights_are_fixed_by_the_seed(of):
    """Equal configs give equal weights and equal initial states, whatever the global generator; another seed others."""
    first = of.build()
    torch.rand(1)
    same = of.build()
    other = of._replace(config=dataclasses.replace(of.config, seed=of.config.seed + 1)).build()
    assert first.state_dict().keys() == same.state_dict().keys()
    assert_same(first.state_dict().values(), same.state_dict().values())
    constant = [bool((t == t.flatten()[0]).all()) for t in first.state_dict().values()]
    equal = [torch.equal(t, other.state_dict()[key]) for key, t in first.state_dict().items()]
    assert equal == constant
    one, many = first.init_state(1, SPEC.length), same.init_state(SLOTS, SPEC.length)
    for a, b, c in zip(one, many, other.init_state(1, SPEC.length), strict=True):
        assert torch.equal(a.expand_as(b), b)
        assert bool((a == a.flatten()[0]).all()) or not torch.equal(a, c)


@cases(DEFAULTS, VARIANTS, crossed(haltings=STEPS))
def test_accepts_tells_the_truth(of):
    """Puzzles of an accepted length get an answer of that length; those of a refused length fail, or get another."""
    reasoner = of.build()
    assert reasoner.accepts(SPEC.length)
    for length in (1, 2, SPEC.length - 1, SPEC.length, SPEC.length + 1, 3 * SPEC.length):
        try:
            prediction = of.step(reasoner, reasoner.init_state(SLOTS, length), puzzles(length)).prediction
        except RuntimeError:
            runs = False
        else:
            runs = prediction.logits.shape == (SLOTS, length, SPEC.vocab_size)
            runs = runs and all(torch.isfinite(column).all() for column in prediction)
        assert reasoner.accepts(length) is bool(runs), f"length {length}"


@every_variant
def test_networks_and_table_are_parts_of_the_reasoner(of):
    """`networks` and `puzzle_table` name parts of the module itself; the parameter counts add up."""
    reasoner = of.build()
    modules = set(reasoner.modules())
    assert all(network in modules for network in reasoner.networks())
    table = reasoner.puzzle_table()
    assert table is None or any(table is p for p in reasoner.parameters())
    assert table is None or table.shape[0] == SPEC.num_puzzle_ids
    in_networks, in_table = reasoner.num_parameters()
    assert in_networks + in_table == sum(p.numel() for p in reasoner.parameters())


@pytest.mark.parametrize("name", REASONERS)
def test_the_policies_of_its_paper_exist(name):
    """The policies that a reasoner names as its own are found by these names."""
    assert REASONERS[name].default_gradient in GRADIENTS
    assert REASONERS[name].default_halting in HALTINGS


# ---------------------------------------------------------------- training, solving, evaluation


EXAMPLES = TASK.examples("train")
LEARNING = TrainingConfig(
    batch_size=SLOTS, lr=3e-3, warmup_steps=2, weight_decay=0.0, puzzle_lr=1e-3, loss="softmax", ema=0.5
)


def trainer_of(of):
    """The real trainer of a small model, and that model."""
    model = Model(task=TASK, reasoner=of.build(spec=TASK.spec), gradient=of.gradient, halting=of.halting)
    stream = Stream(TASK, EXAMPLES, LEARNING.seed, augment=False, shorten=False)
    return Trainer(model.reasoner, of.gradient, of.halting, stream, LEARNING, Accelerator(cpu=True)), model


@pytest.mark.parametrize("name", REASONERS)
def test_it_learns_solves_and_is_evaluated(name):
    """Under the policies of its paper a reasoner learns four puzzles by heart in the real trainer: the loss of the
    answer falls by half. What it has become solves puzzles, and evaluation counts what the solver answers.
    """
    trainer, model = trainer_of(parts(name, small(REASONERS[name].Config, core="mlp")))
    losses = [trainer.train_step().answer_loss for _ in range(96)]
    assert np.mean(losses[-16:]) < 0.5 * np.mean(losses[:4])
    scores = evaluate(model, EXAMPLES, steps=[1, 3])
    solutions = Solver(model, slots=SLOTS, device="cpu").solve(list(EXAMPLES.inputs), budget=3)
    answers = np.stack([solution.tokens for solution in solutions])
    assert scores.tokens[-1] == pytest.approx((answers == EXAMPLES.labels).mean())
    assert scores.exact[-1] == (answers == EXAMPLES.labels).all(-1).sum()
    assert scores.token_accuracy > 0.5


@cases(DEFAULTS, taking_turns())
def test_training_continues_bit_for_bit(of, tmp_path):
    """A trainer that was saved after two steps and loaded into a new one takes the same next two, and ends in the same
    weights, moments, slots and numbers; no loss is other than finite.
    """
    straight, _ = trainer_of(of)
    for _ in range(2):
        straight.train_step()
    write_tensors(tmp_path / "state.safetensors", *straight.state())
    resumed, _ = trainer_of(of)
    resumed.load_state(*read_tensors(tmp_path / "state.safetensors"))
    for _ in range(2):
        metrics = straight.train_step()
        assert np.isfinite(metrics).all()
        assert resumed.train_step() == metrics
    (tensors, numbers), (others, other_numbers) = straight.state(), resumed.state()
    assert (tensors.keys(), numbers) == (others.keys(), other_numbers)
    assert_same(tensors.values(), [others[name] for name in tensors])


# ---------------------------------------------------------------- options

CONFIGS = {
    f"{kind}-{name}": cls.Config
    for kind, known in (("reasoner", REASONERS), ("gradient", GRADIENTS), ("halting", HALTINGS))
    for name, cls in known.items()
    if dataclasses.fields(cls.Config)
}
every_config = pytest.mark.parametrize("config_class", CONFIGS.values(), ids=CONFIGS.keys())


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
            message = refusal(lambda f=field, v=value: replaced(defaults, f.name, v))
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
            needed = NEEDED.get(value, {})
            assert refusal(lambda o=option, v=value, n=needed: from_json(config_class, {o: v, **n})) is None


@every_config
def test_options_travel_through_json(config_class):
    """Options survive JSON; unknown ones and values of a wrong type raise ConfigError, in one line that names them."""
    for config in (small(config_class), changed(config_class)):
        assert from_json(config_class, to_json(config)) == config
    for field in dataclasses.fields(config_class):
        message = refusal(lambda f=field: from_json(config_class, {f.name: ["wrong"]}))
        assert message is not None
        assert field.name in message
        assert "\n" not in message
    message = refusal(lambda: from_json(config_class, {"hiden_size": 3}))
    assert message is not None
    assert "hiden_size" in message


@every_variant
def test_sizes_that_do_not_fit_are_refused(of):
    """A width that the heads do not divide is refused with ConfigError, or else the model is built and runs."""
    for size in (31, 33, 34):
        message = refusal(lambda size=size: replaced(of.config, "hidden_size", size))
        if message is not None:
            assert "\n" not in message
            continue
        wide = of._replace(config=replaced(of.config, "hidden_size", size))
        reasoner = wide.build()
        prediction = wide.step(reasoner, reasoner.init_state(SLOTS, SPEC.length), puzzles()).prediction
        assert prediction.logits.shape == (SLOTS, SPEC.length, SPEC.vocab_size)
