"""The process of a host: the clock, the worker, and what runs all the time."""
