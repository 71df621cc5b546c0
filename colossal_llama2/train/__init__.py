"""Room 5, stages: one loop for every supervised objective."""
