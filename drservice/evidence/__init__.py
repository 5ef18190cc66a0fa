"""Evidence: signed statements in an append-only ledger, checkpoints and anchors, and a verifier that stands alone."""
