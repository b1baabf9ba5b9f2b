"""What people do today, swept fairly; every family is a solver of its own."""
