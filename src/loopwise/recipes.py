"""Named runs: functions that return a full configuration. `loopwise train NAME` runs one.

A recipe that has the name of a task is what `loopwise train TASK` does; a task without one gets `small`. Every option
can be changed on the command line. What a recipe reaches, and where that was measured, is in its docstring.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import replace
from pathlib import Path

from loopwise.config import carry_over
from loopwise.errors import ConfigError
from loopwise.reasoners.base import GradientPolicy, Reasoner
from loopwise.reasoners.equivariant import EquivariantConfig
from loopwise.reasoners.equivariant_looped import EquivariantLoopedConfig
from loopwise.reasoners.halting import HaltingConfig, HaltingPolicy
from loopwise.reasoners.lattice import LatticeConfig
from loopwise.reasoners.looped import LoopedConfig
from loopwise.reasoners.trm import TRMConfig
from loopwise.registry import discover, resolve, suggest
from loopwise.runs import RunConfig, recorded_config
from loopwise.tasks.base import Task, TaskConfig
from loopwise.tasks.maze import MazeConfig
from loopwise.tasks.rolling_sum import RollingSumConfig
from loopwise.tasks.sorting import SortingConfig
from loopwise.tasks.sudoku import SudokuConfig
from loopwise.training.config import TrainingConfig

__all__ = ["find", "known", "recipe_notes", "recipes", "small", "with_parts"]

# A TRM that two cores train in minutes. With so few positions and steps the halting head must see all of them to learn
# when an answer is right (docs/log.md).
SEQUENCE_TRM = TRMConfig(
    hidden_size=64, num_heads=4, H_cycles=2, L_cycles=2, registers=1, halting_reads="mean", width_multiple=16
)
BOARD_TRM = replace(SEQUENCE_TRM, core="mlp", positions="none", registers=0)

# Shortest paths are local: a wave goes from cell to cell. A network that sees neighbours only learns it on small mazes.
# Of four updates a step each is close to what the hints say; sixteen learned the wave half as fast (docs/log.md).
NEIGHBOURS = LoopedConfig(
    hidden_size=96, num_layers=1, cycles=4, core="convolution", positions="none", registers=0,
    halting_reads="mean", width_multiple=16,
)  # fmt: skip

# A run of minutes wants what one of days does not: a high rate that falls to nothing, a short average, no decay. One
# thread is safe on a machine that does other things too; a quiet one is 1.6 times faster with two (docs/log.md).
MINUTES = TrainingConfig(
    steps=2500,
    batch_size=64,
    lr=1e-3,
    lr_end=0.0,
    warmup_steps=100,
    weight_decay=0.0,
    puzzle_lr=1e-3,
    puzzle_weight_decay=0.0,
    loss="softmax",
    ema=0.98,
    eval_every=250,
    threads=1,
)

# Networks over symbols learn from fewer examples at a higher rate. With the groups core they are equal under all
# symmetries of a board, so that drawing one would show them nothing new.
SYMBOL_MINUTES = replace(
    MINUTES, steps=8000, optimizer="adamw", lr=6e-3, clip=1.0, warmup_steps=50, weight_decay=0.1, augment=False,
    eval_every=1000,
)  # fmt: skip


def small(task: str, config: TaskConfig) -> RunConfig:
    """For a task that has no recipe: attention, so that puzzles of any shape and length can be tried."""
    return RunConfig(
        task=task,
        task_config=config,
        reasoner_config=replace(SEQUENCE_TRM, hidden_size=96, registers=4),
        training=replace(MINUTES, steps=3000, batch_size=128, lr_end=0.1, weight_decay=0.1, ema=0.99, stop_at=1.0),
    )


def sorting() -> RunConfig:
    """Sort rows of 16 numbers from 0 to 9; training shows shorter ones too, padded."""
    return RunConfig(
        task="sorting",
        task_config=SortingConfig(),
        reasoner_config=SEQUENCE_TRM,
        # More exploration than usual: most rows are sorted in one step, and what later ones do must be learned too.
        halting_config=HaltingConfig(max_steps=8, exploration=0.5),
        training=replace(MINUTES, steps=5000, eval_every=500),
    )


def sorting_10() -> RunConfig:
    """Sort rows of 10 numbers: a size for comparisons, a few minutes on one core."""
    return replace(sorting(), task_config=SortingConfig(n=10), training=replace(MINUTES, steps=4000, eval_every=500))


def rolling_sum() -> RunConfig:
    """Running parity of rows of 32 bits: each answer needs the one before it."""
    return RunConfig(
        task="rolling-sum",
        task_config=RollingSumConfig(),
        reasoner_config=SEQUENCE_TRM,
        halting_config=HaltingConfig(max_steps=8, exploration=0.5),
        training=replace(MINUTES, steps=2000),
    )


def rolling_sum_16() -> RunConfig:
    """Running parity of rows of 16 bits: a size for comparisons, a few minutes on one core."""
    return replace(rolling_sum(), task_config=RollingSumConfig(length=16))


def sudoku_6x6() -> RunConfig:
    """The demo: a TRM of 90,000 weights learns 6x6 Sudoku from minimal puzzles in a few minutes on two cores."""
    return RunConfig(
        task="sudoku",
        task_config=SudokuConfig(box="2x3"),
        reasoner_config=BOARD_TRM,
        training=replace(MINUTES, steps=2000, lr=5e-3, warmup_steps=50),
    )


def sudoku_6x6_adamw() -> RunConfig:
    """The demo's puzzles with AdamW, to compare the time it takes (docs/performance.md)."""
    recipe = sudoku_6x6()
    return replace(recipe, training=replace(recipe.training, optimizer="adamw"))


def sudoku_6x6_muon() -> RunConfig:
    """The demo's puzzles with Muon for the weight matrices, to compare the time it takes (docs/performance.md)."""
    recipe = sudoku_6x6()
    return replace(recipe, training=replace(recipe.training, optimizer="muon", lr=2e-3))


def sudoku() -> RunConfig:
    """9x9 Sudoku at a size for two cores; what half an hour of it reaches is in records/."""
    return RunConfig(
        task="sudoku",
        task_config=SudokuConfig(),
        reasoner_config=replace(BOARD_TRM, hidden_size=96, H_cycles=1),
        training=replace(MINUTES, steps=4000, lr=3e-3, weight_decay=0.1, ema=0.99, eval_every=500),
    )


def sudoku_extreme_mlp() -> RunConfig:
    """TRM-MLP on 9x9 Sudoku as published: 5.0 million parameters; 87.4 % on Sudoku-Extreme (paper)."""
    return _published(TRMConfig(core="mlp", positions="none"))


def sudoku_extreme_attention() -> RunConfig:
    """TRM with attention on 9x9 Sudoku as published: 6.8 million parameters; 74.7 % on Sudoku-Extreme (paper)."""
    return _published(TRMConfig())


def sudoku_extreme_hrm() -> RunConfig:
    """HRM on 9x9 Sudoku as published: 27.3 million parameters; 55.0 % on Sudoku-Extreme (paper)."""
    run = with_parts(_published(TRMConfig()), reasoner="hrm")
    return replace(run, training=replace(run.training, steps=26_041, ema=0.0, eval_every=2000))


def sudoku_extreme_equivariant() -> RunConfig:
    """The symbol-equivariant TRM on 9x9 Sudoku at about the published size: 98.4 % (5,000 puzzles) in 16 steps for the
    SE-RRM mixers under the recipe of DEC (repository Fixed-Point-Reasoner-Structures); not run here.
    """
    reasoner = EquivariantConfig(core="attention", hidden_size=256, damping=0.95, width_multiple=64)
    training = TrainingConfig(
        steps=50_000, weight_decay=1.0, random_init=1.0, noise=0.01, clip=1.0, eval_every=2500, beta2=0.95
    )
    return RunConfig(
        task="sudoku",
        task_config=SudokuConfig(),
        reasoner="equivariant",
        reasoner_config=reasoner,
        training=training,
    )


def sudoku_extreme_equivariant_small() -> RunConfig:
    """The symbol-equivariant TRM on 9x9 Sudoku at a size for one core: nothing solved in its first 10 minutes; not
    trained to its end.
    """
    return RunConfig(
        task="sudoku",
        task_config=SudokuConfig(),
        reasoner="equivariant",
        reasoner_config=EquivariantConfig(hidden_size=32, num_layers=2, H_cycles=1, L_cycles=3),
        gradient="full-bptt",
        training=replace(SYMBOL_MINUTES, steps=5500, batch_size=48, ema=0.99, compile="on"),
    )


def sudoku_extreme_lattice() -> RunConfig:
    """The lattice reasoner on 9x9 Sudoku at the published size of steps, batch and depth: 99.96 % by search for the
    transformer of the paper (arXiv 2605.08605); not run here.
    """
    return RunConfig(
        task="sudoku",
        task_config=SudokuConfig(),
        reasoner="lattice",
        reasoner_config=LatticeConfig(core="attention", hidden_size=64, num_layers=4, cycles=16),
        gradient="full-bptt",
        halting_config=HaltingConfig(max_steps=100),
        training=replace(
            SYMBOL_MINUTES,
            steps=4000,
            batch_size=512,
            lr=3e-3,
            warmup_steps=400,
            ema=0.99,
            augment=True,
            eval_every=500,
            threads=0,
        ),
    )


def sudoku_extreme_lattice_small() -> RunConfig:
    """The lattice reasoner on 9x9 Sudoku for one core: 96 to 98 % of Sudoku-Extreme by search within 5 s (three runs;
    37 minutes in bfloat16).

    The shipped weights come from the first of them, resumed to 12,000 steps with options that changed on the way, and
    from one of 8,500 steps more with a pool of puzzles, `--task.train-file` (records/).
    """
    return RunConfig(
        task="sudoku",
        task_config=SudokuConfig(),
        reasoner="lattice",
        reasoner_config=LatticeConfig(hidden_size=32, progressive=8),
        gradient="full-bptt",
        halting_config=HaltingConfig(max_steps=64),
        training=replace(SYMBOL_MINUTES, steps=5000, batch_size=48, ema=0.99, compile="on"),
    )


def sudoku_extreme_single_pass() -> RunConfig:
    """9x9 Sudoku in a single pass, on one core: the network of the lattice's search goes on without eliminating, its
    block four times, in turns. The first of two runs: 49, 55 and 59 of 100 validation puzzles in 16 steps (three seeds;
    48 minutes in float32, and on a newer core 14 to 22 in bfloat16).

    Fresh puzzles at a drawn depth, of which up to 8 digits of the answer are shown. The shipped weights are of runs
    much like these two (records/); those of the "pool" had more puzzles, `--task.train-file`.
    """
    return RunConfig(
        task="sudoku",
        task_config=SudokuConfig(reveal=8),
        reasoner="equivariant-looped",
        reasoner_config=EquivariantLoopedConfig(hidden_size=32, num_layers=4, cycles=4, inject="block"),
        gradient="full-bptt",
        halting_config=HaltingConfig(max_steps=16, weight=0.1),
        training=replace(
            SYMBOL_MINUTES, start_from="sudoku-extreme-lattice-1k", steps=1300, batch_size=48, lr=3e-3, ema=0.995,
            progressive=3, random_init=1.0, eval_every=325, compile="on",
        ),
    )  # fmt: skip


def sudoku_extreme_single_pass_carry() -> RunConfig:
    """The second run of the single pass, in carry space, four starts of each puzzle racing: 85 and 83 of 100 validation
    puzzles in 32 steps, 98 and 99 in 64 four times as deep (two seeds; 31 minutes of one core in bfloat16).

    `loopwise train sudoku-extreme-single-pass-carry --training.start-from runs/sudoku-extreme-single-pass`. What ships
    as `sudoku-extreme-1k` had 1,600 steps more from the first (records/) and solves 99.0 % of Sudoku-Extreme's sample,
    the second, too, 90.8 %. Without the race it is 72 and 79 of 100, and 89.0 and 84.8 % of the sample. On a pool with
    `--task.tridagon` it made `sudoku-extreme-single-pass`: 100 % of the sample.
    """
    before = sudoku_extreme_single_pass()
    return replace(
        before,
        halting_config=HaltingConfig(max_steps=32, weight=0.1),
        training=replace(
            before.training, start_from="", steps=1800, batch_size=128, starts=4, lr=2e-3, progressive=0, eval_every=600
        ),
    )


def maze_hard() -> RunConfig:
    """TRM with attention on 30x30 mazes as published: 85.3 % exact on Maze-Hard (paper); give it the official files."""
    return replace(_published(TRMConfig()), task="maze", task_config=MazeConfig())


def maze_hard_small() -> RunConfig:
    """TRM with attention on 8x8 mazes of the same rule, at a size for one core: 31 % exact in 17 minutes."""
    return RunConfig(
        task="maze",
        task_config=MazeConfig(size=8),
        reasoner_config=replace(SEQUENCE_TRM, hidden_size=64),
        training=replace(MINUTES, steps=3000, lr=2e-3),
    )


def maze_12x12() -> RunConfig:
    """A network that sees neighbours only, told in training how far a wave has come: 100 % exact in 12 minutes.

    Of one core that multiplies in bfloat16; two seeds. It has 97 to 99 % of Maze-Hard's 30x30 mazes too.
    """
    return RunConfig(
        task="maze",
        task_config=MazeConfig(size=12, min_moves=18, train=30_000, hints=4),
        reasoner="looped",
        reasoner_config=NEIGHBOURS,
        gradient="full-bptt",
        halting_config=HaltingConfig(max_steps=32, exploration=1.0, weight=0.02),
        training=replace(
            MINUTES, lr=2e-3, steps=4400, batch_size=32, clip=1.0, ema=0.99, evict=True, eval_every=1100, compile="on"
        ),
    )


def maze_18x18() -> RunConfig:
    """18x18 mazes by the same network: 99.5 % exact in 13 minutes of such a core; ships as `maze-hard`.

    `loopwise train maze-18x18 --training.start-from runs/maze-12x12`.
    """
    before = maze_12x12()
    return replace(
        before,
        task_config=MazeConfig(size=18, min_moves=32, train=20_000, hints=4),
        halting_config=replace(before.halting_config, max_steps=48),
        training=replace(before.training, lr=1e-3, steps=2400, eval_every=800),
    )


def _published(reasoner: TRMConfig) -> RunConfig:
    training = TrainingConfig(weight_decay=1.0, puzzle_lr=1e-4, puzzle_weight_decay=1.0, eval_every=5000)
    return RunConfig(task="sudoku", task_config=SudokuConfig(), reasoner_config=reasoner, training=training)


def recipes() -> dict[str, RunConfig]:
    """Every recipe by name: the functions of this module that take nothing and return a configuration."""
    found = {}
    for name, function in inspect.getmembers(sys.modules[__name__], inspect.isfunction):
        signature = inspect.signature(function)
        if signature.return_annotation == "RunConfig" and not signature.parameters:
            found[name.replace("_", "-")] = function()
    return found


def recipe_notes() -> dict[str, str]:
    """What each recipe is, in a sentence."""
    module = sys.modules[__name__]
    docs = {name: inspect.getdoc(getattr(module, name.replace("-", "_"))) or "" for name in recipes()}
    return {name: doc.split("\n\n")[0].replace("\n", " ") for name, doc in docs.items()}


def with_parts(
    config: RunConfig, *, reasoner: str | None = None, gradient: str | None = None, halting: str | None = None
) -> RunConfig:
    """The same run with another reasoner, under the policies of its paper, or with other policies.

    Options that the old part and the new one share keep their values (`carry_over`). Raises ConfigError.
    """
    if reasoner is not None and reasoner != config.reasoner:
        cls = resolve(reasoner, "loopwise.reasoners", Reasoner)  # type: ignore[type-abstract]
        options = carry_over(config.reasoner_config, cls.Config)
        config = replace(config, reasoner=reasoner, reasoner_config=options)
        gradient, halting = gradient or cls.default_gradient, halting or cls.default_halting
    if gradient is not None and gradient != config.gradient:
        policy = resolve(gradient, "loopwise.reasoners", GradientPolicy)  # type: ignore[type-abstract]
        config = replace(config, gradient=gradient, gradient_config=carry_over(config.gradient_config, policy.Config))
    if halting is not None and halting != config.halting:
        halts = resolve(halting, "loopwise.reasoners", HaltingPolicy)  # type: ignore[type-abstract]
        config = replace(config, halting=halting, halting_config=carry_over(config.halting_config, halts.Config))
    return config


def known() -> list[str]:
    """The names of all recipes and tasks."""
    return sorted({*recipes(), *discover("loopwise.tasks", Task)})  # type: ignore[type-abstract]


def find(name: str) -> RunConfig:
    """The recipe called `name`, or the small preset for the task of that name, or what a run's config.json tells.

    Raises ConfigError or CheckpointError.
    """
    if name.endswith(".json"):
        if not Path(name).exists():
            raise ConfigError(f"there is no file {name}; give the config.json of a run, or a recipe or task by name")
        return recorded_config(Path(name))
    named = recipes()
    if name in named:
        return named[name]
    if ":" not in name and name not in known():
        raise ConfigError(f"unknown task or recipe {name!r}{suggest(name, known())}; known: {', '.join(known())}")
    return small(name, resolve(name, "loopwise.tasks", Task).Config())  # type: ignore[type-abstract]
