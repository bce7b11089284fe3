"""Simulated screens with known effects."""
