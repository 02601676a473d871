"""Draw the curve of a run: python benchmarks/curve.py RUN/log.jsonl curve.png (needs the extra `plot`)."""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt


def main(log: Path, picture: Path) -> None:
    """Loss and accuracies against optimizer steps: of the slots in training, and of the validation split."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    evals = [line for line in lines if line["kind"] == "eval"]
    figure, (losses, accuracies) = plt.subplots(2, 1, sharex=True, figsize=(8, 6), layout="constrained")
    losses.plot([t["step"] for t in train], [t["loss"] for t in train], color="tab:blue", linewidth=1)
    losses.set_ylabel("training loss per slot")
    steps = [e["step"] for e in evals]
    last = [e["by_steps"][-1] for e in evals]
    low = [max(0.0, 100 * (r["exact_accuracy"] - r["interval_95"][0])) for r in last]
    high = [100 * (r["interval_95"][1] - r["exact_accuracy"]) for r in last]
    exact = [100 * r["exact_accuracy"] for r in last]
    label = f"validation, exact ({evals[-1]['puzzles']} puzzles, {last[-1]['steps']} steps, 95 %)"
    accuracies.errorbar(steps, exact, yerr=[low, high], marker="o", color="tab:green", label=label, capsize=3)
    tokens = [100 * r["token_accuracy"] for r in last]
    accuracies.plot(steps, tokens, marker="s", color="tab:orange", label="validation, tokens")
    accuracies.set_ylim(0, 101)
    accuracies.set_xlabel("optimizer steps")
    accuracies.set_ylabel("%")
    accuracies.legend()
    for axes in (losses, accuracies):
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
