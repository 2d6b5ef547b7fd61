"""Text to token ids, and token ids to executions of the engine."""
