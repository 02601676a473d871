"""From a published checkpoint to a folder of ours: what its file does not say are options, with published defaults.

Before anything is written, the result is compared with the published model written down once more (`forward`), on the
file's own tensors and random puzzles. That shows that the conversion is right. It cannot show that the options are:
with a wrong number of heads both would be wrong alike. For that, measure the model on puzzles it should solve.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from loopwise.checkpoint import Model, save_weights, write_config
from loopwise.config import check
from loopwise.errors import CheckpointError, ConfigError, StorageError
from loopwise.nn.layers import swiglu_width
from loopwise.published.forward import Schedule, published_steps
from loopwise.published.layout import Layout, read_layout, read_published
from loopwise.reasoners.gradients import LastCycle, LastUpdates, LastUpdatesConfig
from loopwise.reasoners.halting import Correctness, HaltingConfig, QLearning, QLearningConfig
from loopwise.reasoners.hrm import HRM, HRMConfig
from loopwise.reasoners.trm import TRM, TRMConfig
from loopwise.runtime import DTYPES, generator
from loopwise.storage import write_text
from loopwise.tasks.base import Task
from loopwise.tasks.sudoku import Sudoku, SudokuConfig
from loopwise.tasks.table import Table, TableConfig
from loopwise.types import Batch, Json

__all__ = ["ImportOptions", "Imported", "Parity", "import_checkpoint", "parity"]

TOLERANCE = 1e-3
"""How far an import may be from the plain forward pass, in units of its largest value (of 1 if that is less).

Both are the same float32 operations and mostly agree bit for bit on one machine; recursion amplifies what is left.
"""

MAX_CELLS = 100_000
"""Positions of a puzzle beyond which a --shape is taken for a slip."""

PARITY_LENGTH = 96
"""Positions of the random puzzles, where the weights serve any length: 900 would take minutes."""

PUZZLES: dict[tuple[int, int], tuple[str, tuple[str | int, ...], tuple[int, ...]]] = {
    (11, 81): ("text", tuple(".123456789"), (81,)),  # Sudoku-Extreme
    (6, 900): ("text", tuple("# SGo"), (900,)),  # Maze-Hard; its files have text too
    (12, 900): ("grid", ("E", *range(10)), (30, 30)),  # ARC: the mark of an end, then the colours
}
"""{(V, L): (kind, symbols from token 1 on, shape)} of the published data. Other tokens are written as their numbers."""

NAMES = {
    "embed_tokens.embedding_weight": "tokens",
    "embed_pos.embedding_weight": "places",
    "puzzle_emb.weights": "puzzles.weight",
    "lm_head.weight": "head.weight",
    "q_head.weight": "halt.weight",
    "q_head.bias": "halt.bias",
}
PARTS = {
    "self_attn.qkv_proj": "attention.qkv",
    "self_attn.o_proj": "attention.out",
    "mlp_t.gate_up_proj": "token_mlp.gate_up",
    "mlp_t.down_proj": "token_mlp.down",
    "mlp.gate_up_proj": "mlp.gate_up",
    "mlp.down_proj": "mlp.down",
}
FAMILY_NAMES = {
    "TRM": {"H_init": "y_init", "L_init": "z_init", "L_level": "f"},
    "HRM": {"H_init": "H_init", "L_init": "L_init", "L_level": "L", "H_level": "H"},
}
DEFAULTS = {
    "TRM": {"H_cycles": 3, "L_cycles": 6, "registers": 16},
    "HRM": {"H_cycles": 2, "L_cycles": 2, "registers": 1},
}


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What a published checkpoint does not say of itself; the YAML file of its run says it."""

    heads: int = 8
    """Attention heads (num_heads)."""
    H_cycles: int | None = None
    """Cycles in a supervision step; default: 3 for TRM, 2 for HRM."""
    L_cycles: int | None = None
    """Updates of the fast state in a cycle; default: 6 for TRM (but 4 in its recipes for mazes and ARC), 2 for HRM."""
    max_steps: int = 16
    """Supervision steps of a puzzle (halt_max_steps)."""
    positions: Literal["auto", "rotary", "learned", "none"] = "auto"
    """How attention tells positions apart; auto: learned where the file has a table of them, else rotary."""
    registers: int | None = None
    """Positions of the prefix (puzzle_emb_len); default: as many as the weights are for, else 16 for TRM, 1 for HRM."""
    shape: str = ""
    """Size of a puzzle, such as 81 or 30x30; default: that of the published data with so many tokens."""
    task: str = ""
    """Task of the model: sudoku, or table for any other; default: by the number of tokens and the size."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Format of the activations: the published code has bfloat16; float32 rounds less and is fast on any processor."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        check(self)
        for name in ("heads", "H_cycles", "L_cycles", "max_steps", "registers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")


class Parity(NamedTuple):
    """The largest differences to the plain forward pass, over all steps."""

    logits: float
    values: float  # of halting and of going on
    scale: float  # the largest of all logits and values, at least 1
    puzzles: int
    length: int
    steps: int


class Imported(NamedTuple):
    """What has been imported."""

    model: Model
    layout: Layout
    options: dict[str, str]  # what the file does not say, and where it is from
    parity: Parity
    source: dict[str, Json]  # name and checksum of the file


def import_checkpoint(file: Path, out: Path, options: ImportOptions) -> Imported:
    """Convert a published checkpoint into the folder `out`, which must be new or empty.

    Raises CheckpointError where the file is damaged or no published model, or the result disagrees with it; ConfigError
    where the options do not fit it; StorageError where `out` is taken or cannot be written. Nothing is written in the
    first two cases.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise StorageError(f"{out} is there already and is no empty folder; choose another --out")
    weights = read_published(file)
    layout = read_layout(weights, file)
    task, registers = _task(layout, options)
    schedule = _schedule(layout, options, registers)
    model = _model(layout, options, schedule, task)
    model.reasoner.load_state_dict({_our_name(name, layout): tensor for name, tensor in weights.items()})
    model.reasoner.eval()
    found = parity(model, weights, schedule)
    if not math.isfinite(found.scale):
        raise CheckpointError(f"{file} gives answers that are no numbers; nothing was written, use another checkpoint")
    limit = TOLERANCE * found.scale
    if not (found.logits <= limit and found.values <= limit):  # so that not-a-number is refused too
        raise CheckpointError(
            f"{file} is not what it was after the conversion: its logits differ by {found.logits:.3g}, its halting "
            f"values by {found.values:.3g}; nothing was written, please report it"
        )
    model.reasoner.dtype = DTYPES[options.dtype]
    with file.open("rb") as stream:
        source = {"file": file.name, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
    imported = Imported(model, layout, _origins(layout, options, schedule), found, source)
    write_config(out, model, {})
    save_weights(out, model.reasoner, {"imported": {**source, "options": imported.options}})
    write_text(out / "README.md", _card(imported))
    return imported


@torch.inference_mode()
def parity(model: Model, weights: dict[str, Tensor], schedule: Schedule, steps: int = 2) -> Parity:
    """Compare a float32 model with the plain forward pass of a file's tensors, on two random puzzles."""
    reasoner = model.reasoner
    spec, puzzles = reasoner.spec, 2
    length = min(spec.length, PARITY_LENGTH) if reasoner.accepts(spec.length + 1) else spec.length
    rng = generator("cpu", 0)
    tokens = torch.randint(spec.vocab_size, (puzzles, length), generator=rng)
    identifiers = torch.randint(spec.num_puzzle_ids, (puzzles,), generator=rng)
    batch = Batch.unlabelled(tokens, identifiers)
    state = reasoner.init_state(puzzles, length)
    differences, largest = [], [1.0]
    for logits, values in published_steps(weights, schedule, tokens, identifiers, steps):
        state, said, _ = model.step(state, batch)
        ours = torch.stack((said.halt_logits, said.continue_logits), dim=1)
        differences.append((float((said.logits - logits).abs().max()), float((ours - values).abs().max())))
        largest += [float(logits.abs().max()), float(values.abs().max())]
    # The largest of a tensor, not of a list: not-a-number must come through.
    far = torch.tensor(differences).amax(0).tolist()
    return Parity(far[0], far[1], float(torch.tensor(largest).amax()), puzzles, length, steps)


def _task(layout: Layout, options: ImportOptions) -> tuple[Task[Any], int]:
    """(the task, the positions of the prefix); raises ConfigError where the options do not fit the weights."""
    shape = _shape(options.shape)
    known = next((shape for (tokens, _), (_, _, shape) in PUZZLES.items() if tokens == layout.vocabulary), None)
    registers = DEFAULTS[layout.family]["registers"] if options.registers is None else options.registers
    if layout.length is None:
        shape = shape or known
        if shape is None:
            size = "the file does not say how large a puzzle is"
            raise ConfigError(
                f"{size}, and no published data have {layout.vocabulary} tokens; say it, as --shape 30x30"
            )
    else:
        if shape is None and options.registers is None and known and math.prod(known) < layout.length:
            shape = known
        shape = shape or (layout.length - registers,)
        if options.registers is None:
            registers = layout.length - math.prod(shape)
        if registers < 1 or min(shape) < 1 or registers + math.prod(shape) != layout.length:
            room = f"the weights are for {layout.length} positions, prefix and puzzle"
            raise ConfigError(f"{room}; --registers and --shape must make up as many, and leave room for both")
    length = math.prod(shape)
    is_sudoku = (layout.vocabulary, length, layout.identifiers) == (11, 81, 1)
    if options.task not in ("", Sudoku.name, Table.name):
        raise ConfigError(f"--task is {Sudoku.name} or {Table.name}, not {options.task!r}")
    if options.task == Sudoku.name and not is_sudoku:
        what = f"{layout.vocabulary} tokens, {length} positions and {layout.identifiers} identifiers"
        raise ConfigError(f"a model of {what} is none for sudoku (11, 81 and 1); leave out --task")
    if is_sudoku and options.task != Table.name:
        return Sudoku(SudokuConfig()), registers
    numbers = ("grid" if len(shape) == 2 else "list", tuple(range(1, layout.vocabulary)), shape)
    kind, symbols, box = PUZZLES.get((layout.vocabulary, length), numbers)
    metadata = {"kind": kind, "values": ["", *symbols], "shape": [*box], "num_puzzle_ids": layout.identifiers}
    return Table.restore(TableConfig(), metadata), registers


def _shape(text: str) -> tuple[int, ...] | None:
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,5}(x[0-9]{1,5})?", text):
        raise ConfigError(f"--shape {text!r} is no size of a puzzle; write a length or rows x columns, 81 or 30x30")
    shape = tuple(map(int, text.split("x")))
    if math.prod(shape) > MAX_CELLS:
        raise ConfigError(f"--shape {text} has more than {MAX_CELLS:,} cells; write that of the puzzles")
    if min(shape) < 1:
        raise ConfigError(f"--shape {text} has no cells; write a length or rows x columns, 81 or 30x30")
    return shape


def _schedule(layout: Layout, options: ImportOptions, registers: int) -> Schedule:
    """What the plain forward pass must be told; raises ConfigError where the options do not fit the weights."""
    defaults, attention = DEFAULTS[layout.family], layout.core == "attention"
    if attention and layout.hidden_size % options.heads:
        raise ConfigError(f"--heads {options.heads} does not divide the hidden size {layout.hidden_size}")
    if options.positions == "learned" and not layout.learned:
        raise ConfigError("--positions learned needs a table of positions, and the file has none; leave it out")
    if layout.learned and options.positions not in ("auto", "learned"):
        raise ConfigError(f"--positions {options.positions} leaves the file's table of positions out; leave it out")
    if options.positions == "rotary" and not attention:
        raise ConfigError("--positions rotary needs attention, and this file has the mlp core; leave it out")
    return Schedule(
        heads=options.heads,
        H_cycles=defaults["H_cycles"] if options.H_cycles is None else options.H_cycles,
        L_cycles=defaults["L_cycles"] if options.L_cycles is None else options.L_cycles,
        prefix=registers,
        rotary=attention and not layout.learned and options.positions != "none",
    )


def _model(layout: Layout, options: ImportOptions, schedule: Schedule, task: Task[Any]) -> Model:
    """A float32 model of that layout, with weights of no meaning, and the policies it was trained by."""
    expansion, multiple = _expansion(layout)
    architecture: dict[str, Any] = {
        "hidden_size": layout.hidden_size,
        "positions": "learned" if layout.learned else "rotary" if schedule.rotary else "none",
        "registers": schedule.prefix,
        "core": layout.core,
        "num_heads": schedule.heads,
        "expansion": expansion,
        "width_multiple": multiple,
        "H_cycles": schedule.H_cycles,
        "L_cycles": schedule.L_cycles,
    }
    if layout.family == "TRM":
        return Model(
            task=task,
            reasoner=TRM(TRMConfig(num_layers=layout.layers["L_level"], **architecture), task.spec),
            gradient=LastCycle(),
            halting=Correctness(HaltingConfig(max_steps=options.max_steps)),
        )
    layers: dict[str, Any] = {"H_layers": layout.layers["H_level"], "L_layers": layout.layers["L_level"]}
    return Model(
        task=task,
        reasoner=HRM(HRMConfig(**layers, **architecture), task.spec),
        gradient=LastUpdates(LastUpdatesConfig(k=2)),
        halting=QLearning(QLearningConfig(max_steps=options.max_steps)),
    )


def _expansion(layout: Layout) -> tuple[float, int]:
    """(expansion, multiple) that make the SwiGLUs as wide as in the file; the published 4 and 256 if these do."""
    wanted = [(layout.hidden_size, layout.width)]
    if layout.length and layout.token_width:
        wanted.append((layout.length, layout.token_width))
    # All smaller ones make some SwiGLU no wider than this does.
    largest = min(1.5 * width / size for size, width in wanted)
    for expansion, multiple in [(4.0, 256), *((largest, 2**power) for power in range(10, -1, -1))]:
        if all(swiglu_width(size, expansion, multiple) == width for size, width in wanted):
            return expansion, multiple
    widths = " and ".join(f"{width} over {size}" for size, width in wanted)
    raise CheckpointError(f"no one expansion makes SwiGLUs of the widths {widths}; only unchanged models are known")


def _our_name(name: str, layout: Layout) -> str:
    """The name in our reasoners of a tensor of the file."""
    family = FAMILY_NAMES[layout.family]
    if name in NAMES or name in family:
        return NAMES.get(name) or family[name]
    level, _, number, part = name.removesuffix(".weight").split(".", 3)
    return f"{family[level]}.blocks.{number}.{PARTS[part]}.weight"


def _origins(layout: Layout, options: ImportOptions, schedule: Schedule) -> dict[str, str]:
    """Each option that shapes the model: its value, and whether it was given, is in the file or is a default."""

    def told(name: str, value: object, in_file: bool = False) -> str:
        given = getattr(options, name) != getattr(ImportOptions(), name)
        return f"{value} ({'given' if given else 'from the file' if in_file else 'published default'})"

    positions = "learned" if layout.learned else "rotary" if schedule.rotary else "none"
    heads = {"heads": told("heads", schedule.heads)} if layout.core == "attention" else {}
    return {
        **heads,
        "H_cycles": told("H_cycles", schedule.H_cycles),
        "L_cycles": told("L_cycles", schedule.L_cycles),
        "max_steps": told("max_steps", options.max_steps),
        "positions": told("positions", positions, layout.learned or layout.core == "mlp"),
        "registers": told("registers", schedule.prefix, layout.length is not None),
    }


def _card(imported: Imported) -> str:
    """Markdown that says where the model is from, what was assumed, and how far it agrees with the file."""
    model, layout, options, found, source = imported
    networks, table = model.reasoner.num_parameters()
    lines = [
        "---",
        "library_name: loopwise",
        "tags: [recursive-reasoning]",
        "---",
        "",
        f"# {layout.family}, imported",
        "",
        f"Converted by `loopwise import` from a checkpoint of the published {layout.family} code, which trained it.",
        "Nothing is known here of its data and its scores: `loopwise eval` measures it.",
        "",
        "```bash",
        "loopwise solve FOLDER PUZZLE",
        f"loopwise eval FOLDER{' --task.file FILE' if isinstance(model.task, Table) else ''}",
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| file | {source['file']} |",
        f"| sha256 | {source['sha256']} |",
        f"| parameters | {networks:,} in the networks, {table:,} values in the puzzle table |",
        f"| task | {model.task.name}, {layout.vocabulary} tokens, {model.task.spec.length} positions |",
        f"| number format | {str(model.reasoner.dtype).removeprefix('torch.')} |",
        f"| parity | logits differ by {found.logits:.3g} at most, halting values by {found.values:.3g} |",
        "",
        f"Parity: {found.puzzles} random puzzles of {found.length} positions, {found.steps} steps, float32, against",
        "a plain forward pass on the tensors of the file. The file does not say what follows. Where it is not",
        "what the run was configured with, the answers are wrong, and parity cannot tell.",
        "",
        "| option | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in options.items()),
    ]
    return "\n".join(lines) + "\n"
