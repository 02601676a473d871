"""The README.md of a checkpoint: what it is, what it can, under what protocol that was measured, and what it cost."""

from __future__ import annotations

import json
from typing import Any

from loopwise.checkpoint import Model
from loopwise.config import to_json
from loopwise.runtime import dtype_name
from loopwise.types import Json

__all__ = ["model_card"]


def model_card(model: Model, notes: dict[str, Json], training: dict[str, Json], which: str) -> str:
    """Markdown of the model card; `notes` are those of the weights, `which` says which weights of the run."""
    networks, table = model.reasoner.num_parameters()
    scores = notes.get("scores")
    starts = training.get("starts", 1)  # older records lack it
    lines = [
        "---",
        "library_name: loopwise",
        "tags: [recursive-reasoning]",
        "---",
        "",
        f"# {type(model.reasoner).__name__} on {model.task.name}",
        "",
        f"A tiny recursive reasoner, trained with loopwise. These are the {which} weights of the run.",
        "",
        "```bash",
        "loopwise solve FOLDER PUZZLE",
        "loopwise eval FOLDER",
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| parameters | {networks:,} in the networks, {table:,} values in the puzzle table |",
        f"| optimizer steps | {notes['step']:,} of {training['steps']:,}, {training['batch_size']} slots"
        + (f", {starts} starts a puzzle |" if starts > 1 else " |"),
        f"| training time | {notes['seconds']:.0f} s |",
        f"| training FLOPs | {notes['flops']:.3g} |",
        f"| FLOPs of one supervision step of one puzzle | {notes['flops_per_puzzle_step']:.3g} |",
        f"| training data | {notes['data']['train']['puzzles']:,} puzzles, sha256 {notes['data']['train']['sha256']} |",
        f"| validation data | {notes['data']['validation']['puzzles']:,} puzzles, "
        f"sha256 {notes['data']['validation']['sha256']} |",
        f"| device, number format | {notes['device']}, {dtype_name(model.reasoner.dtype)} |",
        "",
        *(_scores(scores, _protocol(model)) if scores else ["Not evaluated yet."]),
        "",
        "## Configuration",
        "",
        "```json",
        json.dumps(_configuration(model, training), indent=1),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _protocol(model: Model) -> str:
    """What the scores are scores of."""
    if model.reasoner.search:
        return (
            "Search by the averaged weights, one start: steps guess, and start again, until the rules accept an answer"
        )
    search = "no search (solving guesses, unless told `--guess 0`)" if model.guess else "no search"
    return f"One pass of the averaged weights, no augmentation, no votes, {search}"


def _scores(scores: dict[str, Json], protocol: str) -> list[str]:
    puzzles = scores["puzzles"]
    rows = [
        f"| {row['steps']} | {_interval(row)} | {100 * row['token_accuracy']:.2f} % | {_share(row['verified'])} |"
        for row in scores["by_steps"]
    ]
    halted = scores["when_halted"]
    return [
        f"## Scores on the validation split ({puzzles:,} puzzles)",
        "",
        f"{protocol}; the intervals are 95 %. The",
        "validation split chose these weights, so it flatters them; `loopwise eval` measures the test split.",
        "",
        "| steps | exact | tokens | verified by the rules |",
        "|---|---|---|---|",
        *rows,
        f"| when halted (mean {halted['mean_steps']:.1f}) | {_interval(halted)} | | {_share(halted['verified'])} |",
    ]


def _interval(row: dict[str, Json]) -> str:
    low, high = row["interval_95"]
    return f"{100 * row['exact_accuracy']:.2f} % [{100 * low:.2f}, {100 * high:.2f}]"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _configuration(model: Model, training: dict[str, Json]) -> dict[str, Any]:
    return {
        "task": to_json(model.task.config),
        "reasoner": to_json(model.reasoner.config),
        "gradient": {"name": model.gradient.name, **to_json(model.gradient.config)},
        "halting": {"name": model.halting.name, **to_json(model.halting.config)},
        "training": training,
    }
