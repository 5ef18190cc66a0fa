"""Read-only questions asked of a recovered service; what could not be answered has not passed."""
