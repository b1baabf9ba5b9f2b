"""What a model takes by textbook arithmetic: no graph, no capture, no device at hand.

Imports nothing. ``planner.estimate`` is the way in.
"""
