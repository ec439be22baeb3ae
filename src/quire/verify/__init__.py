"""Proof that what runs is what was asked for."""
