"""From a model to a graph: one training step traced under fake tensors, and lowered to ops."""
