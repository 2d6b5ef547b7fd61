"""`tritonpress tune`: the configs that serve the most requests a second under a limit on their latency, by measurement.

What can be turned (`knobs`) is tried one knob after the other (`climb`) on a server that is given each config by its
model control (`bench`), under load from `tritonpress-load` (`load`).
"""
