"""Room 2, weights: rows for new pieces, freezing."""
