"""One file an engine; the file's name is the recipe's `engine:` word."""
