"""Who may do what over HTTP: passwords, tokens, sessions, and the one table of permissions."""
