"""Writes dashboards/*.json for Grafana from source/*.yaml, and the runbook's address into the alerts of Prometheus;
`--check` only says what is stale."""
# ruff: noqa: INP001, T201 - a script for people, not a package

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
ALERTS = tuple(HERE.parent / "prometheus" / name for name in ("rules.yml", "rules_test.yml"))
SCHEMA_VERSION = 39
"""Of Grafana 10.4; later ones bring it up to theirs as they read it."""
COLUMNS = 24
HEIGHTS = {"stat": 4, "heatmap": 9}
USUAL_HEIGHT = 8
USUAL_WIDTH = 8
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
TAG = "edge-gateway"

# What a dashboard can be narrowed to: the title, and the query that gives the values.
VARIABLES = {
    "instance": ("Gateway", "label_values(edge_gateway_build_info, instance)"),
    "model": ("Model", 'label_values(edge_gateway_model_ready{instance=~"$instance"}, model)'),
    "device": (
        "Camera",
        'label_values(edge_gateway_camera_last_snapshot_timestamp_seconds{instance=~"$instance"}, device_id)',
    ),
    "triton": ("Triton", "label_values(nv_inference_request_success, instance)"),
    "triton_model": ("Triton model", 'label_values(nv_inference_request_success{instance=~"$triton"}, model)'),
}
YES_NO = [
    {"type": "value", "options": {"0": {"text": "no", "index": 0}, "1": {"text": "yes", "index": 1}}},
]
LEGEND = {"displayMode": "list", "placement": "bottom", "showLegend": True}
REDUCED = {"calcs": ["lastNotNull"], "fields": "", "values": False}
OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {"legend": LEGEND, "tooltip": {"mode": "multi", "sort": "desc"}},
    "stat": {"colorMode": "background", "graphMode": "area", "justifyMode": "auto", "textMode": "auto",
             "orientation": "auto", "reduceOptions": REDUCED},
    "bargauge": {"displayMode": "basic", "orientation": "horizontal", "showUnfilled": True, "valueMode": "color",
                 "reduceOptions": REDUCED},
    "state-timeline": {"legend": LEGEND, "mergeValues": True, "rowHeight": 0.8, "showValue": "never",
                       "tooltip": {"mode": "single", "sort": "none"}},
    "heatmap": {"calculate": False, "cellGap": 0, "color": {"mode": "scheme", "scheme": "Spectral", "steps": 64,
                "reverse": True, "exponent": 0.5, "fill": "dark-orange", "scale": "exponential"},
                "legend": {"show": True}, "rowsFrame": {"layout": "auto"}, "filterValues": {"le": 1e-9},
                "exemplars": {"color": "rgba(255,0,255,0.7)"},
                "tooltip": {"mode": "single", "show": True, "yHistogram": False},
                "yAxis": {"axisPlacement": "left", "reverse": False, "unit": "s"}},
    "table": {"cellHeight": "sm", "showHeader": True, "footer": {"show": False, "reducer": ["sum"], "fields": ""}},
}  # fmt: skip


def dashboard(source: dict[str, Any], addresses: dict[str, str]) -> dict[str, Any]:
    """The JSON model of one dashboard."""
    return {
        "uid": source["uid"],
        "title": source["title"],
        "description": source["description"],
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": [firing_alerts()]},
        "links": links(),
        "templating": {"list": [*variables(source["variables"]), *places(addresses)]},
        "panels": list(panels(source["rows"])),
    }


def firing_alerts() -> dict[str, Any]:
    """Marks in every panel where an alert has begun to fire."""
    return {
        "name": "Alerts",
        "datasource": DATASOURCE,
        "enable": True,
        "expr": 'ALERTS{alertstate="firing", severity="critical"}',
        "iconColor": "red",
        "titleFormat": "{{alertname}}",
        "textFormat": "{{instance}}",
    }


def links() -> list[dict[str, Any]]:
    """The other dashboards, the console of the gateway and the runbook."""
    others = {
        "type": "dashboards", "title": "Dashboards", "tags": [TAG], "asDropdown": False,
        "includeVars": True, "keepTime": True, "targetBlank": False,
    }  # fmt: skip
    named = (("Console", "${console}"), ("Runbook", "${runbook}"))
    return [
        others,
        *({"type": "link", "title": title, "url": url, "icon": "external link", "targetBlank": True}
          for title, url in named),
    ]  # fmt: skip


def variables(names: list[str]) -> Iterator[dict[str, Any]]:
    """What one chooses above the panels."""
    yield {
        "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0,
        "current": {}, "options": [], "refresh": 1, "regex": "", "multi": False, "includeAll": False,
    }  # fmt: skip
    for name in names:
        label, query = VARIABLES[name]
        yield {
            "name": name, "label": label, "type": "query", "datasource": DATASOURCE, "hide": 0,
            "query": {"query": query, "refId": name}, "definition": query, "refresh": 2, "sort": 1, "regex": "",
            "multi": True, "includeAll": True, "allValue": ".*",
            "current": {"text": ["All"], "value": ["$__all"]}, "options": [],
        }  # fmt: skip


def places(addresses: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Where the links lead; changed for all by generating the dashboards with other addresses."""
    for name, address in addresses.items():
        chosen = {"text": address, "value": address}
        yield {
            "name": name, "label": name.capitalize(), "type": "textbox", "hide": 2, "query": address,
            "current": chosen, "options": [{**chosen, "selected": True}],
        }  # fmt: skip


def panels(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Row after row, each panel beside the one before it as long as there is room."""
    numbers = itertools.count(1)
    top = 0
    for row in rows:
        place = {"h": 1, "w": COLUMNS, "x": 0, "y": top}
        yield {"id": next(numbers), "type": "row", "title": row["title"], "collapsed": False, "gridPos": place,
               "panels": []}  # fmt: skip
        top, left, highest = top + 1, 0, 0
        for source in row["panels"]:
            width = source.get("width", USUAL_WIDTH)
            height = HEIGHTS.get(source["type"], USUAL_HEIGHT)
            if left + width > COLUMNS:
                top, left, highest = top + highest, 0, 0
            yield panel(source, next(numbers), {"h": height, "w": width, "x": left, "y": top})
            left, highest = left + width, max(highest, height)
        top += highest


def panel(source: dict[str, Any], number: int, place: dict[str, int]) -> dict[str, Any]:
    """One panel with its queries."""
    kind = source["type"]
    built: dict[str, Any] = {
        "id": number,
        "type": kind,
        "title": source["title"],
        "description": source["description"],
        "gridPos": place,
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": defaults(source), "overrides": []},
        "options": OPTIONS[kind],
        "targets": [target(query, kind, index) for index, query in enumerate(source["queries"])],
    }
    if kind == "table":
        hidden = {"excludeByName": {"Time": True}, "indexByName": {}, "renameByName": {}}
        built["transformations"] = [{"id": "organize", "options": hidden}]
    return built


def defaults(source: dict[str, Any]) -> dict[str, Any]:
    """How values are shown: unit, thresholds, lines or areas."""
    steps = [{"color": color, "value": value} for color, value in source.get("thresholds", {"green": None}).items()]
    kind, plain = source["type"], "thresholds" not in source
    found: dict[str, Any] = {
        "unit": source.get("unit", "none"),
        "color": {"mode": "palette-classic" if kind == "timeseries" or plain else "thresholds"},
        "thresholds": {"mode": "absolute", "steps": steps},
        "mappings": YES_NO if source.get("mapping") == "yes_no" else [],
    }
    if kind == "timeseries":
        stacked = source.get("stack", False)
        found["min"] = 0
        found["custom"] = {
            "drawStyle": "line", "lineWidth": 1, "fillOpacity": 30 if stacked else 8, "showPoints": "never",
            "spanNulls": False, "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "off" if plain else "line"},
        }  # fmt: skip
    return found


def target(query: dict[str, Any], kind: str, index: int) -> dict[str, Any]:
    """One query of a panel."""
    at_once = kind == "table" or query.get("instant", False)
    return {
        "refId": chr(ord("A") + index),
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": query["expr"],
        "legendFormat": query["legend"],
        "format": {"table": "table", "heatmap": "heatmap"}.get(kind, "time_series"),
        "instant": at_once,
        "range": not at_once,
    }


def with_runbook(rules: str, address: str) -> str:
    """Rules, or their test, with the address of the runbook in each `runbook_url`; what follows the # stays."""
    return re.sub(r"(?m)(?<=runbook_url: ).*(?=#\w+$)", lambda _: address, rules)


def main() -> int:
    """Write what is not current, or with --check only name it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; the exit code is how many are stale")
    parser.add_argument("--console", default="http://localhost:8080/", help="where the link to the console leads")
    parser.add_argument("--runbook", default="docs/runbook.md", help="where it is, for the dashboards and the alerts")
    given = parser.parse_args()
    files = {path: with_runbook(path.read_text("utf-8"), given.runbook) for path in ALERTS}
    for source in sorted((HERE / "source").glob("*.yaml")):
        model = dashboard(
            yaml.safe_load(source.read_text("utf-8")), {"console": given.console, "runbook": given.runbook}
        )
        path = HERE / "dashboards" / f"{source.stem}.json"
        files[path] = json.dumps(model, indent=2, ensure_ascii=False) + "\n"
    stale = 0
    for path, text in files.items():
        if path.exists() and path.read_text("utf-8") == text:
            continue
        stale += 1
        print(f"{path.name} {'is not current: run make dashboards' if given.check else 'written'}")
        if not given.check:
            path.write_text(text, "utf-8")
    return stale if given.check else 0


if __name__ == "__main__":
    sys.exit(main())
