"""The loop with a queue: puzzles over HTTP, and the page that shows models think."""
