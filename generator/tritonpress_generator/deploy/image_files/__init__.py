"""Files of the image that are no part of this package: the container runs them by their paths."""
