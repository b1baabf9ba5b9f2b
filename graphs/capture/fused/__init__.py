"""A training step as the kernels that a compiler makes of it."""
