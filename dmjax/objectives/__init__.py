"""What is matched: one file an objective."""
