"""The catalogue: an index of runs, snapshots and evidence in PostgreSQL that the repository can fill again."""
