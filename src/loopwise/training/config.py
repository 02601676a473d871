"""Options of a training run that concern neither puzzle nor network. The defaults are TRM's published recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loopwise.config import check
from loopwise.errors import ConfigError
from loopwise.runtime import Device, Dtype
from loopwise.training.losses import Loss

__all__ = ["TrainingConfig"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train."""

    start_from: str = ""
    """Begin with the weights of this model, a checkpoint's folder or a shipped one; by default with fresh ones."""
    steps: int = 65_104
    """Optimizer steps; each is one supervision step of every slot."""
    batch_size: int = 768
    """Slots, over all processes together."""
    optimizer: Literal["adam-atan2", "adamw", "muon"] = "adam-atan2"
    """Optimizer of the networks; muon takes AdamW for everything but the weight matrices inside the blocks."""
    lr: float = 1e-4
    """Peak learning rate."""
    muon_lr: float = 0.02
    """Peak learning rate of the weight matrices under muon."""
    lr_end: float = 1.0
    """Share of the peak at the end of the cosine; 1 keeps the rate constant after the warm-up."""
    warmup_steps: int = 2000
    """Optimizer steps of linear warm-up."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    weight_decay: float = 0.1
    """Decoupled weight decay, on every parameter."""
    clip: float = 0.0
    """Largest norm of the gradient of a step, by the mean over the slots; a larger one is scaled down. 0 is none."""
    puzzle_lr: float = 1e-2
    """Peak learning rate of the puzzle embeddings (sign-SGD)."""
    puzzle_weight_decay: float = 0.1
    """Decoupled weight decay of the puzzle embeddings that a batch touches."""
    loss: Loss = "stablemax"
    """Cross-entropy of the answer: stablemax in float64 as published, or the usual softmax."""
    ema: float = 0.999
    """Decay of the moving average of the weights, which is what is evaluated and shipped; 0 turns it off."""
    ema_from: int = 0
    """Optimizer step from which the average trails; until then it is the weights themselves (late EMA)."""
    augment: bool = True
    """Draw a symmetry of the task for each training example."""
    shorten: bool = True
    """Draw easier training examples where the task has a way (sorting, rolling-sum: shorter ones; Sudoku: `reveal`)."""
    hint_weight: float = 1.0
    """Weight of the loss of the hints beside that of the answer, for a task that gives any (`--task.hints`). With 0
    they are not taught: they only say when how much of the answer can be known, and `evict` goes by that alone.
    """
    random_init: float = 0.0
    """Standard deviation of random initial states, in place of the reasoner's own (EqR: 1); 0 leaves these."""
    noise: float = 0.0
    """Standard deviation of what is added to the state before each step (EqR: 0.01)."""
    starts: int = 1
    """Slots that hold the same puzzle, each from a random state of its own (`random_init`, `noise`). In each step only
    the one whose answer is nearest to right learns, winner takes all ("Speed is Confidence", arXiv 2601.19085), and
    all of them halt with it. So a wrong guess is not held against the right answer, which would have to be known by
    heart to do better.
    """
    progressive: int = 0
    """0 trains in carry space. Else every optimizer step takes fresh puzzles, thinks about them for up to so many
    supervision steps without gradient, a new number each time, and trains the next one (arXiv 2202.05826): no slot
    holds a puzzle that earlier weights have led astray.
    """
    evict: bool = False
    """Take a fresh puzzle where a step has left anything wrong that the hints tell, for a task that gives any. So each
    step is trained from a state that is right, and asked to go on from it and to keep it. One that is wrong has lost
    what it would need to be put right; asking for that unlearns keeping.
    """
    seed: int = 0
    """Seed of the order of the data, of augmentation, of exploration and of noise."""
    eval_every: int = 1000
    """Optimizer steps between two evaluations on the validation split."""
    stop_at: float = 1.1
    """Stop when the exact accuracy on the validation split reaches this; more than 1 means never."""
    save_every: float = 60.0
    """Seconds between two saves of the training state."""
    device: Device = "auto"
    """Where to train."""
    dtype: Dtype = "auto"
    """Number format of the activations; auto is bfloat16 where the processor multiplies matrices in it."""
    threads: int = 0
    """CPU threads, 0 for all. Rounding depends on how many there are, so a number given here is fixed for the run; with
    0 a run that goes on with other cores is not the same bit for bit.
    """
    compile: Literal["auto", "on", "off"] = "auto"
    """Fuse the network's kernels with torch.compile, half a minute at the start; auto does it for a run long enough."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        check(self)
        for name in ("lr", "muon_lr", "puzzle_lr"):
            if getattr(self, name) > 10:
                raise ConfigError(f"{name} must be at most 10, not {getattr(self, name)}")
        for name in (
            "lr_end",
            "weight_decay",
            "puzzle_weight_decay",
            "warmup_steps",
            "ema_from",
            "clip",
            "hint_weight",
            "random_init",
            "noise",
            "progressive",
            "seed",
            "threads",
        ):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, not {getattr(self, name)}")
        for name in ("steps", "batch_size", "starts", "eval_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("lr", "muon_lr", "puzzle_lr", "save_every"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be more than 0, not {getattr(self, name)}")
        if self.batch_size % self.starts:
            raise ConfigError(f"batch_size {self.batch_size} is no multiple of the {self.starts} starts of each puzzle")
        if self.starts > 1 and not (self.random_init or self.noise):
            raise ConfigError("several starts need states that differ; give random_init (1) or noise")
        for name in ("ema", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}")
