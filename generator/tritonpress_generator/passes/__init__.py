"""One file a pass (torch to torch); the file's name is the word in the recipe's `passes:` list."""
