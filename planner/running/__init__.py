"""A plan carried out: its schedule written as two programs, and a model that runs them.

Imports nothing, so that a plan can be made and read without it.
"""
