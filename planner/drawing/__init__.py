"""Pictures and pages of what was planned, as SVG and HTML text, without any library.

Imports nothing. Draws facts that others found and adds none.
"""
