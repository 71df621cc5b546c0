"""Room 8, proof: evaluation, curves, tables."""
