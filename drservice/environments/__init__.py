"""Isolated places where services are recovered, and the proof that they are isolated."""
