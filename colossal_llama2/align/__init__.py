"""Alignment: preference, reward and policy; losses as pure functions."""
