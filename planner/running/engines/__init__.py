"""How a schedule becomes two programs that run; each engine is a file."""
