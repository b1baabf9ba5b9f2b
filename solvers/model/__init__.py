"""A graph as solvers see it: flattened, parted at time cuts, and as linear programs."""
