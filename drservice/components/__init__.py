"""Components: the parts of a service that are captured and restored, one folder or module per kind."""
