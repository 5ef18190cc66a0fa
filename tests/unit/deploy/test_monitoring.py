"""Alert rules, dashboard and their pages speak of metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from drservice.web.metrics import METRICS
from drservice.web.standing import Condition

ROOT = Path(__file__).resolve().parents[3]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yaml"
RULE_TESTS = ROOT / "deploy" / "prometheus" / "alerts_test.yaml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboard.json"
USE = re.compile(r"\b(drservice_[a-z0-9_]+)(?:\{([^}]*)\})?")
LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
KEPT_BY = re.compile(r"\bby \(([^)]*)\)")
RUNBOOK = "{{ $externalLabels.drservice_docs }}/"


def rules() -> list[dict[str, Any]]:
    document = YAML(typ="safe").load(RULES)
    return [rule for group in document["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return found


def queries() -> Iterator[tuple[str, str, str]]:
    """Yield where each expression is, the expression, and the text that shows its labels."""
    for rule in rules():
        yield rule["alert"], rule["expr"], rule["annotations"]["summary"]
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"], target["legendFormat"]


def unknown_in(expression: str) -> list[str]:
    """Return the metrics and labels of an expression that do not exist."""
    found = []
    for name, matchers in USE.findall(expression):
        labels = METRICS[name].labels if name in METRICS else ()
        if name not in METRICS:
            found.append(name)
        found += [f"{name}{{{label}}}" for label in LABEL.findall(matchers or "") if label not in labels]
    return found


def test_every_metric_and_label_of_rules_and_dashboard_exists() -> None:
    assert len(list(queries())) > 25
    assert {where: unknown_in(expression) for where, expression, _ in queries() if unknown_in(expression)} == {}


def test_a_metric_or_label_that_does_not_exist_is_noticed() -> None:
    assert unknown_in('drservice_backup_age{service="x"}') == ["drservice_backup_age", "drservice_backup_age{service}"]
    assert unknown_in('sum(drservice_runs{host="x",state!="y"})') == ["drservice_runs{host}"]


def test_texts_name_only_labels_that_their_expression_keeps() -> None:
    for where, expression, shown in queries():
        wanted = set(re.findall(r"\$labels\.(\w+)", shown)) | set(re.findall(r"\{\{(\w+)\}\}", shown))
        kept = KEPT_BY.findall(expression)
        metrics = [METRICS[name].labels for name, _ in USE.findall(expression)]
        possible = set(re.split(r",\s*", kept[0])) if kept else set(metrics[0])
        assert wanted <= possible, where


def test_every_alert_has_a_section_that_tells_what_to_do() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names)) > 10
    for rule in rules():
        url = rule["annotations"]["runbook_url"]
        assert url.startswith(RUNBOOK), rule["alert"]
        page, _, anchor = url.removeprefix(RUNBOOK).partition("#")
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        headings = dict(re.findall(r"^## (.+)\n(.*)", text, re.MULTILINE))
        by_anchor = {heading.lower().replace(" ", "-"): line for heading, line in headings.items()}
        word = {"business-critical": "*Business-critical.*", "technical": "*Technical.*"}[rule["labels"]["severity"]]
        assert by_anchor[anchor].startswith(word), rule["alert"]


def test_conditions_in_rules_are_those_of_the_overview() -> None:
    text = RULES.read_text(encoding="utf-8") + DASHBOARD.read_text(encoding="utf-8").replace('\\"', '"')
    named = set(re.findall(r'drservice_service_condition\{state="(\w+)"', text))
    assert named
    assert named <= {condition.name.lower() for condition in Condition}


def test_instants_are_timestamps_and_no_label_is_without_bound() -> None:
    for metric in METRICS.values():
        assert "age" not in metric.name.split("_")
        assert set(metric.labels) <= {"service", "component", "kind", "state", "host", "version"}


def test_the_page_of_metrics_is_complete() -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", page, re.MULTILINE)
    assert rows == [(metric.name, ", ".join(metric.labels) or "-", metric.meaning) for metric in METRICS.values()]


def test_every_alert_has_a_test_of_its_own_for_promtool() -> None:
    tested = set(re.findall(r'ALERTS\{alertname="(\w+)", alertstate', RULE_TESTS.read_text(encoding="utf-8")))
    assert tested == {rule["alert"] for rule in rules()}


def test_panels_have_their_own_ids_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        grid = panel["gridPos"]
        cells = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        assert not taken & cells, panel["title"]
        assert grid["x"] + grid["w"] <= 24
        taken |= cells


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
def test_promtool_finds_each_alert_firing_when_it_has_to() -> None:
    for verb, file in (("check", RULES), ("test", RULE_TESTS)):
        done = subprocess.run(["promtool", verb, "rules", file], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
