"""The queue of runs: who may start which, once."""
