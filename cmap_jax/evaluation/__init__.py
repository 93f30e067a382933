"""Evaluation by named protocols (SPEC 6)."""
