"""One file a task; the file's name is the recipe's `task:` word."""
