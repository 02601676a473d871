"""The curve of a hundred training steps: written down once, and followed by the fast path.

tests/golden/curves.json holds the loss of every step of two small models in float32, without compiling. To write it
anew after a change that is meant to change the arithmetic: LOOPWISE_WRITE_GOLDEN=1 scripts/test tests/test_golden.py
"""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from loopwise.data.stream import Stream
from loopwise.reasoners.compiling import compile_networks
from loopwise.recipes import find
from loopwise.runs import build
from loopwise.runtime import compile_trouble
from loopwise.training.trainer import Trainer
from rounding import products_round_alike

CURVES = Path(__file__).parent / "golden" / "curves.json"
STEPS = 100
EARLY, LATE = 2e-4, 5e-2
"""Tolerances of the loss, relative: of the first ten steps, where rounding has had no time to grow, and of the mean
over ten steps after that; recursion and an optimizer without a scale make any two roundings part.
"""


def curve(core, *, compiled=False, lr=3e-3):
    """The losses of a hundred steps of a small TRM that sorts ten numbers."""
    config = find("sorting-10")
    positions = "none" if core == "mlp" else "rotary"
    reasoner = dataclasses.replace(config.reasoner_config, hidden_size=32, core=core, positions=positions)
    training = dataclasses.replace(
        config.training, batch_size=32, lr=lr, warmup_steps=10, device="cpu", dtype="float32", steps=STEPS
    )
    task = dataclasses.replace(config.task_config, train=500, validation=1, test=1)
    model = build(dataclasses.replace(config, reasoner_config=reasoner, training=training, task_config=task))
    if compiled:
        assert compile_networks(model.reasoner) is None
    stream = Stream(model.task, model.task.examples("train"), seed=0)
    trainer = Trainer(model.reasoner, model.gradient, model.halting, stream, training, Accelerator(cpu=True))
    return np.array([trainer.train_step().loss for _ in range(STEPS)])


def assert_follows(losses, golden):
    """The same first steps, and the same course."""
    np.testing.assert_allclose(losses[:10], golden[:10], rtol=EARLY)
    np.testing.assert_allclose(losses.reshape(-1, 10).mean(1), golden.reshape(-1, 10).mean(1), rtol=LATE)


def written(core):
    """The curve in the file; writes it first where that is asked for."""
    curves = json.loads(CURVES.read_text()) if CURVES.exists() else {}
    if os.environ.get("LOOPWISE_WRITE_GOLDEN"):
        curves[core] = [float(f"{loss:.7g}") for loss in curve(core)]
        CURVES.write_text(json.dumps(curves) + "\n")
    return np.array(curves[core])


@pytest.mark.parametrize("core", ["mlp", "attention"])
def test_the_plain_path_follows_the_golden_curve(core):
    """A hundred steps of the trainer give the losses that are written down."""
    if core == "mlp" and not products_round_alike():
        pytest.skip("this processor rounds batched products otherwise than the one that wrote the curve")
    golden = written(core)
    assert golden[-10:].mean() < 0.95 * golden[:10].mean(), "a curve that does not fall shows little"
    assert_follows(curve(core), golden)


@pytest.mark.parametrize("core", ["mlp", "attention"])
def test_the_compiled_path_follows_the_golden_curve(core):
    """Compiling changes nothing but time: the same losses, within the same tolerances."""
    trouble = compile_trouble(torch.device("cpu"))
    if trouble:
        pytest.skip(f"nothing compiles here: {trouble}")
    assert_follows(curve(core, compiled=True), written(core))


def test_another_rate_leaves_the_golden_curve():
    """The tolerances are tight enough to tell a rate that is 10 % higher."""
    with pytest.raises(AssertionError):
        assert_follows(curve("mlp", lr=3.3e-3), written("mlp"))
