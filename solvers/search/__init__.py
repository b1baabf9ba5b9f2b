"""Better schedules, step by step, from those that are known."""
