"""Room 1, words: load, expand and check tokenizers."""
