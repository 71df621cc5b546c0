"""The conversation in a terminal, or in a pipe."""
