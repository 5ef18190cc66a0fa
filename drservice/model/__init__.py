"""Nouns and pure rules. Standard library only, no I/O: what is decided here can be tested without a disk."""
