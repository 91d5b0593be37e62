"""Checkpoints to one verified bundle."""
