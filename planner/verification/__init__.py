"""Training really run, in processes of its own, measured and compared."""
