"""Bringing a new version of a model into service: a transaction that the stable version survives."""
