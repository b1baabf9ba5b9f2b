"""The command line: ``planner fit``, ``show``, ``compare``, ``verify``, ``pareto`` and others.

Exit codes: 0 the plan fits, 1 it does not, 2 the input is wrong, 3 a defect of this program, 130 it
was interrupted.
Answers go to standard output, everything else to standard error. The only folder that prints.
"""

from planner.cli.commands import cli, main

__all__ = ["cli", "main"]
