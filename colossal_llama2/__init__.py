"""Adapting open language models to a new language or domain, from the vocabulary to the published model."""
