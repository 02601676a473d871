"""loopwise: tiny networks that reason by recursion."""
