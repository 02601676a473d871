"""Graves' adaptive computation time (arXiv 1603.08983), section 2, literally and for one row, for comparison in tests.

It shares no code with the library it checks: only `torch` is imported. "(N)" in a comment names the equation of the
paper which the line transcribes.
"""

import torch


def ponder(step, state, max_ponder, epsilon):
    """Apply `step` to one row as often as the row's own halting probabilities ask for, and average.

    `step(state)` gives the next state, a tensor; the halting logit, a number; and the outputs, a tuple of tensors. What
    comes back: the mean state, the mean outputs, N (an int), the remainder R and the ponder cost N + R (tensors), and
    the sum of all N halting probabilities.
    """
    states, outputs, h = [], [], []
    reached = 0.0
    while True:
        state, logit, said = step(state)
        h.append(torch.sigmoid(logit))  # (5): the halting probability of this step
        states.append(state)
        outputs.append(said)
        reached += h[-1].item()
        if reached >= 1.0 - epsilon or len(h) == max_ponder:  # (6): N, the first n at which the sum reaches 1 - epsilon
            break
    N = len(h)
    R = 1.0 - sum(h[: N - 1])  # (7): what the first N - 1 probabilities leave over
    if not isinstance(R, torch.Tensor):
        R = torch.ones_like(h[0])  # N = 1: an empty sum
    p = [*h[: N - 1], R]  # (8)
    mean_state = p[0] * states[0]
    for n in range(1, N):
        mean_state = mean_state + p[n] * states[n]  # (9)
    mean_outputs = []
    for k in range(len(outputs[0])):
        mean = p[0] * outputs[0][k]
        for n in range(1, N):
            mean = mean + p[n] * outputs[n][k]  # (9)
        mean_outputs.append(mean)
    return mean_state, tuple(mean_outputs), N, R, N + R, sum(h)  # (10), (11): N + R; N has no gradient
