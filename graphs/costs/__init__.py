"""What one operator costs: by formula, or measured here and remembered."""
