"""Whether this processor rounds a batched product as it does the product of all rows, which bitwise claims stand on."""

from __future__ import annotations

import functools
import itertools

import torch
import torch.nn.functional as F


@functools.cache
def products_round_alike() -> bool:
    """Whether both products round alike, in the sizes that the tests of the core `mlp` use: not seen with AVX2."""
    rng = torch.Generator().manual_seed(0)
    for places, size, width in itertools.product((5, 7, 9, 10, 12, 14, 16, 25), (8, 16, 32), (16, 32, 64, 128)):
        x, weight = torch.randn(6, places, size, generator=rng), torch.randn(width, places, generator=rng)
        rows = F.linear(x.transpose(1, 2), weight).transpose(1, 2)
        if not torch.equal(torch.bmm(weight.expand(6, -1, -1), x), rows):
            return False
    return True
