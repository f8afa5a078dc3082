#!/usr/bin/env python3
"""Writes Grafana's dashboards to docker/grafana/dashboards/. With --check: says whether the files there are these."""

import json
import pathlib
import sys

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "docker/grafana/dashboards"
PROMETHEUS = {"type": "prometheus", "uid": "gauntlet-prometheus"}
POSTGRES = {"type": "grafana-postgresql-datasource", "uid": "gauntlet-postgres"}
STATE_COLOURS = {"mode": "palette-classic"}
LEGEND = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
# Accuracy from red over yellow to green.
ACCURACY = {"mode": "continuous-RdYlGr"}


def target(source, ref, query, legend="", series=False):
    if source is PROMETHEUS:
        return {"refId": ref, "datasource": source, "expr": query, "legendFormat": legend or "__auto", "range": True}
    form = "time_series" if series else "table"
    return {"refId": ref, "datasource": source, "format": form, "rawQuery": True, "editorMode": "code", "rawSql": query}


def panel(kind, title, queries, unit="short", width=8, height=8, source=PROMETHEUS, about="", series=False, **more):
    """A panel; queries are pairs of a query and a legend, or a single query."""
    queries = [queries] if isinstance(queries, str) else queries
    pairs = [q if isinstance(q, tuple) else (q, "") for q in queries]
    targets = [target(source, "ABCDEFGH"[i], q, legend, series) for i, (q, legend) in enumerate(pairs)]
    if kind == "table" and source is PROMETHEUS:
        targets = [t | {"range": False, "instant": True, "format": "table"} for t in targets]
    defaults = {"unit": unit, "color": STATE_COLOURS, "custom": {}} | more.pop("defaults", {})
    config = {"defaults": defaults, "overrides": more.pop("overrides", [])}
    made = {"type": kind, "title": title, "description": about, "datasource": source, "targets": targets, "fieldConfig": config}
    made["options"] = more.pop("options", {})
    return {"size": (width, height)} | made | more


def lines(title, queries, unit="short", **more):
    bottom = {"min": 0, "custom": {"drawStyle": "line", "fillOpacity": 10, "showPoints": "never", "lineWidth": 1}}
    options = {"legend": LEGEND, "tooltip": {"mode": "multi", "sort": "desc"}}
    return panel("timeseries", title, queries, unit, defaults=bottom, options=options, **more)


def figure(title, query, unit="short", steps=(), width=4, **more):
    """One number, green until a threshold: `steps` are (value, colour)."""
    colours = [{"color": "green", "value": None}] + [{"color": colour, "value": value} for value, colour in steps]
    look = {"color": {"mode": "thresholds"}, "thresholds": {"mode": "absolute", "steps": colours}}
    options = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "colorMode": "value", "graphMode": "area"}
    return panel("stat", title, query, unit, width=width, height=4, defaults=look, options=options, **more)


def table(title, query, unit="short", **more):
    options = {"showHeader": True, "cellHeight": "sm"}
    return panel("table", title, query, unit, source=POSTGRES, options=options, **more)


def cells(columns, defaults):
    """Overrides that paint these columns as accuracies."""
    return [{"matcher": {"id": "byRegexp", "options": columns}, "properties": [{"id": key, "value": value} for key, value in defaults.items()]}]


PAINTED = {"unit": "percentunit", "min": 0, "max": 1, "decimals": 1, "color": ACCURACY, "custom.cellOptions": {"type": "color-background", "mode": "gradient"}}
PLAIN = {"unit": "percentunit", "decimals": 1}


def row(title):
    return {"type": "row", "title": title, "size": (24, 1), "collapsed": False, "panels": []}


def variable(name, label, query, many=False):
    return {
        "name": name, "label": label, "type": "query", "datasource": POSTGRES, "query": query, "refresh": 2, "sort": 0,
        "multi": many, "includeAll": many, "hide": 0, "options": [], "current": {"text": "All", "value": "$__all"} if many else {"text": "", "value": ""},
    }


def dashboard(uid, title, about, panels, variables=(), since="now-6h"):
    x = y = tallest = 0
    placed = []
    for number, given in enumerate(panels, 1):
        width, height = given.pop("size")
        if x + width > 24:
            x, y, tallest = 0, y + tallest, 0
        placed.append({"id": number, "gridPos": {"x": x, "y": y, "w": width, "h": height}} | given)
        x, tallest = x + width, max(tallest, height)
    return {
        "uid": uid, "title": title, "description": about, "tags": ["gauntlet"], "schemaVersion": 39, "version": 1,
        "editable": False, "graphTooltip": 1, "timezone": "browser", "refresh": "30s", "time": {"from": since, "to": "now"},
        "templating": {"list": list(variables)}, "annotations": {"list": []}, "panels": placed,
        "links": [{
            "type": "dashboards", "title": "Gauntlet", "tags": ["gauntlet"], "icon": "", "tooltip": "", "url": "",
            "asDropdown": False, "includeVars": False, "keepTime": True, "targetBlank": False,
        }],
    }


def rate(metric, by=""):
    return f"sum{f' by ({by})' if by else ''} (rate({metric}[$__rate_interval]))"


def quantiles(metric, by=""):
    extra = f", {by}" if by else ""
    return [
        (f"histogram_quantile({q}, sum by (le{extra}) (rate({metric}_bucket[$__rate_interval])))", f"p{int(q * 100)}")
        for q in (0.5, 0.95)
    ]


FAULTS = 'gauntlet_http_requests_total{status=~"5.."}'

# Several API processes read the same database: max, never sum.
OPERATIONS = dashboard("gauntlet-operations", "Gauntlet / Operations", "Is it up, is it keeping up, and what fails.", [
    row("Now"),
    figure("Workers that take work", 'sum(max by (device) (gauntlet_workers{state="accepting"}))', about="As the database sees them."),
    figure("Shards running", 'max(gauntlet_shards{state="running"})'),
    figure("Shards that could run", "max(gauntlet_queue_runnable_shards)"),
    figure("Oldest queued evaluation", "max(gauntlet_queue_oldest_seconds)", "s", [(900, "orange"), (1800, "red")]),
    figure("Database answers", "min(gauntlet_database_up)", "bool_yes_no"),
    figure("Free disk", "min(gauntlet_artifacts_free_bytes / gauntlet_artifacts_size_bytes)", "percentunit", about="Where artifacts are kept."),
    row("HTTP"),
    lines("Requests by route", [(rate("gauntlet_http_requests_total", "route"), "{{route}}")], "reqps"),
    lines("Share of 5xx answers", [
        (f"({rate(FAULTS)} or vector(0)) / {rate('gauntlet_http_requests_total')}", "5xx")], "percentunit"),
    lines("Time to answer", [(f"histogram_quantile(0.95, {rate('gauntlet_http_request_seconds_bucket', 'le, route')})", "p95 {{route}}")], "s",
          about="Long polls wait on purpose."),
    row("Queue"),
    lines("Open shards", [("max by (state) (gauntlet_shards)", "{{state}}")], about="Queued and running; as the database has them."),
    lines("Waiting evaluations, by reason", [("max by (reason) (gauntlet_queue_waiting_evaluations)", "{{reason}}")],
          about="The reasons that owners are told."),
    lines("Evaluations", [("max by (state) (gauntlet_evaluations)", "{{state}}")]),
    lines("Time to the first result", quantiles("gauntlet_evaluation_first_result_seconds"), "s", about="From submission to the first committed shard."),
    lines("Oldest queued evaluation", [("max(gauntlet_queue_oldest_seconds)", "age")], "s"),
    lines("Models", [("max by (state) (gauntlet_models)", "{{state}}")]),
    row("Workers"),
    lines("Shards leased and committed", [(rate("gauntlet_worker_leases_total"), "leased"), (rate("gauntlet_worker_shards_committed_total"), "committed")], "ops"),
    lines("Attempts that came to nothing", [
        (rate("gauntlet_worker_shard_failures_total", "kind"), "{{kind}}"), (rate("gauntlet_worker_retries_total"), "retried"),
        (rate("gauntlet_worker_leases_lost_total"), "lease lost"), (rate("gauntlet_worker_leases_reaped_total"), "lease taken back"),
        (rate("gauntlet_worker_commits_refused_total"), "commit refused")], "ops"),
    lines("Time of a shard", quantiles("gauntlet_worker_shard_seconds"), "s"),
    lines("Workers", [("max by (device, state) (gauntlet_workers)", "{{device}} {{state}}"), ("sum(gauntlet_worker_busy)", "busy")]),
    lines("Evaluator processes", [("sum(gauntlet_children)", "alive"), (rate("gauntlet_child_starts_total"), "started per second"),
                                  (rate("gauntlet_child_failures_total", "kind"), "failed: {{kind}}")]),
    lines("Model checks", [(rate("gauntlet_worker_checks_total", "kind"), "{{kind}}")], "ops"),
    row("Engine"),
    lines("Verdicts", [(rate("gauntlet_engine_verdicts_total"), "verdicts")], "ops", about="Images × conditions per second."),
    lines("Passes of single images", [(rate("gauntlet_engine_forwards_total"), "forward"), (rate("gauntlet_engine_backwards_total"), "backward")], "ops"),
    lines("How full batches are", [(f"{rate('gauntlet_engine_forwards_total')} / {rate('gauntlet_engine_rows_total')}", "occupancy"),
                                   ], "percentunit", about="Rows that the search asked for, of all rows sent through the model."),
    lines("Efficiency", [(f"{rate('gauntlet_engine_floor_seconds_total')} / {rate('gauntlet_engine_seconds_total')}", "of the floor")], "percentunit",
          about="Time that the passes of finished shards take at least, at the speed measured when the model was checked, of the time that they took."),
    lines("Waiting for corrupted images", [
        (f"{rate('gauntlet_engine_corruption_wait_seconds_total')} / {rate('gauntlet_engine_seconds_total')}", "model waits"),
        (rate("gauntlet_engine_corruption_cpu_seconds_total"), "cores corrupting")], "short",
          about="Share of the time in which models wait for the processor, and how many cores make images for them."),
    lines("Batch", [("max by (instance) (gauntlet_engine_batch_images)", "{{instance}}")], about="Images per kernel launch."),
    lines("Batches halved for memory", [(rate("gauntlet_engine_batch_halvings_total"), "halved")], "ops"),
    lines("Findings on finished evaluations", [(rate("gauntlet_worker_findings_total", "kind"), "{{kind}}")], "ops"),
    lines("Finished evaluations by grade", [(rate("gauntlet_worker_evaluations_graded_total", "kind"), "{{kind}}")], "ops"),
    row("Machine"),
    lines("Database connections", [("sum by (state) (gauntlet_database_connections)", "{{state}}"), ("sum(gauntlet_database_connections_limit)", "limit")]),
    lines("Disk of the artifacts", [("min(gauntlet_artifacts_free_bytes)", "free"), ("max(gauntlet_artifacts_size_bytes)", "size")], "bytes"),
    lines("GPU memory", [("gauntlet_gpu_memory_used_bytes", "{{instance}} {{gpu}} used"), ("gauntlet_gpu_memory_size_bytes", "{{instance}} {{gpu}} size")], "bytes"),
    lines("GPU utilisation", [("gauntlet_gpu_utilization_ratio", "{{instance}} {{gpu}}")], "percentunit"),
    panel("table", "Programs", "max by (instance, version, evaluator) (gauntlet_build_info)"),
])

THESE = "dataset = ${dataset:sqlstring} and protocol = ${protocol:sqlstring} and latest"
SHOWN = f"{THESE} and model in (${{model:sqlstring}})"
SEVERITIES = ", ".join(f'avg(accuracy) filter (where severity = {s}) as "severity {s}"' for s in range(1, 6))
SPLIT = [{"id": "partitionByValues", "options": {"fields": ["model"], "keepFields": False, "naming": {"asLabels": False}}}]


def against_epsilon(norm, title):
    query = f"""select epsilon, accuracy, model from report.accuracy
where {SHOWN} and ((kind = 'attack' and norm = '{norm}') or kind = 'clean')
order by model, epsilon nulls first"""
    query = query.replace("select epsilon", "select coalesce(epsilon, 0) as epsilon")
    look = {"min": 0, "max": 1, "custom": {"show": "points+lines", "pointSize": {"fixed": 5}, "lineWidth": 1}}
    fields = [{"matcher": {"id": "byName", "options": "epsilon"}, "properties": [{"id": "unit", "value": "none"}, {"id": "max", "value": None}]}]
    return panel("xychart", title, query, "percentunit", source=POSTGRES, defaults=look, overrides=fields, transformations=SPLIT,
                 options={"mapping": "auto", "series": [{"x": {"matcher": {"id": "byName", "options": "epsilon"}}}], "legend": LEGEND},
                 about="The newest finished evaluation of each model; ε = 0 is clean accuracy.")


ROBUSTNESS = dashboard("gauntlet-robustness", "Gauntlet / Robustness", "How robust models are. Every number comes from committed verdicts.", [
    row("Accuracy against ε: $dataset, $protocol"),
    against_epsilon("linf", "L∞"), against_epsilon("l2", "L2"), against_epsilon("l1", "L1"),
    table("Conditions", f"""select model, condition, n, accuracy, accuracy_low, accuracy_high, forwards::float8 / n as forwards_per_verdict, evaluation_id
from report.accuracy where {SHOWN} order by model, position""", width=24, overrides=cells("accuracy.*", PAINTED)),
    row("Corruptions"),
    table("Corruption × severity", f"""select model, corruption, {SEVERITIES}, avg(accuracy) as mean
from report.accuracy where {SHOWN} and kind = 'corruption' group by model, corruption order by model, corruption""",
          width=24, height=10, overrides=cells("severity.*|mean", PAINTED)),
    row("Leaderboard"),
    table("Now", f"""select model, clean, white_box, corruption, overall, finished_at, evaluation_id
from report.standings where {THESE} order by coalesce(overall, white_box) desc nulls last, clean desc nulls last""",
          width=12, overrides=cells("clean|white_box|corruption|overall", PAINTED)),
    panel("timeseries", "Over time", """select finished_at as time, model as metric, coalesce(overall, white_box, clean) as value
from report.standings where dataset = ${dataset:sqlstring} and protocol = ${protocol:sqlstring} and $__timeFilter(finished_at) order by 1""",
          "percentunit", source=POSTGRES, series=True, width=12, defaults={"min": 0, "max": 1, "custom": {"drawStyle": "points", "pointSize": 6}},
          about="Overall mean where there is one, else white-box, else clean accuracy, by the day an evaluation finished."),
    row("Model against model"),
    table("$model_a against $model_b", """select condition, accuracy_a, accuracy_b, difference from report.comparisons
where dataset = ${dataset:sqlstring} and protocol = ${protocol:sqlstring} and model_a = ${model_a:sqlstring} and model_b = ${model_b:sqlstring}
order by comparable, position""", width=24, overrides=cells("accuracy.*", PAINTED) + cells("difference", PLAIN),
          about="Same images, same parameters. Whether a difference is more than chance: GET /v1/compare tests it image by image."),
    row("Diagnostics"),
    table("Grades", """select model, dataset, protocol, grade, finished_at from report.grades
where $__timeFilter(finished_at) order by finished_at desc""", width=24,
          about="Whether the figures of an evaluation can be believed; docs/DIAGNOSTICS.md says how it is found."),
    table("Findings", """select model, source, code, weight, count(distinct evaluation_id) as evaluations, min(sentence) as sentence from report.findings
where $__timeFilter(created_at) group by model, source, code, weight order by evaluations desc, model, code""", width=24,
          about="What a reader must know about a model or a run; docs/FINDINGS.md explains the codes."),
], [
    variable("dataset", "Dataset", "select distinct dataset from report.accuracy order by 1"),
    variable("protocol", "Protocol", "select distinct protocol from report.accuracy where dataset = ${dataset:sqlstring} order by 1"),
    variable("model", "Models", "select distinct model from report.accuracy where dataset = ${dataset:sqlstring} and protocol = ${protocol:sqlstring} order by 1", True),
    variable("model_a", "Model A", "select distinct model_a from report.comparisons where dataset = ${dataset:sqlstring} and protocol = ${protocol:sqlstring} order by 1"),
    variable("model_b", "Model B", "select distinct model_b from report.comparisons where dataset = ${dataset:sqlstring} and protocol = ${protocol:sqlstring} and model_a = ${model_a:sqlstring} order by 1"),
], since="now-90d")

PRICED = "sum(seconds) / 3600 as hours, sum(seconds) / 3600 * ${price} as cost"
CAPACITY = dashboard("gauntlet-capacity", "Gauntlet / Capacity", "Who uses how much, what it costs, and how long the queue will last.", [
    row("Queue forecast"),
    figure("Work left", "select sum(worker_seconds) from report.forecast", "s", source=POSTGRES, width=6,
           about="Worker time of everything open, from the mean time of each evaluation's committed shards."),
    figure("Queue empty in", """select sum(f.worker_seconds) / nullif((select count(*) from report.workers where alive and not draining), 0)
from report.forecast f""", "s", source=POSTGRES, width=6, about="With the workers there are now; nothing without workers."),
    figure("Workers", "select count(*) from report.workers where alive and not draining", source=POSTGRES, width=6),
    figure("Shards to run", "select shards from report.runnable", source=POSTGRES, width=6),
    table("Asked of workers", """select state, needs ->> 'device' as needs_device, (needs ->> 'gpu_memory_bytes')::bigint as needs_gpu_memory,
    needs ->> 'labels' as needs_labels, device as began_on, hardware, sum(shards) as shards
from report.demand group by 1, 2, 3, 4, 5, 6 order by shards desc""", width=24, overrides=cells("needs_gpu_memory", {"unit": "bytes"}),
          about="Open shards by what they need; autoscalers of each class of workers ask report.wanted."),
    table("Open evaluations", """select owner, model, priority, state, shards_left, seconds_per_shard, worker_seconds, created_at, evaluation_id
from report.forecast order by priority desc, created_at""", width=24,
          overrides=cells("seconds_per_shard|worker_seconds", {"unit": "s"})),
    row("Use"),
    table("Hours by owner", f"""select owner, device, {PRICED}, count(*) as shards
from report.usage where $__timeFilter(finished_at) group by owner, device order by hours desc""", width=12,
          about="Device hours of committed shards; the price of an hour is set above.", overrides=cells("hours|cost", {"unit": "none", "decimals": 3})),
    table("Cost by evaluation", f"""select owner, model, protocol, hardware, {PRICED}, sum(seconds) / sum(verdicts) as seconds_per_verdict,
    sum(attempts - 1) as lost_attempts, evaluation_id
from report.usage where $__timeFilter(finished_at) group by owner, model, protocol, hardware, evaluation_id order by hours desc limit 100""", width=12,
          overrides=cells("hours|cost", {"unit": "none", "decimals": 3}) + cells("seconds_per_verdict", {"unit": "s"})),
    panel("timeseries", "Hours by owner and day", """select date_trunc('day', finished_at) as time, owner as metric, sum(seconds) / 3600 as value
from report.usage where $__timeFilter(finished_at) group by 1, 2 order by 1""", "h", source=POSTGRES, series=True, width=12,
          defaults={"min": 0, "custom": {"drawStyle": "bars", "fillOpacity": 60, "stacking": {"mode": "normal", "group": "A"}}}),
    lines("Busy workers, of all", [("sum(gauntlet_worker_busy)", "busy"), ('sum(max by (device) (gauntlet_workers{state="accepting"}))', "all")], width=12),
    row("Machines"),
    table("Workers", """select host, device, hardware, gpu_memory_bytes, labels::text as labels, libtorch, version, started_at, seen_at, draining, alive from report.workers
order by alive desc, host""", width=24),
], [{"name": "price", "label": "Price of an hour", "type": "textbox", "query": "2.50", "hide": 0, "options": [], "current": {"text": "2.50", "value": "2.50"}}],
    since="now-30d")


def main():
    wrong = []
    for made in (OPERATIONS, ROBUSTNESS, CAPACITY):
        path = FOLDER / f"{made['uid'].removeprefix('gauntlet-')}.json"
        text = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
        if "--check" not in sys.argv:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            wrong.append(path.name)
    if wrong:
        sys.exit(f"{', '.join(wrong)}: not what scripts/dashboards.py writes; run it again")


main()
