"""What a dashboard is put together from: queries, panels, variables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

__all__ = [
    "BLUE", "DATASOURCE", "GREEN", "ORANGE", "RED", "SCHEMA_VERSION", "WIDTH", "YELLOW", "Panel", "bars", "choice",
    "heat", "lines", "now", "number", "panel", "quantile", "quantiles", "rate", "row", "within",
]  # fmt: skip

SCHEMA_VERSION: Final = 39
DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
WIDTH: Final = 24
GREEN, YELLOW, ORANGE, RED, BLUE, PURPLE, GREY = "green", "yellow", "orange", "red", "blue", "purple", "#8e8e8e"
COLOURS: Final = {
    "outcome": {
        "completed": GREEN, "stored": GREEN, "compensated": ORANGE, "conflict": ORANGE, "retried": YELLOW,
        "failed": RED, "aborted": RED, "refused": RED, "unanswered": PURPLE, "rejected": PURPLE, "cancelled": GREY,
    },
    "health": {"healthy": GREEN, "suspect": YELLOW, "lost": RED, "draining": BLUE, "stopped": GREY},
    "status": {
        "running": BLUE, "assigned": BLUE, "waiting": YELLOW, "backoff": ORANGE, "compensating": ORANGE,
        "escalated": PURPLE, "stuck": RED,
    },
    "cause": {"failure": ORANGE, "loss": RED, "handed_back": YELLOW, "person": BLUE},
    "kind": {"task": ORANGE, "question": BLUE, "stuck": RED},
    "": {"p50": GREEN, "p90": YELLOW, "p99": RED, "started": BLUE, "ended": GREEN, "compensating": PURPLE},
}  # fmt: skip
"""The same value has the same colour everywhere; by label, and of series with a name of their own."""

Query = tuple[str, str]
"""PromQL, and the name of its series."""
Panel = dict[str, Any]


def rate(metric: str, matchers: str = "", by: str = "") -> str:
    """A sum of what happens in a second."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{within(matchers)}[$__rate_interval]))"


def now(metric: str, matchers: str = "", by: str = "", how: str = "sum") -> str:
    """A sum of what is."""
    return f"{how}{f' by ({by})' if by else ''} ({metric}{within(matchers)})"


def within(matchers: str = "") -> str:
    return "{" + ", ".join(['space="$space"', *([matchers] if matchers else [])]) + "}"


def quantile(q: float, metric: str, matchers: str = "", by: str = "") -> str:
    return f"histogram_quantile({q}, {rate(f'{metric}_bucket', matchers, ', '.join(filter(None, [by, 'le'])))})"


def quantiles(metric: str, matchers: str = "") -> list[Query]:
    return [(quantile(q, metric, matchers), name) for q, name in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))]


def panel(kind: str, title: str, about: str, queries: Sequence[Query], unit: str, width: int, height: int) -> Panel:
    return {
        "type": kind,
        "title": title,
        "description": about,
        "datasource": DATASOURCE,
        "gridPos": {"w": width, "h": height},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {},
        "targets": [
            {
                "refId": chr(ord("A") + n),
                "datasource": DATASOURCE,
                "expr": expression,
                "legendFormat": name,
                "editorMode": "code",
                "range": True,
            }
            for n, (expression, name) in enumerate(queries)
        ],
    }


def steps(*limits: tuple[float, str], first: str = GREEN) -> dict[str, Any]:
    found = [{"color": first, "value": None}, *({"color": colour, "value": value} for value, colour in limits)]
    return {"mode": "absolute", "steps": found}


def number(
    title: str,
    about: str,
    query: str,
    unit: str = "short",
    *,
    limits: Sequence[tuple[float, str]] = (),
    first: str = GREEN,
    width: int = 3,
    texts: dict[str, tuple[str, str]] | None = None,
    decimals: int | None = None,
) -> Panel:
    """One number, with what it was lately behind it. `texts`: words and colour for values; "" where there is none now.

    What nobody tells any more must not be shown as it was last: from then on it is "?", or what `texts` has for "".
    """
    made = panel("stat", title, about, [(f"({query}) or vector(NaN)", "")], unit, width, 4)
    defaults = made["fieldConfig"]["defaults"]
    defaults |= {"thresholds": steps(*limits, first=first), "color": {"mode": "thresholds"}}
    if decimals is not None:
        defaults["decimals"] = decimals
    words = {"": ("?", GREY)} | (texts or {})
    defaults["mappings"] = [
        {"type": "special", "options": {"match": "null+nan", "result": _mapped(0, *words.pop(""))}},
        *([{"type": "value", "options": options}] if (options := _mapped_values(words)) else []),
    ]
    made["options"] = {
        "colorMode": "background_solid" if texts else "value",
        "graphMode": "none" if texts else "area",
        "justifyMode": "auto",
        "textMode": "auto",
        "reduceOptions": {"calcs": ["last"], "fields": "", "values": False},
    }
    return made


def _mapped(index: int, text: str, colour: str) -> dict[str, Any]:
    return {"text": text, "color": colour, "index": index}


def _mapped_values(words: dict[str, tuple[str, str]]) -> dict[str, Any]:
    return {value: _mapped(n, *word) for n, (value, word) in enumerate(words.items(), 1)}


def lines(
    title: str,
    about: str,
    queries: Sequence[Query],
    unit: str = "short",
    *,
    width: int = 12,
    height: int = 8,
    stacked: bool = False,
    bars: bool = False,
    limits: Sequence[tuple[float, str]] = (),
    log_scale: bool = False,
) -> Panel:
    """Over time, with a table of last and highest beside the names."""
    made = panel("timeseries", title, about, queries, unit, width, height)
    custom: dict[str, Any] = {
        "drawStyle": "bars" if bars else "line",
        "lineWidth": 0 if bars else 1,
        "fillOpacity": 80 if bars else 60 if stacked else 12,
        "gradientMode": "none" if stacked or bars else "opacity",
        "lineInterpolation": "smooth" if not stacked else "linear",
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if limits else "off"},
        "axisSoftMin": 0,
    }
    if log_scale:
        custom["scaleDistribution"] = {"type": "log", "log": 10}
        made["fieldConfig"]["defaults"].pop("min")
    made["fieldConfig"]["defaults"] |= {
        "custom": custom,
        "color": {"mode": "palette-classic"},
        "thresholds": steps(*limits),
    }
    made["fieldConfig"]["overrides"] = [
        {
            "matcher": {"id": "byName", "options": name},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
        }
        for name, colour in _colours([name for _, name in queries]).items()
    ]
    made["options"] = {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"], "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return made


def _colours(legends: Sequence[str]) -> dict[str, str]:
    found = {name: COLOURS[""][name] for name in legends if name in COLOURS[""]}
    for label in (name[2:-2] for name in legends if name.startswith("{{")):
        found |= COLOURS.get(label, {})
    return found


def heat(title: str, about: str, metric: str, matchers: str = "", *, width: int = 12, height: int = 8) -> Panel:
    """How often something took how long, over time."""
    made = panel("heatmap", title, about, [(rate(f"{metric}_bucket", matchers, "le"), "{{le}}")], "s", width, height)
    made["targets"][0]["format"] = "heatmap"
    made["fieldConfig"]["defaults"] = {"custom": {"scaleDistribution": {"type": "linear"}}}
    made["options"] = {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Turbo", "scale": "exponential", "exponent": 0.5, "steps": 64},
        "filterValues": {"le": 1e-9},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"show": True, "yHistogram": True},
        "yAxis": {"axisPlacement": "left", "unit": "s"},
    }
    return made


def bars(
    title: str, about: str, queries: Sequence[Query], unit: str, *, most: float, width: int = 8, height: int = 8
) -> Panel:
    """One bar for each series, green to red up to `most`."""
    made = panel("bargauge", title, about, queries, unit, width, height)
    made["fieldConfig"]["defaults"] |= {
        "max": most,
        "thresholds": steps((most * 0.8, YELLOW), (most * 0.95, RED)),
        "color": {"mode": "thresholds"},
    }
    made["options"] = {
        "displayMode": "lcd",
        "orientation": "horizontal",
        "showUnfilled": True,
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    return made


def row(title: str) -> Panel:
    return {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"w": WIDTH, "h": 1}}


def choice(name: str, label: str, query: str, *, many: bool) -> dict[str, Any]:
    """A variable that takes the values of a label."""
    found: dict[str, Any] = {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2,
        "sort": 1,
        "multi": many,
        "includeAll": many,
        "current": {},
        "options": [],
        "hide": 0,
        "regex": "",
    }
    return found | (
        {"allValue": ".*", "current": {"selected": True, "text": ["All"], "value": ["$__all"]}} if many else {}
    )
