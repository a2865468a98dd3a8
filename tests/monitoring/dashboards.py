"""The dashboards of deploy/grafana, from what they show. `just docs` writes them; a test holds the files to this."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from tests.monitoring.panels import (
    BLUE,
    DATASOURCE,
    GREEN,
    ORANGE,
    RED,
    SCHEMA_VERSION,
    WIDTH,
    YELLOW,
    Panel,
    bars,
    choice,
    heat,
    lines,
    now,
    number,
    quantile,
    quantiles,
    rate,
    row,
    within,
)

__all__ = ["FOLDER", "dashboards", "text_of"]

FOLDER: Final = Path(__file__).parent.parent.parent / "deploy" / "grafana" / "dashboards"


SOURCE: Final = {
    "name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "current": {},
    "hide": 0, "includeAll": False, "multi": False, "options": [], "refresh": 1, "regex": "",
}  # fmt: skip
SPACE: Final = choice("space", "Space", "label_values(cuebook_ready, space)", many=False)
OF_COMPLETED: Final = 'saga=~"$saga", saga!="", outcome="completed"'
AGENT: Final = choice("agent", "Agent", 'label_values(cuebook_agent_instances{space="$space"}, agent)', many=True)
SAGA: Final = choice("saga", "Saga", 'label_values(cuebook_runs_open{space="$space", saga!=""}, saga)', many=True)
OF_AGENT: Final = 'agent=~"$agent"'
OF_SAGA: Final = 'saga=~"$saga", saga!=""'


COMPLETED: Final = (
    f"sum (increase(cuebook_runs_total{within(OF_COMPLETED)}[$__range]))"
    f" / sum (increase(cuebook_runs_total{within(OF_SAGA)}[$__range]))"
)


def overview() -> list[Panel]:
    return [
        number(
            "Orchestrator",
            "Whether one decides. Nothing is placed while none does; work in agents goes on.",
            now("cuebook_orchestrator_leading"),
            texts={
                "": ("NONE RUNS", RED),
                "0": ("NO LEADER", RED),
                "1": ("LEADING", GREEN),
                "2": ("TWO LEAD", ORANGE),
            },
        ),
        number(
            "Runs in flight",
            "Runs that have not ended, tasks without a saga among them.",
            now("cuebook_runs_open"),
            first=BLUE,
        ),
        number(
            "Done per second", "Runs that end in a second.", rate("cuebook_runs_total"), "ops", first=BLUE, decimals=1
        ),
        number(
            "End to end, p99",
            "From the request in the log to the end of the run: 99 in 100 take less.",
            quantile(0.99, "cuebook_run_duration_seconds"),
            "s",
            limits=[(60, YELLOW), (600, ORANGE)],
        ),
        number(
            "Tasks waiting",
            "Tasks that could be placed now, if there were a slot.",
            now("cuebook_queue_depth"),
            limits=[(100, YELLOW), (1000, RED)],
        ),
        number(
            "Agents not healthy",
            "Instances that are suspect, or were lost in the last hour.",
            now("cuebook_agent_instances", 'health=~"suspect|lost"'),
            limits=[(1, RED)],
        ),
        number(
            "Waiting for a person",
            "Escalated tasks, open questions and stuck runs.",
            now("cuebook_escalations_open"),
            limits=[(1, ORANGE), (20, RED)],
        ),
        number(
            "Tables behind",
            "How old the oldest event is that is not in every table yet.",
            now("cuebook_projection_lag_time_seconds", how="max"),
            "s",
            limits=[(5, YELLOW), (60, RED)],
        ),
        lines(
            "Throughput",
            "Runs asked for and ended in a second: where the first stays above the second, work piles up.",
            [(rate("cuebook_runs_started_total"), "started"), (rate("cuebook_runs_total"), "ended")],
            "ops",
        ),
        lines(
            "End to end",
            "From the request in the log to the end of the run.",
            quantiles("cuebook_run_duration_seconds"),
            "s",
            log_scale=True,
        ),
        lines(
            "Runs by outcome",
            "What ended in a second, and how.",
            [(rate("cuebook_runs_total", by="outcome"), "{{outcome}}")],
            "ops",
            stacked=True,
            bars=True,
            width=8,
        ),
        lines(
            "In flight",
            "Open tasks: waiting for a slot, with an agent, pausing before another attempt, before a person.",
            [(now("cuebook_tasks_open", by="status"), "{{status}}")],
            stacked=True,
            width=8,
        ),
        lines(
            "Queue depth by agent",
            "Tasks that could be placed now and have no slot.",
            [(now("cuebook_queue_depth", by="agent"), "{{agent}}")],
            width=8,
        ),
        lines(
            "Agents by health",
            "Instances as the orchestrator sees them.",
            [(now("cuebook_agent_instances", by="health"), "{{health}}")],
            stacked=True,
            width=8,
            height=7,
        ),
        bars(
            "Slots used",
            "Tasks that healthy instances have, of those that they can have at once.",
            [
                (
                    f"{now('cuebook_agent_slots_used', by='agent')} / {now('cuebook_agent_slots', by='agent')}",
                    "{{agent}}",
                )
            ],
            "percentunit",
            most=1,
            height=7,
        ),
        lines(
            "Waiting for a person",
            "What only a person can decide, by kind.",
            [(now("cuebook_escalations_open", by="kind"), "{{kind}}")],
            stacked=True,
            width=8,
            height=7,
        ),
        heat(
            "Run durations",
            "How many runs ended in a second, by how long they took.",
            "cuebook_run_duration_seconds",
            width=8,
            height=7,
        ),
        lines(
            "Retries and compensations",
            "Attempts that are repeated, and runs that begin to undo what they did, in a second.",
            [
                (rate("cuebook_task_retries_total", by="cause"), "{{cause}}"),
                (rate("cuebook_compensations_total"), "compensating"),
            ],
            "ops",
            width=8,
            height=7,
        ),
        lines(
            "Event loops, p99 delay",
            "How late the event loop of each kind of process is. Above half a second an agent blocks it.",
            [(quantile(0.99, "cuebook_event_loop_delay_seconds", by="instance"), "{{instance}}")],
            "s",
            width=8,
            height=7,
            limits=[(0.5, RED)],
        ),
    ]


def agents() -> list[Panel]:
    return [
        row("Who is there"),
        lines(
            "Instances by health",
            "As the orchestrator sees them.",
            [(now("cuebook_agent_instances", OF_AGENT, "health"), "{{health}}")],
            stacked=True,
            width=8,
        ),
        lines(
            "Healthy instances",
            "By agent.",
            [(now("cuebook_agent_instances", f'{OF_AGENT}, health="healthy"', "agent"), "{{agent}}")],
            width=8,
        ),
        lines(
            "Changes of health",
            "In a second; many at once mean a network or a machine.",
            [(rate("cuebook_agent_health_changes_total", OF_AGENT, "health"), "{{health}}")],
            "ops",
            width=8,
        ),
        row("Waiting"),
        lines(
            "Queue depth by priority",
            "Tasks that could be placed now and have no slot.",
            [(now("cuebook_queue_depth", OF_AGENT, "agent, priority"), "{{agent}} {{priority}}")],
            stacked=True,
            width=8,
        ),
        lines(
            "Oldest task waiting",
            "How long the first of them has waited.",
            [(now("cuebook_queue_oldest_age_seconds", OF_AGENT, "agent", "max"), "{{agent}}")],
            "s",
            width=8,
            limits=[(300, RED)],
        ),
        lines(
            "Time to place, p99",
            "From the moment a task may be placed until an instance has it.",
            [(quantile(0.99, "cuebook_task_placement_duration_seconds", OF_AGENT, "agent"), "{{agent}}")],
            "s",
            width=8,
            log_scale=True,
        ),
        row("Working"),
        lines(
            "Slots used",
            "Tasks that instances have, and what the healthy ones can have at once.",
            [
                (now("cuebook_agent_slots_used", OF_AGENT, "agent"), "{{agent}}"),
                (now("cuebook_agent_slots", OF_AGENT, "agent"), "{{agent}}: all"),
            ],
            width=8,
        ),
        lines(
            "Tasks ended",
            "In a second, by how.",
            [(rate("cuebook_tasks_total", OF_AGENT, "outcome"), "{{outcome}}")],
            "ops",
            stacked=True,
            bars=True,
            width=8,
        ),
        lines(
            "Handler time, p50 and p99",
            "The author's code alone, without waiting and storing.",
            [
                (quantile(0.5, "cuebook_handler_duration_seconds", OF_AGENT, "agent"), "{{agent}} p50"),
                (quantile(0.99, "cuebook_handler_duration_seconds", OF_AGENT, "agent"), "{{agent}} p99"),
            ],
            "s",
            width=8,
            log_scale=True,
        ),
        lines(
            "Handlers ended",
            "In a second, by how: also attempts that are repeated.",
            [(rate("cuebook_handler_duration_seconds_count", OF_AGENT, "outcome"), "{{outcome}}")],
            "ops",
            stacked=True,
            bars=True,
            width=8,
        ),
        lines(
            "Retries",
            "Attempts that are repeated, in a second, by why.",
            [(rate("cuebook_task_retries_total", OF_AGENT, "cause"), "{{cause}}")],
            "ops",
            width=8,
        ),
        lines(
            "Task time, p50 and p99",
            "From the request of a task to its end, with all attempts and pauses.",
            [
                (quantile(0.5, "cuebook_task_duration_seconds", OF_AGENT, "agent"), "{{agent}} p50"),
                (quantile(0.99, "cuebook_task_duration_seconds", OF_AGENT, "agent"), "{{agent}} p99"),
            ],
            "s",
            width=8,
            log_scale=True,
        ),
        row("In the processes"),
        lines(
            "In flight, by process",
            "Tasks that a process has and whose answers are not stored yet.",
            [(now("cuebook_handler_in_flight", OF_AGENT, "instance"), "{{instance}}")],
            width=8,
        ),
        lines(
            "On their way, come again, too late",
            "Assignments not there yet; those that came once more; answers nobody needed.",
            [
                (now("cuebook_handler_pending", OF_AGENT), "on their way"),
                (rate("cuebook_handler_redeliveries_total", OF_AGENT), "come again, in a second"),
                (rate("cuebook_handler_late_answers_total", OF_AGENT), "too late, in a second"),
            ],
            width=8,
        ),
        lines(
            "CPU",
            "Of one core, by process.",
            [
                (
                    "sum by (instance) (rate(process_cpu_seconds_total[$__rate_interval])"
                    f" and on (instance) cuebook_handler_slots{within(OF_AGENT)})",
                    "{{instance}}",
                )
            ],
            "percentunit",
            width=8,
            limits=[(0.9, ORANGE)],
        ),
        row("At the edge"),
        lines(
            "Links",
            "1 while the log answers an edge, 0 while it is cut off and works on alone.",
            [(now("cuebook_edge_linked", by="instance"), "{{instance}}")],
            width=8,
        ),
        lines(
            "Waiting for the link",
            "Answers of agents and events of the place that the log does not have yet.",
            [
                (now("cuebook_edge_answers_waiting", by="instance"), "{{instance}} answers"),
                (now("cuebook_edge_events_waiting", by="instance"), "{{instance}} events"),
            ],
            width=8,
        ),
        lines(
            "Events forwarded",
            "Events of the place that came to the log in a second.",
            [(rate("cuebook_edge_events_forwarded_total", by="instance"), "{{instance}}")],
            "ops",
            width=8,
        ),
    ]


def sagas() -> list[Panel]:
    return [
        number("Open", "Runs that have not ended.", now("cuebook_runs_open", OF_SAGA), first=BLUE, width=4),
        number(
            "Started per second",
            "Runs that were asked for, or began with an event.",
            rate("cuebook_runs_started_total", OF_SAGA),
            "ops",
            first=BLUE,
            width=4,
            decimals=1,
        ),
        number(
            "Completed",
            "Of those that ended in the range shown.",
            COMPLETED,
            "percentunit",
            limits=[(0.9, YELLOW), (0.99, GREEN)],
            first=RED,
            width=4,
        ),
        number(
            "Compensating",
            "Runs that undo what they had done, now.",
            now("cuebook_runs_open", f'{OF_SAGA}, status="compensating"'),
            limits=[(1, ORANGE)],
            width=4,
        ),
        number(
            "Stuck",
            "Runs that wait for a person: their code has changed, or a compensation cannot be completed.",
            now("cuebook_runs_open", f'{OF_SAGA}, status="stuck"'),
            limits=[(1, RED)],
            width=4,
        ),
        number(
            "Oldest before a person",
            "How long the oldest question, escalated task or stuck run has waited.",
            now("cuebook_escalations_oldest_age_seconds", how="max"),
            "s",
            limits=[(900, YELLOW), (3600, RED)],
            width=4,
        ),
        lines(
            "Runs by outcome",
            "What ended in a second, and how.",
            [(rate("cuebook_runs_total", OF_SAGA, "outcome"), "{{outcome}}")],
            "ops",
            stacked=True,
            bars=True,
        ),
        lines(
            "Open runs",
            "By saga and what they are at.",
            [(now("cuebook_runs_open", OF_SAGA, "saga, status"), "{{saga}} {{status}}")],
            stacked=True,
        ),
        lines(
            "Started and ended",
            "In a second, by saga.",
            [
                (rate("cuebook_runs_started_total", OF_SAGA, "saga"), "{{saga}} started"),
                (rate("cuebook_runs_total", OF_SAGA, "saga"), "{{saga}} ended"),
            ],
            "ops",
        ),
        lines(
            "End to end, p50 and p99",
            "From the request, or the event that started it, to the end.",
            [
                (quantile(0.5, "cuebook_run_duration_seconds", OF_SAGA, "saga"), "{{saga}} p50"),
                (quantile(0.99, "cuebook_run_duration_seconds", OF_SAGA, "saga"), "{{saga}} p99"),
            ],
            "s",
            log_scale=True,
        ),
        heat(
            "Durations",
            "How many runs ended in a second, by how long they took.",
            "cuebook_run_duration_seconds",
            OF_SAGA,
        ),
        lines(
            "Compensations",
            "Runs that begin to undo, and tasks that undid a step, in a second.",
            [
                (rate("cuebook_compensations_total", 'saga=~"$saga"', "saga"), "{{saga}}"),
                (rate("cuebook_compensation_tasks_total", by="outcome"), "undone: {{outcome}}"),
            ],
            "ops",
        ),
        lines(
            "Waiting for a person",
            "By kind.",
            [(now("cuebook_escalations_open", 'saga=~"$saga|"', "kind"), "{{kind}}")],
            stacked=True,
        ),
        lines(
            "Put before a person",
            "In a second, by kind.",
            [(rate("cuebook_escalations_total", 'saga=~"$saga|"', "kind"), "{{kind}}")],
            "ops",
        ),
    ]


def log_and_projections() -> list[Panel]:
    return [
        row("The log"),
        number(
            "Last sequence", "Events ever stored.", now("cuebook_log_last_sequence", how="max"), first=BLUE, width=4
        ),
        number(
            "Events per second",
            "Stored by anybody.",
            f"sum (rate(cuebook_log_last_sequence{within()}[$__rate_interval]))",
            "ops",
            first=BLUE,
            width=4,
            decimals=1,
        ),
        number("Size", "On the server's disk.", now("cuebook_log_size_bytes", how="max"), "bytes", first=BLUE, width=4),
        number(
            "Subjects",
            "Which the server keeps in memory, about 550 bytes each.",
            now("cuebook_log_subjects", how="max"),
            limits=[(5e6, YELLOW), (1e7, RED)],
            width=4,
        ),
        number(
            "Store full",
            "Of what the account or the server may have on disk; when it is full, every append is refused.",
            f"{now('cuebook_log_store_used_bytes', how='max')} / {now('cuebook_log_store_limit_bytes', how='max')}",
            "percentunit",
            limits=[(0.8, YELLOW), (0.95, RED)],
            width=4,
        ),
        number(
            "Without NATS",
            "Processes that are not connected.",
            f"count (cuebook_nats_up{within()}) - {now('cuebook_nats_up')}",
            limits=[(1, RED)],
            width=4,
        ),
        lines(
            "Appends",
            "In a second, by how they ended. Conflicts are normal in small numbers: another was faster.",
            [(rate("cuebook_appends_total", by="outcome"), "{{outcome}}")],
            "ops",
            width=8,
        ),
        lines(
            "Append time",
            "Until the log has acknowledged; with sync_interval: always that includes the disk.",
            quantiles("cuebook_append_duration_seconds"),
            "s",
            width=8,
            log_scale=True,
        ),
        lines(
            "Under way and sent again",
            "Appends without an outcome; those sent once more; connections that were lost, in a second.",
            [
                (now("cuebook_appends_in_flight"), "under way"),
                (rate("cuebook_appends_resent_total"), "sent again"),
                (rate("cuebook_nats_reconnects_total"), "reconnects"),
            ],
            width=8,
        ),
        lines(
            "Growth",
            "The log on disk.",
            [
                (now("cuebook_log_size_bytes", how="max"), "log"),
                (now("cuebook_log_store_used_bytes", how="max"), "all streams"),
            ],
            "bytes",
            width=8,
        ),
        lines(
            "Messages, subjects, consumers",
            "What the server holds.",
            [
                (now("cuebook_log_messages", how="max"), "messages"),
                (now("cuebook_log_subjects", how="max"), "subjects"),
                (now("cuebook_log_consumers", how="max"), "consumers"),
                (now("cuebook_sealer_sealed", how="max"), "sealed"),
            ],
            width=8,
            log_scale=True,
        ),
        lines(
            "Orchestrators",
            "Events that each has not folded yet; messages that had no effect, in a second; moments it waits for.",
            [
                (now("cuebook_orchestrator_lag", by="instance", how="max"), "{{instance}} lag"),
                (rate("cuebook_messages_rejected_total"), "rejected"),
                (now("cuebook_orchestrator_timers"), "timers"),
            ],
            width=8,
        ),
        row("The projections"),
        lines(
            "Behind, events",
            "Stored and not in the tables.",
            [(now("cuebook_projection_lag", by="projection", how="max"), "{{projection}}")],
            width=8,
        ),
        lines(
            "Behind, time",
            "How old the oldest of these is.",
            [(now("cuebook_projection_lag_time_seconds", by="projection", how="max"), "{{projection}}")],
            "s",
            width=8,
            limits=[(60, RED)],
        ),
        lines(
            "Applied",
            "Events in a second.",
            [
                (
                    f"sum by (projection) (rate(cuebook_projection_position{within()}[$__rate_interval]))",
                    "{{projection}}",
                )
            ],
            "ops",
            width=8,
        ),
        number(
            "Parked",
            "Events that could not be applied, and about which nobody has decided.",
            now("cuebook_projection_parked"),
            limits=[(1, RED)],
            width=6,
        ),
        number(
            "PostgreSQL",
            "Whether it answers.",
            now("cuebook_database_up", how="min"),
            texts={"0": ("AWAY", RED), "1": ("UP", GREEN)},
            width=6,
        ),
        number("Processes", "That take work or stand by, of all.", now("cuebook_ready"), first=BLUE, width=6),
        number(
            "Not ready",
            "Processes that start, or wait for something.",
            f"count (cuebook_ready{within()}) - {now('cuebook_ready')}",
            limits=[(1, ORANGE)],
            width=6,
        ),
        row("The processes"),
        lines(
            "CPU",
            "Of one core.",
            [
                (
                    "sum by (instance, job) (rate(process_cpu_seconds_total[$__rate_interval])"
                    f" and on (instance) cuebook_ready{within()})",
                    "{{job}} {{instance}}",
                )
            ],
            "percentunit",
            width=8,
        ),
        lines(
            "Memory",
            "Resident.",
            [(f"process_resident_memory_bytes and on (instance) cuebook_ready{within()}", "{{job}} {{instance}}")],
            "bytes",
            width=8,
        ),
        lines(
            "Event loops, p99 delay",
            "How late the loop of each process is.",
            [(quantile(0.99, "cuebook_event_loop_delay_seconds", by="instance"), "{{instance}}")],
            "s",
            width=8,
            limits=[(0.5, RED)],
        ),
    ]


def dashboards() -> dict[str, dict[str, Any]]:
    """All of them, by the name of their file."""
    pages = {
        "overview": ("cuebook: overview", overview(), [SOURCE, SPACE]),
        "agents": ("cuebook: agents", agents(), [SOURCE, SPACE, AGENT]),
        "sagas": ("cuebook: sagas", sagas(), [SOURCE, SPACE, SAGA]),
        "log-and-projections": ("cuebook: log and projections", log_and_projections(), [SOURCE, SPACE]),
    }
    return {f"{name}.json": _dashboard(name, *page) for name, page in pages.items()}


def _dashboard(name: str, title: str, panels: list[Panel], variables: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "uid": f"cuebook-{name}",
        "title": title,
        "description": "Made by 'just docs'; change tests/monitoring/dashboards.py, not this file.",
        "tags": ["cuebook"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timepicker": {},
        "fiscalYearStartMonth": 0,
        "annotations": {"list": [_alerts()]},
        "links": [
            {
                "type": "dashboards",
                "tags": ["cuebook"],
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
                "title": "",
                "icon": "external link",
                "targetBlank": False,
                "tooltip": "",
                "url": "",
            }
        ],
        "templating": {"list": variables},
        "panels": _placed(panels),
    }


def _alerts() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": RED,
        "expr": 'ALERTS{alertname=~"Cuebook.*", alertstate="firing", space=~"$space|"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{agent}} {{saga}} {{projection}} {{instance}}",
    }


def _placed(panels: list[Panel]) -> list[Panel]:
    """From left to right and then down, each with an id."""
    x = y = tallest = 0
    for n, one in enumerate(panels, 1):
        width, height = one["gridPos"]["w"], one["gridPos"]["h"]
        if x + width > WIDTH:
            x, y, tallest = 0, y + tallest, 0
        one["gridPos"] |= {"x": x, "y": y}
        one["id"] = n
        x, tallest = x + width, max(tallest, height)
    return panels


def text_of(dashboard: dict[str, Any]) -> str:
    """As it stands in its file."""
    return json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for file, dashboard in dashboards().items():
        (FOLDER / file).write_text(text_of(dashboard), encoding="utf-8")
