"""The lattice reasoner: its state is what is still possible, and one supervision step takes some of that away.

For each position it keeps the set of symbols that may stand there. A step lets the network look at these sets (a few
updates of a fresh latent state), and then

    eliminates   the symbols that the network is nearly sure cannot stand there; how sure is drawn anew for each step,
                 so that a mistake made before the first guess is not made by every chain;
    gives up     where a position has no symbol left, or where after a guess the network believes that a right one has
                 been lost, and starts again from what it had eliminated before its first guess, where another guess
                 is made at once by what the network thought there, or now and then from the puzzle;
    guesses      at a position with few symbols left, rather one where the network is sure, a symbol drawn from the
                 network's own distribution; the first guess of a chain waits for a step that eliminated nothing.

So a chain of steps is a search, in the slots, and its score is reported as search. No rule of the puzzle is applied:
each elimination, each guess and each retreat is the network's, and whether an answer is right is for the task to say.

In training every guess waits so. The label says which symbols are right, and the loss is taken after every update of
the latent state: of each symbol being kept or not, of the answer, and of any right symbol having been lost. The states
that are trained on are those to which the search itself has come. Source: the lattice deduction transformer (arXiv
2605.08605); its transformer is replaced by the network over symbols, which needs no augmentation by names of digits
and far fewer FLOPs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loopwise.errors import ConfigError
from loopwise.nn.layers import Linear, few_columns
from loopwise.reasoners.base import GradientPolicy, ReasonerConfig, Recursion, State, detach
from loopwise.reasoners.candidates import CandidateReasoner
from loopwise.reasoners.symbols import SymbolConfig
from loopwise.runtime import generator
from loopwise.types import Batch, Prediction, TaskSpec

__all__ = ["Lattice", "LatticeConfig", "LatticeState"]

RULED_OUT = -20.0
"""What is added to the logit of a symbol that has been eliminated."""
MANY = 2**20
PRIME = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class LatticeConfig(SymbolConfig):
    """Options of the lattice reasoner."""

    num_layers: int = 1
    """Blocks of the network."""
    cycles: int = 8
    """Updates of the latent state in a supervision step."""
    progressive: int = 0
    """In training, as many updates at most, a new number at each step, come before the `cycles` through which the
    gradient flows, so that more cycles can be used in solving (progressive loss, arXiv 2202.05826).
    """
    eliminate: float = 0.03
    """A symbol goes where the network gives its staying less than this probability, in solving less than a random share
    of it (uniform in 0 to 1, drawn for each step).
    """
    conflict: float = 0.9
    """The search starts again where the network, after a guess, believes more than this that a right symbol has been
    lost. At 0.5 it would give up after a fair guess between two.
    """
    again: float = 0.1
    """Share of the chains that start from the puzzle: what was eliminated before the first guess may have been wrong.
    """
    temperature: float = 1.0
    """Of the distribution from which a guess is drawn; near 0 the most probable symbol is taken."""
    keep_weight: float = 8.0
    """How much more it costs, in training, to lose a right symbol than to keep a wrong one."""
    conflict_weight: float = 1.0
    """Weight of the loss of the belief in a conflict."""
    hint: float = 0.9
    """In training, probability that a guess is the right symbol; else most states would have lost one and teach little.
    """
    retreat: float = 0.1
    """In training, probability that a state which has lost a right symbol is given up, whether that is noticed or not.
    """

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        super().__post_init__()
        self.at_least_one("cycles")
        if self.progressive < 0:
            raise ConfigError(f"progressive must be at least 0, not {self.progressive}")
        for name in ("eliminate", "conflict", "again", "hint", "retreat"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a probability, not {getattr(self, name)}")
        for name in ("temperature", "keep_weight"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be more than 0, not {getattr(self, name)}")
        if self.conflict_weight < 0:
            raise ConfigError(f"conflict_weight must be at least 0, not {self.conflict_weight}")


class LatticeState(NamedTuple):
    """What is still possible, and what the network thought of it."""

    possible: Tensor  # [B, L, K] bool; what the puzzle itself says is taken into account at the next step
    base: Tensor  # [B, L, K] bool; what was possible before the first guess
    believed: Tensor  # [B, L, K]; the logits of the symbols there
    guesses: Tensor  # [B] int64, in this chain
    z: Tensor  # [B, L, K, D], the latent state of the last step
    dice: Tensor  # [B] float; noise in it makes another chain of guesses
    steps: Tensor  # [B] int64, steps of this puzzle, over all its chains


class _Thought(NamedTuple):
    """What a gradient policy sees: the latent state."""

    z: Tensor  # [B, L, K, D]


class _Opinion(NamedTuple):
    """What is read from a latent state."""

    symbols: Tensor  # [B, L, K], logits of the symbols of a position
    keep: Tensor  # [B, L, K], logits of each symbol's staying
    conflict: Tensor  # [B], logits of some position's having lost its right symbol


@final
class Lattice(CandidateReasoner[LatticeConfig]):
    """Search over sets of possible symbols, by a network."""

    name: ClassVar[str] = "lattice"
    Config: ClassVar[type[ReasonerConfig]] = LatticeConfig
    default_gradient: ClassVar[str] = "full-bptt"
    search: ClassVar[bool] = True
    round_rows: ClassVar[int] = 8  # hundreds of rows in each product, and none of few columns

    def __init__(self, config: LatticeConfig, spec: TaskSpec, dtype: torch.dtype = torch.float32) -> None:
        rng = generator("cpu", config.seed)
        super().__init__(config, spec, dtype, rng)
        size = config.hidden_size
        self.keep = Linear(size, 1, rng)
        self.keep_bias = nn.Parameter(torch.zeros(1))
        self.conflict = Linear(size, 1, rng)
        # Any symbol of any position may raise the alarm: at first all of them together say e^-1.
        self.conflict_bias = nn.Parameter(torch.full((1,), -1.0 - math.log(spec.length * len(self.fields))))

    def init_state(self, batch_size: int, length: int) -> LatticeState:
        """Everything is possible."""
        z = self.start(self.z_init, batch_size, length)
        everything = torch.ones(z.shape[:3], dtype=torch.bool, device=z.device)
        none = torch.zeros(batch_size, dtype=torch.int64, device=z.device)
        nothing = z.new_zeros(z.shape[:3])
        return LatticeState(everything, everything, nothing, none, z, z.new_zeros(batch_size), none)

    def recursion(self, x: Tensor) -> Recursion:
        """z <- f(z + x), once: the loss, too, is taken after every update."""
        rotation = self.f.rotation(x)

        def think(state: State) -> State:
            return state._replace(z=self.f(state.z + x, rotation))

        return Recursion((think,), 1)

    def readout(self, state: LatticeState) -> Prediction:
        """The most probable of the possible symbols at each position; the halting logits from the mean of all."""
        return self._prediction(state.z, self._opinion(state.z), state.possible)

    def forward(
        self, state: LatticeState, batch: Batch, gradient: GradientPolicy[Any]
    ) -> tuple[LatticeState, Prediction]:
        """Look at the possible symbols, then eliminate, give up or guess. The loss is taken where labels are known."""
        given = self.given[batch.inputs]
        possible = state.possible & self.told(batch.inputs)
        recursion = self.recursion(self.look(batch.inputs, possible))
        wanted = self.symbol_of[batch.labels.clamp(min=0)] & (batch.labels >= 0).unsqueeze(2)  # [B, L, K]
        lost = (wanted & ~possible).any(2)  # [B, L]
        thought = _Thought(self.start(self.z_init, *batch.inputs.shape))
        if self.config.progressive and torch.is_grad_enabled():
            with torch.no_grad():
                for _ in range(_ahead(state, batch) % (self.config.progressive + 1)):
                    thought = gradient(recursion, thought)
        own_loss = thought.z.new_zeros(len(thought.z), dtype=torch.float32)
        for _ in range(self.config.cycles):
            thought = gradient(recursion, thought)
            if torch.is_grad_enabled():
                own_loss = own_loss + self._loss(self._opinion(thought.z), possible, wanted, lost) / self.config.cycles
        opinion = self._opinion(thought.z)
        with torch.no_grad():
            learning = wanted.flatten(1).any(1)
            share = self._draws(state, 1, first=possible[0].numel())[:, 0]  # a draw that the search does not use
            least = self.config.eliminate * torch.where(learning, 1.0, share)
            kept = possible & ((torch.sigmoid(opinion.keep) >= least[:, None, None]) | given)
            new = self._search(state, possible, kept, opinion, wanted, learning)
        said = self._prediction(thought.z, opinion, kept)
        # A state that has lost a right symbol teaches nothing about the answer.
        logits = torch.where(lost.any(1)[:, None, None], said.logits.detach(), said.logits)
        return detach(new._replace(z=thought.z)), said._replace(logits=logits, own_loss=own_loss)

    def _opinion(self, z: Tensor) -> _Opinion:
        """What the heads read, side by side in one product."""
        heads = torch.cat((self.head.weight, self.keep.weight, self.conflict.weight))
        symbols, keep, conflict = few_columns(z, heads).unbind(-1)
        return _Opinion(
            symbols=symbols.float(),
            keep=(keep + self.keep_bias.to(z.dtype)).float(),
            conflict=(conflict.float() + self.conflict_bias).flatten(1).logsumexp(1),
        )

    def _prediction(self, z: Tensor, opinion: _Opinion, possible: Tensor) -> Prediction:
        scores = opinion.symbols + torch.where(possible, 0.0, RULED_OUT)
        return self.prediction(z, scores.to(self.dtype))

    def _loss(self, opinion: _Opinion, possible: Tensor, wanted: Tensor, lost: Tensor) -> Tensor:
        """Of one update: [B]; `lost` is [B, L]. A state that has lost a right symbol is told so, and no more: the rest
        is learned as it follows from a sound state, so that it is decided, and a wrong guess becomes apparent.
        """
        asked = wanted.any(2)
        open_ = possible & asked.unsqueeze(2)
        weights = torch.where(wanted, self.config.keep_weight, 1.0) * open_ / 2
        keep = F.binary_cross_entropy_with_logits(opinion.keep, wanted.float(), weights, reduction="none")
        keep = keep.sum((1, 2)) / open_.sum((1, 2)).clamp(min=1)
        chosen = (opinion.symbols.log_softmax(2) * wanted).sum((1, 2)) / asked.sum(1).clamp(min=1)
        astray = lost.any(1)
        conflict = F.binary_cross_entropy_with_logits(opinion.conflict, astray.float(), reduction="none")
        return torch.where(astray, 0.0, keep - chosen) + self.config.conflict_weight * conflict

    def _search(
        self, state: LatticeState, possible: Tensor, kept: Tensor, opinion: _Opinion, wanted: Tensor, learning: Tensor
    ) -> LatticeState:
        """The state after the step, with the old z; `learning` [B] is whether there are labels."""
        c, (_, length, fields) = self.config, kept.shape
        luck, noise, dice = torch.split(self._draws(state, 3 + length + fields), [3, length, fields], dim=1)
        counts = kept.sum(2)
        quiet = (kept == possible).flatten(1).all(1)
        full = (counts == 1).all(1)
        # A full board that the network has seen is over: if nobody has accepted it by now, nobody will.
        restart = (counts == 0).any(1) | (full & quiet)
        # Without a guess the same steps would lead to the same alarm: it is false, or nothing can be done about it.
        first = state.guesses == 0
        restart |= (torch.sigmoid(opinion.conflict) > c.conflict) & (learning | ~first)
        restart |= (wanted & ~possible).flatten(1).any(1) & (luck[:, 0] < c.retreat)
        base = torch.where(first[:, None, None], kept, state.base)
        believed = torch.where(first[:, None, None], opinion.symbols, state.believed.float())
        anew = first | (luck[:, 2] < c.again)
        # What the network thinks of the base is known: a chain that goes back there guesses at once.
        back = restart & ~anew & ~learning
        left = torch.where(back[:, None, None], base, kept)
        scores = torch.where(back[:, None, None], believed, opinion.symbols) + torch.where(left, 0.0, RULED_OUT)
        choices = left.sum(2)
        doubt = 1 - scores.softmax(2).amax(2)
        # An open position with few symbols, since a guess there is most likely right. The noise is for the case that
        # the network is sure of something wrong, or that the positions with the fewest decide nothing.
        place = (torch.where(choices > 1, choices, MANY) + doubt / 2 + 1.5 * noise).argmin(1)
        here = F.one_hot(place, length).bool().unsqueeze(2)
        rows = torch.arange(len(place), device=place.device)
        guess = F.one_hot((scores[rows, place] / c.temperature - torch.log(-torch.log(dice))).argmax(1), fields).bool()
        right = (wanted & kept)[rows, place]
        hinted = right.any(1) & (luck[:, 1] < c.hint)
        guess = (right & hinted.unsqueeze(1)) | (guess & ~hinted.unsqueeze(1))
        guesses = torch.where(restart, back, (quiet | ~first & ~learning) & ~full)
        chosen = torch.where(guesses[:, None, None] & here, guess.unsqueeze(1), left)
        return state._replace(
            possible=torch.where((restart & ~back)[:, None, None], base | anew[:, None, None], chosen),
            base=base,
            believed=believed.to(self.dtype),
            guesses=torch.where(restart, 0, state.guesses) + guesses,
            steps=state.steps + 1,
        )

    def _draws(self, state: LatticeState, count: int, first: int = 0) -> Tensor:
        """Numbers between 0 and 1, [B, count], fixed by dice and steps: a row draws the same whoever sits beside it."""
        base = state.steps * 104_729 + (state.dice.float() * 10_000).nan_to_num().long() * 15_485_863
        mixed = _mixed(base.unsqueeze(1) + torch.arange(first, first + count, device=base.device) * 7_919)
        return (mixed.float() + 0.5) / (PRIME + 1)


def _ahead(state: LatticeState, batch: Batch) -> int:
    """A number fixed by the puzzles and their steps together, another one at each training step."""
    return int(_mixed(state.steps.sum() * 104_729 + batch.inputs.sum() * 7_919))


def _mixed(numbers: Tensor) -> Tensor:
    """Each whole number [...] as another, 0 to PRIME - 1, that looks as if drawn at random."""
    mixed = numbers % PRIME
    for step in range(4):
        mixed = (mixed * mixed + 1_013_904_223 * (step + 1)) % PRIME  # fits 63 bits
    return mixed
