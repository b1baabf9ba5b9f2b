"""One rank's whole step as a graph: what resides, forward, backward, communication."""
