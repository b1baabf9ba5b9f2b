"""Plan a training step over several devices: what to recompute, what to shard and how, at once.

Imports nothing, so that looking at a configuration does not load torch.
"""
