"""A Redis as a component: its content as an RDB file, taken over the replication protocol."""
