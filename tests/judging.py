"""What several test files need to score a step without a trainer."""

import torch

from loopwise.reasoners.halting import Judged


def judged(prediction, correct, *, ponder=None, steps=None, following=None, training_step=0):
    """A step as a halting policy sees it: by default the first of its puzzles, which will say the same again."""
    ones = torch.ones_like(correct, dtype=torch.int64)
    return Judged(
        prediction=prediction,
        ponder=ones.float() if ponder is None else ponder,
        correct=correct,
        steps=ones if steps is None else steps,
        following=(lambda: type(prediction)(*(t.detach() for t in prediction))) if following is None else following,
        training_step=training_step,
    )
