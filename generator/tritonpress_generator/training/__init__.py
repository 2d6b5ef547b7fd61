"""Training: what is trained for a task is in the file of the task's name, how in `loop`."""
