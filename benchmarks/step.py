"""How fast a step is: beside the published model written down literally, and as a share of what the machine can do.

python benchmarks/step.py [--groups published small families] [--rounds N] [--markdown FILE]

    published   TRM with token mixing and with attention, 81 positions, hidden 512, batch 64: the literal twin of
                tests/reference in bfloat16, without compiling (as published), against ours as it is and compiled
    small       the same shapes with hidden 128, batches of 64 and 256
    families    every reasoner on 36 positions, hidden 128, batches of 16, 64 and 256

Each contender is a process of its own that waits while another works; they take turns, step by step, so that what
the machine does beside hits all alike. `training` is forward, loss and backward; `solving` a step without gradient.

    seconds     median over the rounds, after one step that is not counted
    ratio       seconds of the twin / seconds of this one, the median over pairs of one round, and the extremes
    GFLOP/s     FLOPs of the products (torch's counter) / seconds
    share       of the ceiling: products of two 1024 x 1024 matrices in the same format, measured in every round
    peak        MiB of the process at its largest
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Contender:
    """What a process runs."""

    title: str
    reasoner: str = "trm"
    core: str = "mlp"
    hidden: int = 512
    box: str = "3x3"
    batch: int = 64
    dtype: str = "auto"
    twin: bool = False
    compile: bool = False
    keep_memory: bool = True


def groups() -> dict[str, Callable[[], Iterator[list[Contender]]]]:
    """Lists of contenders that take turns, by the name of the group; a twin stands first."""

    def published() -> Iterator[list[Contender]]:
        for core in ("mlp", "attention"):
            twin = Contender(f"{core}: twin, bfloat16", core=core, dtype="bfloat16", twin=True, keep_memory=False)
            # By twos: four of these would need more memory than many machines have.
            yield [twin, Contender(f"{core}: ours, plain", core=core, keep_memory=False)]
            yield [twin, Contender(f"{core}: ours, memory kept", core=core)]
            yield [twin, Contender(f"{core}: ours, compiled", core=core, compile=True)]

    def small() -> Iterator[list[Contender]]:
        for core in ("mlp", "attention"):
            for batch in (64, 256):
                title = f"{core}, batch {batch}"
                yield [
                    Contender(f"{title}: plain", core=core, hidden=128, batch=batch),
                    Contender(f"{title}: compiled", core=core, hidden=128, batch=batch, compile=True),
                ]

    def families() -> Iterator[list[Contender]]:
        for name in ("trm", "hrm", "looped", "rnn", "deq", "trm-single", "trm-multi"):
            for batch in (16, 64, 256):
                yield [Contender(f"{name}, batch {batch}", name, "attention", 128, "2x3", batch)]

    return {"published": published, "small": small, "families": families}


# ---------------------------------------------------------------- a process


def work(contender: Contender) -> None:
    """Obey one word a line: train, solve, ceiling, peak; answer each with a JSON number."""
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "reference")]
    import torch

    from loopwise.runtime import keep_freed_memory, matmul_flops, resolve_device, resolve_dtype

    if contender.keep_memory:
        keep_freed_memory()
    device = resolve_device()
    dtype = resolve_dtype(contender.dtype, device)
    train, solve = (_twin if contender.twin else _ours)(contender, dtype, device)

    def timed(step: Callable[[], object]) -> float:
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    words: dict[str, Callable[[], Any]] = {
        "train": lambda: timed(train),
        "solve": lambda: timed(solve),
        "ceiling": lambda: matmul_flops(device, dtype),
        "peak": lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "flops": lambda: _flops(contender, dtype, device),
    }
    for line in sys.stdin:
        print(json.dumps(words[line.strip()]()), flush=True)


def _puzzles(contender: Contender, device: Any) -> tuple[Any, Any]:
    import torch

    from loopwise.tasks.sudoku import Sudoku, SudokuConfig
    from loopwise.types import Batch

    spec = Sudoku(SudokuConfig(box=contender.box)).spec
    rng = torch.Generator().manual_seed(0)
    shape = (contender.batch, spec.length)
    inputs, labels = (torch.randint(1, spec.vocab_size, shape, generator=rng).to(device) for _ in range(2))
    return spec, Batch(inputs, labels, torch.zeros_like(inputs[:, 0]))


def _model(contender: Contender, dtype: Any, device: Any) -> tuple[Any, Any, Any]:
    import dataclasses

    from loopwise.reasoners.base import GradientPolicy, Reasoner
    from loopwise.registry import resolve

    spec, batch = _puzzles(contender, device)
    cls = resolve(contender.reasoner, "loopwise.reasoners", Reasoner)  # type: ignore[type-abstract]
    wanted = {"hidden_size": contender.hidden, "core": contender.core, "num_heads": 8}
    if contender.core == "mlp":
        wanted["positions"] = "none"
    names = {field.name for field in dataclasses.fields(cls.Config)}
    config = cls.Config(**{name: value for name, value in wanted.items() if name in names})
    policy = resolve(cls.default_gradient, "loopwise.reasoners", GradientPolicy)  # type: ignore[type-abstract]
    return cls(config, spec, dtype).to(device), policy(), batch


def _ours(contender: Contender, dtype: Any, device: Any) -> tuple[Callable[[], object], Callable[[], object]]:
    import torch

    from loopwise.reasoners.compiling import compile_networks
    from loopwise.training.losses import answer_loss

    model, policy, batch = _model(contender, dtype, device)
    if contender.compile:
        trouble = compile_networks(model)
        if trouble:
            raise SystemExit(f"cannot compile: {trouble}")
    held = {"state": model.init_state(*batch.inputs.shape)}

    def train() -> None:
        held["state"], prediction = model(held["state"], batch, policy)
        loss, _, correct = answer_loss("stablemax", prediction.logits, batch.labels)
        halting = torch.nn.functional.binary_cross_entropy_with_logits(prediction.halt_logits, correct.float())
        (loss / contender.batch + halting).backward()  # type: ignore[no-untyped-call]
        model.zero_grad()

    @torch.no_grad()
    def solve() -> None:
        held["state"], _ = model(held["state"], batch, policy)

    return train, solve


def _twin(contender: Contender, dtype: Any, device: Any) -> tuple[Callable[[], object], Callable[[], object]]:
    import torch
    import trm  # type: ignore[import-not-found] # the literal twin, from tests/reference

    spec, batch = _puzzles(contender, device)
    positions = "none" if contender.core == "mlp" else "rope"
    sizes = {"hidden_size": contender.hidden, "core": contender.core, "positions": positions}
    twin = trm.TRMTwin(spec.vocab_size, spec.length, 1, **sizes, forward_dtype=dtype).to(device)
    held = {"state": twin.initial_state(contender.batch)}

    def train() -> None:
        held["state"], logits, q_halt, _ = twin(held["state"], batch.inputs, batch.puzzle_ids)
        (trm.total_loss(logits, batch.labels, q_halt) / contender.batch).backward()
        twin.zero_grad()

    @torch.no_grad()
    def solve() -> None:
        held["state"] = twin(held["state"], batch.inputs, batch.puzzle_ids)[0]

    return train, solve


def _flops(contender: Contender, dtype: Any, device: Any) -> list[float]:
    """FLOPs of a training and of a solving step; those of ours, which the twin's are too."""
    from loopwise.reasoners.costs import count_flops
    from loopwise.reasoners.halting import Correctness

    model, policy, batch = _model(contender, dtype, device)
    flops = count_flops(model, policy, Correctness(), batch.inputs.shape[1])
    return [flops.training * contender.batch, flops.solving * contender.batch]


# ---------------------------------------------------------------- the turns


class Worker:
    """A contender's process."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        command = [sys.executable, __file__, "--worker", json.dumps(asdict(contender))]
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, word: str) -> Any:
        """Have it do one thing, and wait for the answer."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.contender.title}: the process has ended")
        return json.loads(line)

    def close(self) -> None:
        """Let it go."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def measure(contenders: list[Contender], rounds: int) -> list[list[str]]:
    """The rows of a table, two for each contender."""
    workers = [Worker(contender) for contender in contenders]
    flops = [worker.ask("flops") for worker in workers]
    rows = []
    for kind, mode in enumerate(("train", "solve")):
        for worker in workers:
            worker.ask(mode)
        seconds: list[list[float]] = [[] for _ in workers]
        ceilings: list[list[float]] = [[] for _ in workers]
        for _ in range(rounds):
            for i, worker in enumerate(workers):
                ceilings[i].append(worker.ask("ceiling"))
                seconds[i].append(worker.ask(mode))
        for i, worker in enumerate(workers):
            typical, ceiling = statistics.median(seconds[i]), max(ceilings[i])
            ratios = [a / b for a, b in zip(seconds[0], seconds[i], strict=True)]
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if i else "1"
            speed = flops[i][kind] / typical
            rows.append(
                [
                    worker.contender.title,
                    {"train": "training", "solve": "solving"}[mode],
                    f"{typical:.3g}",
                    ratio,
                    f"{speed / 1e9:.0f}",
                    f"{100 * speed / ceiling:.0f} %",
                    f"{worker.ask('peak'):.0f}",
                ]
            )
    for worker in workers:
        worker.close()
    return rows


HEADER = ("contender", "step", "seconds", "ratio", "GFLOP/s", "share", "peak MiB")


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", nargs="+", default=list(groups()), choices=list(groups()))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="only contenders whose title contains this")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(Contender(**json.loads(args.worker)))
        return
    text = ""
    for group in args.groups:
        text += f"\n{group}\n\n| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}\n"
        print(text.rsplit("\n\n", 1)[-1], end="", flush=True)
        for contenders in groups()[group]():
            if any(args.only in c.title for c in contenders):
                for row in measure(contenders, args.rounds):
                    line = f"| {' | '.join(row)} |\n"
                    print(line, end="", flush=True)
                    text += line
    if args.markdown:
        args.markdown.write_text(text.lstrip())


if __name__ == "__main__":
    main()
