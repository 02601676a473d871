"""The loop with budgets."""
