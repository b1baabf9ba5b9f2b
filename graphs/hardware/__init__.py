"""Devices, the links between them, and what a collective takes over those."""
