"""A sharded plan in the words of another program, and what that one cannot say."""
