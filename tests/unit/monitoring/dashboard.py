"""The queries of the dashboard, with what Grafana puts in filled in."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.unit.project.tree import ROOT

DASHBOARD: dict[str, Any] = json.loads((ROOT / "monitoring/dashboard.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
_FILLED = {"$instance": ".*", "$job": ".*", "$domain": ".*", "$__rate_interval": "5m", "$__range": "1h"}


def queries() -> dict[str, tuple[str, str]]:
    """Expression and legend by the panel's title and the query's letter."""
    return {
        f"{panel['title']}/{target['refId']}": (filled(target["expr"]), target.get("legendFormat", ""))
        for panel in PANELS
        for target in panel["targets"]
    }


def filled(expression: str) -> str:
    for name, value in _FILLED.items():
        expression = re.sub(re.escape(name) + r"(?!\w)", value, expression)
    assert "$" not in expression
    return expression
