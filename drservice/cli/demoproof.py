"""The recovery site in the demo: it drills, is seen to notice damage, and hands out evidence.

The bundle is verified as an auditor would do it: by the ``verify.py`` that is in it, in a process of its own that has
nothing of this one.
"""

from __future__ import annotations

import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from drservice import processes
from drservice.cli import demosite
from drservice.cli.demofacts import DrillFacts, EvidenceFacts, MutationFacts, NeutralFacts
from drservice.cli.demostory import NoteTeller, StepTeller, Story
from drservice.cli.formatting import format_bytes, format_seconds
from drservice.cli.output import Colour, Span
from drservice.cli.plant import Outward
from drservice.errors import DrError, LedgerError
from drservice.model.checks import CheckResult, CheckState
from drservice.model.estate import Estate
from drservice.operations.drill import run_drill
from drservice.operations.drillconclusion import DrillResult
from drservice.operations.drillplan import not_tested
from drservice.operations.drillrecord import DrillRequest, requested_target
from drservice.operations.evidence import Evidence
from drservice.operations.evidenceexport import default_period, export_bundle
from drservice.operations.mutation import EXPLANATIONS, Mutation
from drservice.operations.progress import Progress
from drservice.operations.restorerequest import RestoreContext
from drservice.wiring.data_plane import DataPlane, open_data_plane
from drservice.wiring.evidence import open_anchored_evidence

MUTATION = Mutation.DOCUMENT_ENCRYPTED

_VERIFY_SECONDS = 120.0
_TAKEN_OUT = ("report.pdf", "verify.py")
_ODOO, _NEUTRALIZED = "/odoo-", "/neutralized"
"""What the names of many checks have in common."""
_FAMILIES = {_ODOO: "checks of Odoo", _NEUTRALIZED: "checks that the copy reaches nobody"}
_MARKS = {
    CheckState.PASSED: "passed    ",
    CheckState.FAILED: "FAILED    ",
    CheckState.UNVERIFIED: "UNVERIFIED",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The recovery site with its ledger and anchors open."""

    site: demosite.Site
    story: Story
    estate: Estate
    plane: DataPlane
    ledger: Evidence

    def context(self, progress: Progress) -> RestoreContext:
        """Return what a recovery works with here."""
        return RestoreContext(
            repository=self.plane.repository,
            state_dir=self.estate.state_dir,
            clock=self.plane.clock,
            progress=progress,
        )

    def drill(self, production: Callable[[], Outward]) -> DrillFacts:
        """Recover to an instant that nobody chose, ask everything, judge, destroy.

        Args:
            production: counts what acts on the world outside there: no copy may change that.
        """
        before = production()
        self.story.chapter("A drill, while the plant works")
        self.story.line(f"$ drservice drill {demosite.SERVICE}")
        result, seconds = self._run(None, StepTeller(self.story))
        chosen = result.prepared.chosen
        seed, how = (" and a seed's hash", ", chosen by the seed") if chosen.seed is not None else ("", "")
        self.story.line(f"record {result.obligation_entry} came before the restore: what counts as passed{seed}")
        self.story.line(f"target {requested_target(result.prepared)}{how}")
        self._tell_checks(result.results)
        neutral = self._neutral(result, is_same=production() == before)
        for reason in result.verdict.reasons:
            self.story.line(Span(f"- {reason}", Colour.BAD))
        untested = tuple(str(text) for text in not_tested(result.prepared, result.verdict.not_tested))
        for text in untested:
            self.story.wrapped(f"not tested: {text}")
        verdict = Span("PASSED", Colour.GOOD) if result.verdict.passed else Span("FAILED", Colour.BAD)
        self.story.line(f"record {_number(result)}: ", verdict, f" ({format_seconds(seconds)})")
        measured = result.measured
        return DrillFacts(
            passed=result.verdict.passed,
            reasons=result.verdict.reasons,
            target=requested_target(result.prepared),
            kind=chosen.kind.value,
            checks=len(result.results),
            checks_passed=sum(item.state is CheckState.PASSED for item in result.results),
            odoo_checks=len(_passed(result.results, _ODOO)),
            neutral=neutral,
            not_tested=untested,
            destroyed=result.destroyed,
            rto_ms=measured.rto_ms,
            rpo_ms=measured.rpo_ms,
            record=_number(result),
            seconds=seconds,
        )

    def _tell_checks(self, results: Sequence[CheckResult]) -> None:
        """Tell each check; of those about Odoo and about neutralizing, of which there are many, only what is wrong."""
        many = {marker: _passed(results, marker) for marker in _FAMILIES}
        folded = {item.name for group in many.values() for item in group}
        for item in results:
            if item.name not in folded:
                self.story.aside(f"{_MARKS[item.state]} {item.name} ({format_seconds(item.seconds)})")
        for marker, group in many.items():
            seconds = format_seconds(sum(item.seconds for item in group))
            self.story.wrapped(
                f"{_MARKS[CheckState.PASSED]} {len(group)} {_FAMILIES[marker]}: "
                + ", ".join(item.name.partition(marker)[2].lstrip("-") or "marked" for item in group)
                + f" ({seconds})"
            )

    def _neutral(self, result: DrillResult, *, is_same: bool) -> NeutralFacts | None:
        """Tell what was done so that the copy reaches nobody; all of it is what the drill itself has on record."""
        neutralized = result.restored.neutralized if result.restored is not None else ()
        done = next((item for item in neutralized if item.is_odoo), None)
        if done is None:
            return None
        rows = dict(done.changes)
        facts = NeutralFacts(
            scripts=done.scripts,
            mails_held=rows.get("mail_mail cancelled", 0),
            mail_servers_off=rows.get("mail servers off", 0),
            scheduled_actions_off=rows.get("scheduled actions off", 0),
            questions=len(_passed(result.results, _NEUTRALIZED)),
            production_is_as_it_was=is_same,
        )
        self.story.line(
            f"neutralized before it was asked: the script of {', '.join(facts.scripts) or 'no module'}, then"
            f" {facts.mails_held} queued mails held,"
        )
        self.story.line(
            f"{facts.mail_servers_off} mail server and {facts.scheduled_actions_off} scheduled actions off;"
            f" production {'goes on with all of them' if is_same else 'CHANGED'}"
        )
        return facts

    def drill_that_must_fail(self) -> MutationFacts:
        """Damage the recovered copy before it is asked: checks that notice nothing would prove nothing."""
        self.story.chapter("A drill that must fail")
        self.story.line(f"$ drservice drill {demosite.SERVICE} --mutation {MUTATION.value}")
        result, seconds = self._run(MUTATION, NoteTeller(self.story))
        self.story.line("broken on purpose:")
        self.story.line(result.spoilt or EXPLANATIONS[MUTATION])
        noticed = _noticed(result)
        for text in noticed:
            self.story.wrapped(text)
        word = Span("NOTICED", Colour.GOOD) if result.detected else Span("NOT NOTICED", Colour.BAD)
        self.story.line(f"record {_number(result)}: ", word, f" ({format_seconds(seconds)})")
        return MutationFacts(
            mutation=MUTATION.value,
            detected=bool(result.detected),
            noticed=noticed,
            record=_number(result),
            seconds=seconds,
        )

    def evidence(self) -> EvidenceFacts:
        """Anchor the ledger, write the bundle, and verify it with nothing but what is in it."""
        self.story.chapter("The evidence")
        mark = time.monotonic()
        anchors = self.ledger.seal()
        for anchor in anchors:
            size = anchor.signed.checkpoint.size
            self.story.line(f"{size} signed records, the checkpoint over them anchored in {anchor.place}")
        built = export_bundle(
            self.ledger,
            self.estate,
            target=self.site.bundle,
            period=default_period(self.plane.clock.now()),
            service=None,
        )
        with zipfile.ZipFile(built.path) as bundle:
            for name in _TAKEN_OUT:
                (self.site.evidence / name).write_bytes(bundle.read(name))
        report_bytes = (self.site.evidence / "report.pdf").stat().st_size
        self.story.line(
            f"bundle: {built.files} files, {format_bytes(built.stored_bytes)}, the report as PDF and HTML among them"
            f" ({format_seconds(time.monotonic() - mark)})"
        )
        verified, told = self._verify()
        return EvidenceFacts(
            records=built.report.ledger.tree_size,
            anchored=min((anchor.signed.checkpoint.size for anchor in anchors), default=0),
            verified=verified,
            told=told,
            bundle_bytes=built.stored_bytes,
            report_bytes=report_bytes,
        )

    def _verify(self) -> tuple[bool, str]:
        """Run the bundle's own verifier; returns whether it passed, and its last word."""
        mark = time.monotonic()
        self.story.line(f"$ python -I verify.py {self.site.bundle.name}      (stand-alone, offline)")
        # -I: neither PYTHONPATH nor the folder it is started in; the environment is a fresh one, too.
        argv: list[str | Path] = [sys.executable, "-I", self.site.evidence / "verify.py", self.site.bundle]
        done = processes.run(argv, timeout_seconds=_VERIFY_SECONDS)
        lines = done.stdout.decode("utf-8", "replace").splitlines()
        for line in lines:
            if not line.startswith(("step ", "  ", "policy")):
                self.story.wrapped(line)
        if done.status == 0:
            steps = sum(line.startswith("step ") for line in lines)
            took = format_seconds(time.monotonic() - mark)
            self.story.line(f"{steps} steps: ", Span("VERIFIED", Colour.GOOD), f" ({took})")
        else:
            self.story.line(Span(f"NOT VERIFIED: {done.last_line()}", Colour.BAD))
        return done.status == 0, done.last_line()

    def _run(self, mutation: Mutation | None, progress: Progress) -> tuple[DrillResult, float]:
        mark = time.monotonic()
        service = self.estate.service(demosite.SERVICE)
        request = DrillRequest(
            service=service,
            component=service.database(),
            plan=self.estate.drill(service, None),
            mutation=mutation,
        )
        return run_drill(self.context(progress), self.ledger, request), time.monotonic() - mark


@contextmanager
def open_proof(site: demosite.Site, story: Story) -> Iterator[Proof]:
    """Open the recovery site's repository, ledger and anchors.

    Raises:
        DrError: one of them cannot be opened.
    """
    estate = site.recovery()
    with open_data_plane(estate) as plane, open_anchored_evidence(plane) as ledger:
        yield Proof(site=site, story=story, estate=estate, plane=plane, ledger=ledger)


def _passed(results: Sequence[CheckResult], marker: str) -> list[CheckResult]:
    """Return the checks of a family that passed."""
    return [item for item in results if marker in item.name and item.state is CheckState.PASSED]


def _number(result: DrillResult) -> int:
    """Return where a drill stands in the ledger.

    Raises:
        LedgerError: it was only kept aside.
    """
    if result.record is None:
        raise LedgerError("the drill is not on record: the ledger did not take it")
    return result.record.number


def _noticed(result: DrillResult) -> tuple[str, ...]:
    """Return what noticed the damage: the error that ended the recovery, or the checks that failed."""
    error: DrError | None = result.error
    found = [f"error[{error.code}]: {error.message}"] if error is not None else []
    found += [f"FAILED {item.name}: {item.detail}" for item in result.results if item.state is CheckState.FAILED]
    return tuple(found)
