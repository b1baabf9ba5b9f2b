"""Training really run, in processes of their own: what was measured, and whether results agree.

Imports nothing, so that a plan can be made and read without it.
"""
