"""What is done to a traced step before it is lowered; each pass is a file."""
