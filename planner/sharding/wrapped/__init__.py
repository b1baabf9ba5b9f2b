"""A model as a root and repeated units, each captured by itself."""
