"""The puzzles. One file a task; `loopwise tasks` lists them."""
