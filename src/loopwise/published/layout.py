"""The files of the published HRM and TRM code: reading one, and saying what it holds.

It is a pickled dictionary of tensors, and is read as data alone (`weights_only`): a pickle that would run code is
refused. With d the hidden size, V tokens, N identifiers, S positions with the prefix, and a SwiGLU of width w (of width
u over the positions), it has

    H_init, L_init [d]                       embed_tokens.embedding_weight, lm_head.weight [V, d]
    q_head.weight [2, d], .bias [2]          puzzle_emb.weights [N, d]
    embed_pos.embedding_weight [S, d]        only with learned positions
    L_level.layers.I, and for HRM H_level.layers.I too:
        .self_attn.qkv_proj.weight [3d, d]   .self_attn.o_proj.weight [d, d]       or, with the mlp core of TRM,
        .mlp_t.gate_up_proj.weight [2u, S]   .mlp_t.down_proj.weight [S, u]
        .mlp.gate_up_proj.weight [2w, d]     .mlp.down_proj.weight [d, w]

In front of each name `model.` and `inner.` are passed over, and anywhere in it `_orig_mod.`, which is from
torch.compile. The dictionary may also stand in another one, as "model_state_dict", "state_dict" or "model", with a
moving average beside it or alone, as "ema", "ema_state_dict" or "shadow". A weight that has an average is taken from
there, as in the published evaluation; the others from the plain ones (an average leaves out the initial states and the
identifiers). What else stands beside them belongs to the training, and is not looked at.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from loopwise.errors import CheckpointError
from loopwise.tasks.text import shown

__all__ = ["Layout", "read_layout", "read_published"]

PLAIN = ("model_state_dict", "state_dict", "model")
AVERAGES = ("ema", "ema_state_dict", "shadow")
PREFIX = re.compile(r"(?:(?:model|inner)\.)+")
LAYER = re.compile(r"(H_level|L_level)\.layers\.(\d+)\.")
FORMATS = (torch.float32, torch.bfloat16, torch.float16)  # each fits into float32 without a loss
GIVE = "give the checkpoint file that the published code saved"


class Layout(NamedTuple):
    """What the names and shapes of a published checkpoint say."""

    family: Literal["TRM", "HRM"]
    core: Literal["attention", "mlp"]
    hidden_size: int  # d
    vocabulary: int  # V
    identifiers: int  # N
    layers: dict[str, int]  # of each network
    width: int  # w
    token_width: int | None  # u, of the mlp core
    length: int | None  # S, where a weight tells it
    learned: bool  # whether positions are

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor that such a checkpoint has."""
        d, table = self.hidden_size, (self.vocabulary, self.hidden_size)
        shapes: dict[str, tuple[int, ...]] = {
            "H_init": (d,),
            "L_init": (d,),
            "embed_tokens.embedding_weight": table,
            "lm_head.weight": table,
            "q_head.weight": (2, d),
            "q_head.bias": (2,),
            "puzzle_emb.weights": (self.identifiers, d),
        }
        if self.learned:
            shapes["embed_pos.embedding_weight"] = (self.length or 0, d)
        block = {"mlp.gate_up_proj": (2 * self.width, d), "mlp.down_proj": (d, self.width)}
        if self.core == "attention":
            block |= {"self_attn.qkv_proj": (3 * d, d), "self_attn.o_proj": (d, d)}
        else:
            across, width = self.length or 0, self.token_width or 0
            block |= {"mlp_t.gate_up_proj": (2 * width, across), "mlp_t.down_proj": (across, width)}
        for level, layers in self.layers.items():
            for number in range(layers):
                shapes |= {f"{level}.layers.{number}.{part}.weight": shape for part, shape in block.items()}
        return shapes


def read_published(file: Path) -> dict[str, Tensor]:
    """The tensors of a published checkpoint in float32, under their names without prefixes.

    Raises CheckpointError, in one line, for anything but a file of finite dense tensors.
    """
    if not file.is_file():
        raise CheckpointError(f"there is no file {file}; {GIVE}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch would warn of is refused, in words of ours
            data = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged pickle can raise anything
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise  # a table of a million identifiers is no damage
        raise CheckpointError(_refusal(file, error)) from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} holds a value of type {type(data).__name__}, no dictionary of tensors; {GIVE}")
    found = [name for name in (*PLAIN, *AVERAGES) if isinstance(data.get(name), dict)]
    if not found:
        return _tensors(data, file)
    for kind in (PLAIN, AVERAGES):
        both = [name for name in found if name in kind]
        if len(both) > 1:
            raise CheckpointError(f"{file} holds both {both[0]!r} and {both[1]!r}; keep the one that is meant")
    if any(isinstance(value, Tensor) for value in data.values()):
        raise CheckpointError(f"{file} holds tensors beside {found[0]!r}; keep those that are meant")
    return {name: tensor for part in found for name, tensor in _tensors(data[part], file).items()}


def _refusal(file: Path, error: Exception) -> str:
    """What to say of a file that torch does not load; its own message advises to run the code in it."""
    found = re.search(r"GLOBAL (\S{1,80})", str(error))
    if found:
        what = f"an object of {found[1]}, which may run code, so it is not loaded"
        return f"{file} holds {what}; save its state dictionary, and nothing else"
    return f"{file} is damaged, or no file that torch.save wrote ({type(error).__name__}); {GIVE}"


def _tensors(data: Mapping[Any, Any], file: Path) -> dict[str, Tensor]:
    """The tensors of a dictionary, in float32; raises CheckpointError for anything else in it."""
    tensors: dict[str, Tensor] = {}
    for key, tensor in data.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            what = f"{shown(key, 80)}: a value of type {kind}" if isinstance(key, str) else f"the name {shown(key, 80)}"
            raise CheckpointError(f"{file} has {what}; it must hold tensors under their names, and nothing else")
        name = PREFIX.sub("", ".".join(part for part in key.split(".") if part != "_orig_mod"), count=1)
        if name in tensors:
            raise CheckpointError(f"{file} has {shown(name, 80)} twice, with different prefixes; keep one of them")
        # A view that repeats its values could claim any size, so it must own as many as it shows.
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not dense or tensor.dtype not in FORMATS or not tensor.is_contiguous():
            kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}".replace("torch.", "")
            kind += ", a view" if dense and not tensor.is_contiguous() else ""
            wanted = "weights must be float32, bfloat16 or float16, dense and contiguous"
            raise CheckpointError(f"{file} has {shown(name, 80)} as {kind}; {wanted}")
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{file} has {shown(name, 80)} with values that are no finite numbers; use another")
        tensors[name] = tensor.detach().float()
    return tensors


def read_layout(weights: Mapping[str, Tensor], file: Path) -> Layout:
    """What the names and shapes of all tensors say; raises CheckpointError unless they are a published model's."""

    def size(name: str, axis: int) -> int:
        if name not in weights:
            raise CheckpointError(f"{file} has no {name}, so it is no checkpoint of the published HRM or TRM; {GIVE}")
        shape = weights[name].shape
        if len(shape) != 2 or 0 in shape:
            raise CheckpointError(f"{file} has {name} of the shape {[*shape]}; it must be a matrix with values")
        return shape[axis]

    layers: dict[str, set[str]] = {"L_level": set()}
    for name in weights:
        if layer := LAYER.match(name):
            layers.setdefault(layer[1], set()).add(layer[2])
    # Whatever mixes two families, cores or sizes lacks tensors of one of them, or has some of the other too many.
    token_down = "L_level.layers.0.mlp_t.down_proj.weight"
    hrm = any(name.startswith("H_level.") for name in weights)
    mlp, learned = not hrm and token_down in weights, "embed_pos.embedding_weight" in weights
    layout = Layout(
        family="HRM" if hrm else "TRM",
        core="mlp" if mlp else "attention",
        hidden_size=size("embed_tokens.embedding_weight", 1),
        vocabulary=size("embed_tokens.embedding_weight", 0),
        identifiers=size("puzzle_emb.weights", 0),
        layers={level: len(numbers) for level, numbers in layers.items()},
        width=size("L_level.layers.0.mlp.down_proj.weight", 1),
        token_width=size(token_down, 1) if mlp else None,
        length=size("embed_pos.embedding_weight", 0) if learned else size(token_down, 0) if mlp else None,
        learned=learned,
    )
    _compare(weights, layout, file)
    return layout


def _compare(weights: Mapping[str, Tensor], layout: Layout, file: Path) -> None:
    """Raise CheckpointError unless the tensors are those of the layout, all of them and no others."""
    expected, kind = layout.shapes(), f"published {layout.family} with the {layout.core} core"
    if missing := sorted(expected.keys() - weights.keys()):
        raise CheckpointError(f"{file} has no {missing[0]}, which a {kind} has; it is incomplete, get it again")
    if unknown := sorted(weights.keys() - expected.keys()):
        raise CheckpointError(
            f"{file} has {shown(unknown[0], 80)}, which no {kind} has; only unchanged models are known"
        )
    for name, shape in expected.items():
        if weights[name].shape != shape:
            has = [*weights[name].shape]
            raise CheckpointError(
                f"{file} has {name} of the shape {has}; beside its other weights it must be {[*shape]}"
            )
    if layout.vocabulary < 2:
        raise CheckpointError(f"{file} knows no token but padding; {GIVE}")
