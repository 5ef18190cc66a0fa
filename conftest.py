"""Puts the repository's root on ``sys.path`` so that tests can import ``tests.doubles``."""
