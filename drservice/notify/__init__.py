"""Telling people: an outbox that is emptied with patience."""
