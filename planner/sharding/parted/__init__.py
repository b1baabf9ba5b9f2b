"""Layers parted over ranks: which styles, over how many ranks, and how a model becomes so."""
