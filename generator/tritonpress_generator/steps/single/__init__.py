"""Text to the public answer in one step."""
