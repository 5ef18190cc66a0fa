"""The verbs: what a person or a schedule asks for, built from components, repository and environments.

Every verb works from settings, store and key alone; nothing here knows a catalogue, a queue or a web.
"""
