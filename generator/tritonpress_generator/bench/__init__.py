"""Measures what a recipe builds (`make bench`).

All that is compared runs in turn in short slices, so that noise and drift of the machine hit all alike. A ratio is that
of two neighbouring slices; what is printed is the median with the range that holds the middle 80 % of the rounds.
"""
