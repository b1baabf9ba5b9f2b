"""The optimum of small graphs, proved."""
