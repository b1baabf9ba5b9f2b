"""What only a device can show: ``python -m benchmarks.gpu`` on any CUDA card, in ten minutes.

Needs nothing downloaded. Every check is a row with what was found, what was expected and its
tolerance; on a machine without a card those that have a meaning on a CPU run there, and the others
say "skipped: no GPU". The command ends with 1 if a row is outside its tolerance.
"""
