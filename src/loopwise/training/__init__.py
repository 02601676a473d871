"""The loop with a loss."""
