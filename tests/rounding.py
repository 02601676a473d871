"""Whether this processor rounds a batched product as it does the product of all rows, which bitwise claims stand on."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F


def skip_where_products_round_otherwise():
    """Skip a test whose bound holds where both products round alike: seen with AVX-512, not with AVX2."""
    rng = torch.Generator().manual_seed(0)
    for places, size, width in itertools.product((5, 7, 9, 12, 16), (8, 16, 32), (16, 32, 64, 128)):
        x, weight = torch.randn(6, places, size, generator=rng), torch.randn(width, places, generator=rng)
        rows = F.linear(x.transpose(1, 2), weight).transpose(1, 2)
        if not torch.equal(torch.bmm(weight.expand(6, -1, -1), x), rows):
            pytest.skip("this processor rounds batched products otherwise")
