"""The name under which a bundle is signed."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from drservice.evidence.policy import LedgerPolicy, RecordKey
from drservice.evidence.signing import Signer
from drservice.operations.evidenceexport import as_policy_knows

OWN = Signer(name="host-17", private_key=Ed25519PrivateKey.generate())
OTHER = Ed25519PrivateKey.generate().public_key().public_bytes_raw()


def test_a_host_signs_under_the_name_that_the_configuration_has_for_its_key() -> None:
    known = RecordKey(name="recovery-site", public_key=OWN.public_key)
    policy = LedgerPolicy(executors=(RecordKey(name="production", public_key=OTHER), known))
    assert as_policy_knows(OWN, policy).name == "recovery-site"
    assert as_policy_knows(OWN, policy).public_key == OWN.public_key


def test_a_key_that_nobody_listed_keeps_its_own_name() -> None:
    assert as_policy_knows(OWN, LedgerPolicy()).name == "host-17"
