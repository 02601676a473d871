"""From a task to batches: cached arrays, and an endless stream that can be continued exactly."""
