"""``evidence export``: the bundle for an auditor, with the estate as the configuration declares it today.

What is declared and not protected is in the report too: a report that leaves it out hides it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from drservice.canonical import Json, canonical_bytes
from drservice.evidence.bundle import BuiltBundle, ReportWishes, build_bundle, read_contents
from drservice.evidence.bundlewriting import BundleForm
from drservice.evidence.policy import LedgerPolicy, RecordKey
from drservice.evidence.report import ComponentFacts, Period, Scenario, ServiceFacts
from drservice.evidence.reportentries import Promise
from drservice.evidence.signing import Signer
from drservice.model.estate import Estate, PostgresSettings, Service
from drservice.model.evidence import CLOCK_TOLERANCE
from drservice.model.ids import ServiceName
from drservice.operations.evidence import Evidence
from drservice.operations.mutation import EXPLANATIONS
from drservice.operations.records import promised_ms

POLICY_SCHEMA = "drservice/evidence-policy/v1"


def default_period(now: datetime) -> Period:
    """Return the last 92 days up to now: a quarter."""
    return Period(begin=now - timedelta(days=92), end=now + timedelta(seconds=1))


def policy_document(evidence: Evidence, estate: Estate) -> bytes:
    """Return the policy that a bundle carries: the keys this host believes, and the anchors the configuration names.

    An auditor compares its fingerprints with those he was told another way, or brings a policy of his own.
    """
    ledger = evidence.ledger
    age_ms = promised_ms(estate.evidence.anchor_age)
    document: dict[str, Json] = {
        "schema": POLICY_SCHEMA,
        "origin": ledger.origin,
        "log_keys": [
            {
                "name": key.name,
                "key": f"ed25519:{key.public_key.hex()}",
                "from_size": key.from_size,
                "to_size": key.to_size,
            }
            for key in ledger.policy.log_keys
        ],
        "executors": _record_keys(ledger.policy, ledger.policy.executors),
        "approvers": _record_keys(ledger.policy, ledger.policy.approvers),
        "anchors": [{"name": place.name, "max_age_ms": age_ms, "known": []} for place in ledger.anchors],
        "obligations": [],
        "drills": [],
        "tolerance_ms": promised_ms(CLOCK_TOLERANCE),
        "manifest_signed": False,
    }
    return canonical_bytes(document)


def _record_keys(policy: LedgerPolicy, keys: Sequence[RecordKey]) -> list[Json]:
    """Return keys once each: the same key is often listed by the repository and by the configuration."""
    log_keys = {key.public_key for key in policy.log_keys}
    merged: dict[bytes, RecordKey] = {}
    for key in keys:
        known = merged.get(key.public_key)
        if known is None or not key.services:
            merged[key.public_key] = key
    return [
        {
            "name": key.name,
            "key": f"ed25519:{key.public_key.hex()}",
            "services": list(key.services),
            "from_entry": key.from_entry,
            "to_entry": key.to_entry,
        }
        for key in merged.values()
        if key.public_key not in log_keys
    ]


def service_facts(service: Service) -> ServiceFacts:
    """Return a service as the report shows it."""
    return ServiceFacts(
        name=service.name,
        owner=service.owner,
        tier=service.tier,
        promise=Promise(
            rpo_ms=promised_ms(service.objectives.rpo),
            rto_ms=promised_ms(service.objectives.rto),
        ),
        components=tuple(
            ComponentFacts(
                name=name,
                kind="postgres" if isinstance(item, PostgresSettings) else item.kind.value,
                is_protected=True,
            )
            for name, item in service.components.items()
        ),
    )


def scenarios_of(estate: Estate) -> tuple[Scenario, ...]:
    """Return everything that could be drilled: what nobody has ever done is told as not tested."""
    plans = tuple(
        Scenario(name=plan.name, text=f"recovery to {plan.target.value}", service=plan.service)
        for plan in estate.drills.values()
    )
    return plans + tuple(
        Scenario(name=mutation.value, text=text, is_mutation=True) for mutation, text in EXPLANATIONS.items()
    )


def as_policy_knows(signer: Signer, policy: LedgerPolicy) -> Signer:
    """Return this host's key under the name that the policy has for it: a configuration may call a host as it likes.

    A note is believed by the name and the key together (C2SP signed-note), and this host may be called otherwise.
    """
    for key in _record_keys(policy, policy.executors):
        assert isinstance(key, dict), "made so above"
        if key["key"] == f"ed25519:{signer.public_key.hex()}":
            return Signer(name=str(key["name"]), private_key=signer.private_key)
    return signer


def export_bundle(
    evidence: Evidence,
    estate: Estate,
    *,
    target: Path,
    period: Period,
    service: ServiceName | None,
    form: BundleForm = BundleForm.ZIP,
) -> BuiltBundle:
    """Write the bundle; whole and durable on return, or not there.

    Raises:
        BundleExistsError: something is at ``target``.
        EvidenceIncompleteError: there is no checkpoint yet, or entries and checkpoint do not fit.
        LedgerError, StatementError, KeyProblemError, ObjectStoreError: the ledger cannot be read or believed.
    """
    contents = read_contents(
        evidence.ledger,
        repository=evidence.repository,
        policy=policy_document(evidence, estate),
        only_service=service,
    )
    wishes = ReportWishes(
        period=period,
        services=tuple(service_facts(item) for item in estate.services.values()),
        scenarios=scenarios_of(estate),
        only_service=service,
    )
    signers = [as_policy_knows(evidence.signer, evidence.ledger.policy)] if evidence.signer is not None else []
    return build_bundle(contents, target=target, wishes=wishes, form=form, signers=signers)
