"""Room 7, talk: generate and stream."""
