"""The commands of `tritonpress-query`, a file each: `HELP`, `add_arguments(parser)` and `run(arguments) -> status`."""
