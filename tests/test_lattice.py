"""The lattice reasoner: what a step may do to the possible symbols, and that nothing but the network does it."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import loopwise
from loopwise.checkpoint import Model
from loopwise.cli.changing import changed
from loopwise.cli.thinking import show_steps
from loopwise.data import cache
from loopwise.errors import ConfigError
from loopwise.evaluation import evaluate
from loopwise.reasoners.equivariant_looped import EquivariantLooped, EquivariantLoopedConfig
from loopwise.reasoners.gradients import FullBPTT
from loopwise.reasoners.halting import AdaptiveComputationTime, Correctness, HaltingConfig
from loopwise.reasoners.lattice import Lattice, LatticeConfig
from loopwise.solving.budget_text import as_budget
from loopwise.solving.noise import Noise, add_noise
from loopwise.solving.solver import Solver
from loopwise.tasks.sorting import Sorting, SortingConfig
from loopwise.tasks.sudoku import Sudoku, SudokuConfig
from loopwise.types import Batch

TASK = Sudoku(SudokuConfig(box="2x2", train=16, validation=4, test=0))
EXAMPLES = TASK.examples("train")
BATCH = Batch(*(torch.tensor(column, dtype=torch.int64) for column in EXAMPLES))
COUNT, CELLS, DIGITS = len(BATCH.inputs), 16, 4
GIVEN = BATCH.inputs > 1
TRUTH = torch.nn.functional.one_hot(BATCH.labels - 2, DIGITS).bool()
EASY = EXAMPLES._replace(inputs=np.where(np.arange(CELLS) < 12, EXAMPLES.labels, EXAMPLES.inputs))
NEVER, ALWAYS = -30.0, 30.0


def lattice(keep=0.0, conflict=0.0, halt=0.0, scale=0.0, **options):
    """A small lattice whose heads say, beside `scale` times what the network says, the given logits."""
    torch.manual_seed(0)
    reasoner = Lattice(LatticeConfig(hidden_size=16, width_multiple=8, cycles=2, **options), TASK.spec)
    with torch.no_grad():
        for head in (reasoner.keep, reasoner.conflict, reasoner.head):
            head.weight.mul_(scale)
        reasoner.keep_bias.fill_(keep)
        reasoner.conflict_bias.fill_(conflict - np.log(CELLS * DIGITS))  # each symbol of each position may raise it
        reasoner.halt.bias.fill_(halt)
    return reasoner.eval()


@torch.no_grad()
def run(reasoner, steps, state=None, batch=None):
    """The possible symbols after each step [steps, B, L, K], for puzzles without labels."""
    batch = batch or Batch.unlabelled(BATCH.inputs)
    state = state or reasoner.init_state(*batch.inputs.shape)
    found = []
    for _ in range(steps):
        state, _ = reasoner(state, batch, FullBPTT())
        found.append(state.possible)
    return torch.stack(found)


def told(inputs=BATCH.inputs):
    """What a puzzle says: one symbol where a digit is given, all elsewhere."""
    digits = torch.nn.functional.one_hot((inputs - 2).clamp(min=0), DIGITS).bool()
    return digits | (inputs == 1).unsqueeze(2)


def test_no_rule_is_applied_by_itself():
    """A network that would keep everything eliminates nothing: every step does no more than one guess, though a digit
    beside an equal one is an obvious contradiction.
    """
    before = told()
    for after in run(lattice(keep=ALWAYS, conflict=NEVER), int((~GIVEN).sum(1).min())):
        gone = before & ~after
        assert not (after & ~before).any()
        assert (gone.any(2).sum(1) == 1).all()  # one position
        assert (after[gone.any(2)].sum(1) == 1).all()  # which has one symbol now
        before = after


def test_the_network_eliminates():
    """A network that would keep nothing leaves the given digits alone; all else goes, so that it starts again."""
    reasoner = lattice(keep=NEVER, conflict=NEVER)
    state, _ = reasoner(reasoner.init_state(COUNT, CELLS), Batch.unlabelled(BATCH.inputs), FullBPTT())
    assert state.possible.all()
    _, said = reasoner(reasoner.init_state(COUNT, CELLS), Batch.unlabelled(BATCH.labels), FullBPTT())
    assert torch.equal(said.logits.argmax(2), BATCH.labels)


def test_what_is_nearly_sure_goes_in_some_chains_only():
    """A symbol whose staying has a quarter of the threshold's probability goes in three steps of four in solving, drawn
    for each step; one far below goes in all, one above it in none. In training the threshold is the same for all.
    """
    inputs = torch.cat([BATCH.inputs[:1]] * 1000)
    labelled = BATCH._replace(inputs=inputs, labels=torch.cat([BATCH.labels[:1]] * 1000), puzzle_ids=inputs[:, 0] * 0)
    blank = ~GIVEN[0]

    def share(probability, batch):
        reasoner = lattice(keep=np.log(probability / (1 - probability)), conflict=NEVER, eliminate=0.04)
        before = told(inputs)
        state = reasoner.init_state(1000, CELLS)._replace(possible=before, steps=torch.arange(1000))
        with torch.no_grad():
            after, _ = reasoner(state, batch, FullBPTT())
        return after.possible[:, blank].flatten(1).all(1).float().mean().item()  # all gone: the chain starts again

    assert share(0.01, Batch.unlabelled(inputs)) == pytest.approx(0.75, abs=0.05)
    assert share(1e-6, Batch.unlabelled(inputs)) == 1
    assert share(0.041, Batch.unlabelled(inputs)) == 0
    assert share(0.01, labelled) == 1


def test_a_belief_in_a_conflict_starts_again():
    """Where the network believes in a conflict after a guess, everything is possible again. Without a guess it goes
    on: the same steps would lead to the same belief for ever, even if that is wrong.
    """
    for conflict in (NEVER, ALWAYS):
        first, second = run(lattice(keep=ALWAYS, conflict=conflict, again=1.0), 2)
        assert not first.flatten(1).all(1).any()
        assert bool(second.all()) is (conflict == ALWAYS)


def test_a_full_board_is_given_up_when_it_has_been_seen():
    """The step that fills a board leaves it full, so that it can be accepted; the next one starts again."""
    reasoner = lattice(keep=ALWAYS, conflict=NEVER, again=1.0)
    place = int(np.flatnonzero(~GIVEN[0].numpy())[0])
    batch = Batch.unlabelled(torch.where(torch.arange(CELLS) == place, 1, BATCH.labels[:1]))
    first, second = run(reasoner, 2, batch=batch)
    assert (first.sum(2) == 1).all()
    assert second.all()


def test_guesses_are_made_where_few_symbols_are_left():
    """Where one open position has two symbols fewer than all others, the guess is made there."""
    for place in np.flatnonzero(~GIVEN[0].numpy()):
        possible = told()
        possible[:, place, 2:] = False
        open_there = ~GIVEN[:, place]
        after = run(lattice(keep=ALWAYS, conflict=NEVER), 1, LATTICE_START._replace(possible=possible))[0]
        changed = (after != possible).any(2)
        assert changed[open_there, place].all()


LATTICE_START = lattice().init_state(COUNT, CELLS)


def test_a_retreat_keeps_what_was_eliminated_before_the_first_guess():
    """A chain that is given up goes back to the symbols that were left before its first guess, and guesses again at
    once by what the network thought of them; or, by the stated share, to the puzzle; a chain without a guess always to
    the puzzle.
    """
    inputs = torch.cat([BATCH.inputs[:1]] * 1000)
    batch, steps = Batch.unlabelled(inputs), torch.arange(1000)
    before = told(inputs)
    place = int(np.flatnonzero(~GIVEN[0].numpy())[0])
    before[:, place] = torch.tensor([True, True, False, False])
    start = lattice().init_state(1000, CELLS)._replace(possible=before, steps=steps)
    sure, alarmed = (lattice(keep=ALWAYS, conflict=belief, again=0.25) for belief in (NEVER, ALWAYS))
    severe = lattice(keep=NEVER, conflict=NEVER, again=0.25)  # leaves positions without a symbol
    with torch.no_grad():
        guessed, _ = sure(start, batch, FullBPTT())
        last = torch.nn.functional.one_hot(torch.tensor(1), DIGITS) * ALWAYS  # of two symbols the second, wherever
        retreated, _ = alarmed(guessed._replace(believed=last.expand(before.shape)), batch, FullBPTT())
        unguessed, _ = severe(start, batch, FullBPTT())
    assert (guessed.guesses == 1).all()
    anew = retreated.possible.flatten(1).all(1)
    assert anew.float().mean().item() == pytest.approx(0.25, abs=0.05)
    assert torch.equal(retreated.guesses == 0, anew)
    second = before.clone()
    second[:, place, 0] = False
    changed = (retreated.possible != before).any(2)[~anew]
    assert (changed.sum(1) == 1).all()
    assert changed[:, place].float().mean() > 0.5  # rather where two symbols are left
    assert torch.equal(retreated.possible[~anew][changed[:, place]], second[~anew][changed[:, place]])
    assert unguessed.possible.all()


def test_dice_make_chains():
    """Equal dice make equal guesses, whoever sits beside; noise in the dice, and another step, make other ones."""
    reasoner = lattice(keep=ALWAYS, conflict=NEVER)
    inputs = BATCH.inputs[:1].expand(200, -1)
    batch = Batch.unlabelled(inputs)
    fresh = reasoner.init_state(200, CELLS)
    same = run(reasoner, 1, fresh, batch)[0]
    assert (same == same[:1]).all()
    noise = [
        (row, Noise(seed=0, start=row, sigma_init=1.0, random_init=False, sigma_step=0.0), 0) for row in range(200)
    ]
    other = run(reasoner, 1, add_noise(fresh, noise), batch)[0]
    assert len({tuple(row.flatten().tolist()) for row in other}) > 20
    later = run(reasoner, 1, fresh._replace(steps=torch.arange(200)), batch)[0]
    assert len({tuple(row.flatten().tolist()) for row in later}) > 20


def test_draws_are_uniform_and_independent():
    """The numbers that guesses are made of are spread evenly between 0 and 1, and no neighbour follows another."""
    reasoner = lattice()
    state = LATTICE_START._replace(dice=torch.zeros(500), steps=torch.arange(500))
    draws = reasoner._draws(state, 400).double()
    assert ((draws > 0) & (draws < 1)).all()
    counts = torch.histc(draws, 20, 0, 1) / draws.numel()
    assert (counts - 0.05).abs().max() < 0.003
    for one, other in ((draws[:, 1:], draws[:, :-1]), (draws[1:], draws[:-1])):
        assert abs(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) < 0.01


def test_the_loss_by_hand():
    """One update's loss: the weighted cross-entropies of keeping, of the symbols and of the conflict; only
    the last where a right symbol is lost."""
    reasoner = lattice(keep=0.7, conflict=-0.4, keep_weight=3.0, conflict_weight=0.5)
    for lose in (False, True):
        possible = told()
        if lose:
            possible[:, 5] = ~TRUTH[:, 5]
        state = reasoner.init_state(COUNT, CELLS)._replace(possible=possible)
        _, said = reasoner(state, BATCH, FullBPTT())
        seen = possible & told()
        lost = (TRUTH & ~seen).flatten(1).any(1)
        right, wrong = (seen & TRUTH).sum((1, 2)), (seen & ~TRUTH).sum((1, 2))
        stay = 1 / (1 + np.exp(-0.7))
        keep = -(3.0 * right * np.log(stay) + wrong * np.log(1 - stay)) / 2 / (right + wrong)
        symbols = np.log(DIGITS)  # a network that says nothing
        chance = 1 / (1 + np.exp(0.4))
        conflict = torch.where(lost, -np.log(chance), -np.log(1 - chance))
        expected = torch.where(lost, 0.0, keep + symbols) + 0.5 * conflict
        torch.testing.assert_close(said.own_loss, expected.float(), rtol=1e-4, atol=1e-4)
        assert lost.any() == lose


def test_without_labels_there_is_no_loss():
    """A puzzle without labels has the loss 0 of keeping and of symbols, and is in no conflict."""
    reasoner = lattice(conflict=NEVER)
    _, said = reasoner(reasoner.init_state(COUNT, CELLS), Batch.unlabelled(BATCH.inputs), FullBPTT())
    assert said.own_loss.abs().max() < 1e-6


def test_in_training_lost_states_are_given_up():
    """With labels, about the stated share of the states that have lost a right symbol start again, and no other."""
    reasoner = lattice(keep=ALWAYS, conflict=NEVER, retreat=0.25)
    inputs, labels = (torch.cat([c[:1]] * 1000) for c in BATCH[:2])
    possible = told(inputs)
    place = int(np.flatnonzero(~GIVEN[0].numpy())[0])
    possible[:, place] &= ~TRUTH[0, place]
    state = reasoner.init_state(1000, CELLS)._replace(possible=possible, steps=torch.arange(1000))
    after, _ = reasoner(state, Batch(inputs, labels, inputs[:, 0] * 0), FullBPTT())
    assert after.possible.flatten(1).all(1).float().mean().item() == pytest.approx(0.25, abs=0.05)
    sound, _ = reasoner(state._replace(possible=told(inputs)), Batch(inputs, labels, inputs[:, 0] * 0), FullBPTT())
    assert not sound.possible.flatten(1).all(1).any()


def test_in_training_most_guesses_are_right():
    """With labels, a guess is right at least as often as the hint says; without, a network that knows nothing is right
    once in as many guesses as there are symbols.
    """
    inputs, labels = (torch.cat([c[:1]] * 1000) for c in BATCH[:2])
    reasoner = lattice(keep=ALWAYS, conflict=NEVER, hint=0.6)
    start = reasoner.init_state(1000, CELLS)._replace(steps=torch.arange(1000))
    shares = []
    for batch in (Batch(inputs, labels, inputs[:, 0] * 0), Batch.unlabelled(inputs)):
        after = run(reasoner, 1, start, batch)[0]
        guessed = (after.sum(2) == 1) & (inputs == 1)
        assert (guessed.sum(1) == 1).all()
        shares.append((after & TRUTH[:1]).any(2)[guessed].float().mean().item())
    assert shares == pytest.approx([0.6 + 0.4 / DIGITS, 1 / DIGITS], abs=0.05)


def test_a_means_of_states_is_refused():
    """Adaptive computation time would mix boards; it is refused in one line."""
    reasoner = lattice()
    with pytest.raises(ConfigError, match="a search such as lattice has none of"):
        AdaptiveComputationTime().step(reasoner, reasoner.init_state(COUNT, CELLS), BATCH, FullBPTT())


def model_of(reasoner):
    return Model(task=TASK, reasoner=reasoner, gradient=FullBPTT(), halting=Correctness(HaltingConfig(max_steps=64)))


def plain():
    """A lattice that does not call itself a search."""
    reasoner = lattice()
    reasoner.__class__ = type("Plain", (Lattice,), {"search": False, "__module__": __name__})
    return reasoner


@pytest.fixture(scope="module")
def guesser():
    """A network that knows nothing: it eliminates nothing and guesses evenly, so that only luck solves a puzzle."""
    return model_of(lattice(keep=ALWAYS, conflict=NEVER, halt=NEVER))


def test_an_answer_is_verified_by_the_rules_alone(guesser):
    """Of the answers of a network that knows nothing, those that the solver calls verified are solutions, the others
    are not; with enough steps luck finds some of both.
    """
    solutions = Solver(guesser, slots=16, device="cpu").solve(list(EASY.inputs), "verified|steps=12", starts=1)
    verdicts = [solution.verified for solution in solutions]
    assert {True, False} == set(verdicts)
    for puzzle, solution in zip(EASY.inputs, solutions, strict=True):
        assert solution.verified is TASK.verify(puzzle, solution.tokens)


def test_a_search_goes_on_until_the_rules_accept(guesser):
    """Without a budget a search has many more steps than in training, and stops at a verified answer; in an evaluation
    it keeps that answer, so that more steps never lower the score.
    """
    solver = Solver(guesser, slots=16, device="cpu")
    assert str(solver.default_budget) == "verified|steps=1000"
    (solution,) = solver.solve([EASY.inputs[0]])
    assert solution.verified
    ordinary = dataclasses.replace(guesser, reasoner=plain())
    assert "halted" in str(Solver(ordinary, slots=16, device="cpu").default_budget)
    scores = evaluate(guesser, EASY, steps=[1, 8, 16, 32, 64], slots=16)
    assert list(scores.exact) == sorted(scores.exact)
    assert scores.exact[-1] > 0
    assert scores.exact == scores.verified


def test_a_search_has_eight_starts(guesser):
    """Without a number of starts a search has 8; none of them is a single pass, and all end with the first success."""
    solver = Solver(guesser, slots=8, device="cpu")
    assert solver.default_starts == 8
    usual, eight, one = (solver.solve([EASY.inputs[0]], starts=starts)[0] for starts in (None, 8, 1))
    assert usual.single is None
    assert (usual.steps, usual.start) == (eight.steps, eight.start)
    assert usual.steps < one.steps
    assert usual.total_steps == 8 * usual.steps
    assert Solver(dataclasses.replace(guesser, reasoner=plain()), slots=16, device="cpu").default_starts == 1


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("name", "rows"), [("sudoku-extreme-lattice", 8), ("sudoku-extreme", 4)])
@torch.inference_mode()
def test_few_rows_are_rounded_alike(name, rows, threads):
    """In batches of `round_rows` puzzles of 9x9 everything that a step makes of a puzzle has the same bits, whichever
    place it has among whichever others.
    """
    model = loopwise.load(name).model
    model = changed(model, model.task.config, dataclasses.replace(model.reasoner.config, cycles=4))
    inputs = torch.as_tensor(np.array(cache.examples(model.task, "test").inputs[:24]), dtype=torch.int64)
    rng, seen = torch.Generator().manual_seed(1), {}
    assert model.reasoner.round_rows == rows
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(8):
            chosen = torch.randperm(len(inputs), generator=rng)[:rows]
            state = model.reasoner.init_state(rows, 81)
            if model.reasoner.search:
                state = state._replace(dice=chosen.float())
            for step in range(2):
                state, said, _ = model.step(state, Batch.unlabelled(inputs[chosen]))
                for place, number in enumerate(chosen.tolist()):
                    made = [tensor[place] for tensor in (*state, said.logits, said.halt_logits)]
                    for tensor, known in zip(made, seen.setdefault((number, step), made), strict=True):
                        assert torch.equal(tensor, known)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("task", [TASK, Sorting(SortingConfig(n=9))], ids=["2x2", "without groups"])
@torch.inference_mode()
def test_four_rows_of_small_puzzles_are_rounded_alike(task):
    """Of 4x4 boards, and where no groups are, four rows of `equivariant-looped` are rounded alike too."""
    reasoner = EquivariantLooped(EquivariantLoopedConfig(hidden_size=32, cycles=4), task.spec).eval()
    model = Model(task=task, reasoner=reasoner, gradient=FullBPTT(), halting=Correctness())
    rng, seen = torch.Generator().manual_seed(1), {}
    inputs = torch.randint(1, task.spec.vocab_size, (12, task.spec.length), generator=rng)
    for _ in range(20):
        chosen = torch.randperm(12, generator=rng)[: reasoner.round_rows]
        state, said, _ = model.step(reasoner.init_state(*inputs[chosen].shape), Batch.unlabelled(inputs[chosen]))
        for place, number in enumerate(chosen.tolist()):
            made = (state.z[place], said.logits[place], said.halt_logits[place])
            for tensor, known in zip(made, seen.setdefault(number, made), strict=True):
                assert torch.equal(tensor, known)


@torch.no_grad()
def test_guesses_wait_for_eliminations():
    """A step that eliminated something makes no guess beside it before the first guess of a chain, nor in training."""
    # A few symbols go: below one half in training, in solving below a number between 0 and 1.
    in_training, in_solving = (lattice(keep=-1.08, conflict=NEVER, scale=1.0, eliminate=most) for most in (0.5, 1.0))
    unlabelled, counts = Batch.unlabelled(BATCH.inputs), {}
    for guesses, batch in ((0, unlabelled), (1, BATCH), (1, unlabelled)):
        begun = LATTICE_START.guesses + guesses
        start = LATTICE_START._replace(guesses=begun, base=torch.zeros_like(told()), steps=torch.arange(COUNT))
        after, _ = (in_training if batch is BATCH else in_solving)(start, batch, FullBPTT())
        goes_on = after.possible.any(2).all(1)  # the base of those that retreated is empty
        eliminated = (told() & ~after.possible).any(2).sum(1) > 1  # a guess changes one position
        assert (goes_on & eliminated).any()
        counts[guesses, batch is BATCH] = set(after.guesses[goes_on & eliminated].tolist())
    assert counts == {(0, False): {0}, (1, True): {1}, (1, False): {2}}


def test_further_cycles_come_first_in_training():
    """With `progressive` a training step has 0 to as many further updates of the latent state, without a gradient, each
    number about as often, be it that all puzzles began together; a step of a solve has none.
    """
    reasoner = lattice(progressive=3)
    calls = []
    reasoner.f.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    ahead, rng = [], torch.Generator().manual_seed(0)
    for number in range(80):
        state = reasoner.init_state(COUNT, CELLS)
        state = state._replace(steps=torch.full_like(state.steps, number % 8))
        inputs = torch.where(torch.rand(BATCH.inputs.shape, generator=rng) < 0.5, 1, BATCH.inputs)  # 1 is a blank
        calls.clear()
        reasoner(state, BATCH._replace(inputs=inputs), FullBPTT())
        ahead.append(len(calls) - 2)
        assert calls == [False] * ahead[-1] + [True] * 2
        calls.clear()
        with torch.no_grad():
            reasoner(state, BATCH, FullBPTT())
        assert len(calls) == 2
    assert set(ahead) == {0, 1, 2, 3}
    assert all(10 <= ahead.count(number) <= 30 for number in range(4))


def test_a_search_can_be_watched(guesser, capsys):
    """Every step of every chain is shown with its residual; `--trace` shows the first chain's, and the answer."""
    seen = []
    with Solver(guesser, slots=8, device="cpu") as solver:
        solution = solver.begin(EASY.inputs[0], "verified|steps=40", watch=seen.append).result()
        assert {glimpse.start for glimpse in seen} == set(range(8))
        assert all(glimpse.residual > 0 for glimpse in seen)
        capsys.readouterr()
        show_steps(solver, EASY.inputs[0], as_budget("verified|steps=40"), None, number=1, as_json=True)
    *steps, last = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))
    assert {step["start"] for step in steps} == {0}
    assert last == {
        "puzzle": 1,
        "step": solution.steps,
        "answer": [TASK.spec.symbols[token] for token in solution.tokens],
        "verified": True,
        "start": solution.start,
    }
