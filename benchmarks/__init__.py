"""Measurements against real models and known instances; each run leaves a CSV in ``results/``."""
