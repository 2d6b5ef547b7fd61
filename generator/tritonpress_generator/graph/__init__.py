"""One file a graph pass (ONNX to ONNX); the file's name is the word in the recipe's `graph:` list."""
