"""From experiment files and flags to a checked configuration."""
