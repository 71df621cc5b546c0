"""Room 7, talk: generate and stream; have an endpoint make data."""
