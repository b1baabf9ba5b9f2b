"""What else a person asks: methods compared, the whole curve, the largest batch."""
