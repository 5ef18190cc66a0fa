"""Settings become live objects here, and only here."""
