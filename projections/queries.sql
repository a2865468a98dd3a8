-- What people read. Every filter may be NULL, which means: any. Names are looked up in the schema of the space.
-- Columns that came with a later version of a projection are read by `to_jsonb`: an older one may still be shown.

-- name: runs
SELECT
    r.run_id, r.saga, r.version, r.status, r.standalone,
    CASE WHEN r.standalone THEN t.input ELSE r.input END AS input,
    CASE WHEN r.standalone THEN t.output ELSE r.result END AS result,
    CASE WHEN r.standalone THEN t.error ELSE r.error END AS error,
    CASE WHEN r.standalone THEN t.reason ELSE r.reason END AS reason,
    CASE WHEN r.standalone THEN t.agent END AS agent,
    CASE WHEN r.standalone THEN t.handler END AS handler,
    r.trigger, r.retry_of, to_jsonb(r) ->> 'fork_of' AS fork_of,
    (to_jsonb(r) ->> 'fork_at')::bigint AS fork_at, r.tasks, r.tasks_completed, r.tasks_failed, r.undo, r.stuck, r.stuck_from,
    r.opened_at, r.opened_by, r.started_at, r.compensating_at, r.stuck_at, r.resumed_at, r.ended_at,
    r.cancel_requested_at, r.cancel_requested_by, r.retry_requested_at, r.retry_requested_by,
    r.correlation_id, r.first_sequence, r.last_sequence
FROM (
    SELECT * FROM runs
    WHERE (%(run_id)s::text IS NULL OR run_id = %(run_id)s)
      AND (%(status)s::text IS NULL OR status = %(status)s)
      AND (%(saga)s::text IS NULL OR saga = %(saga)s)
      AND (%(since)s::timestamptz IS NULL OR opened_at >= %(since)s)
      AND (NOT %(open_only)s OR ended_at IS NULL)
    ORDER BY opened_at DESC, first_sequence DESC
    LIMIT %(limit)s OFFSET %(offset)s
) AS r
LEFT JOIN tasks AS t ON r.standalone AND t.run_id = r.run_id AND t.n = 0
ORDER BY r.opened_at DESC, r.first_sequence DESC

-- name: tasks
SELECT
    run_id, n, agent, handler, status, attempt, instance, priority, affinity, labels, timeout_s, retry, compensation,
    compensates, to_jsonb(t) ->> 'copied_from' AS copied_from,
    coalesce((to_jsonb(t) ->> 'changed')::boolean, false) AS changed, input, output, error, reason, placement, duration_s, requested_at, requested_by, assigned_at, deadline, failed_at, due,
    escalated_at, resolution, resolved_at, resolved_by, note, cancel_requested_at, cancel_requested_by, ended_at, ended_by,
    outcome_unknown, reverted, reverted_at, correlation_id, first_sequence, last_sequence
FROM tasks AS t
WHERE (%(run_id)s::text IS NULL OR run_id = %(run_id)s)
  AND (%(n)s::integer IS NULL OR n = %(n)s)
  AND (%(status)s::text IS NULL OR status = %(status)s)
  AND (%(agent)s::text IS NULL OR agent = %(agent)s)
  AND (%(instance)s::text IS NULL OR instance = %(instance)s)
  AND (%(since)s::timestamptz IS NULL OR requested_at >= %(since)s)
  AND (NOT %(open_only)s OR ended_at IS NULL)
ORDER BY requested_at DESC, first_sequence DESC
LIMIT %(limit)s OFFSET %(offset)s

-- name: agents
SELECT
    a.agent, a.instance, a.version, a.description, a.labels, a.slots, a.handlers, a.heartbeat_s, a.recycle_after,
    a.host, a.pid, a.health, a.wants_drain, a.reason, a.registered_at, a.changed_at, a.handled, busy.count AS busy,
    a.first_sequence, a.last_sequence
FROM agents AS a
CROSS JOIN LATERAL (
    SELECT count(*) FROM tasks AS t
    WHERE t.status = 'assigned' AND t.agent = a.agent AND t.instance = a.instance AND t.ended_at IS NULL
) AS busy
WHERE (%(agent)s::text IS NULL OR a.agent = %(agent)s)
  AND (%(instance)s::text IS NULL OR a.instance = %(instance)s)
  AND (%(health)s::text IS NULL OR a.health = %(health)s)
  AND (%(stopped)s OR a.health <> 'stopped')
ORDER BY a.agent, a.instance
LIMIT %(limit)s OFFSET %(offset)s

-- name: health
SELECT recorded_at, sequence, agent, instance, health, previous, reason, source
FROM agent_health
WHERE (%(agent)s::text IS NULL OR agent = %(agent)s)
  AND (%(instance)s::text IS NULL OR instance = %(instance)s)
  AND (%(since)s::timestamptz IS NULL OR recorded_at >= %(since)s)
  AND (%(until)s::timestamptz IS NULL OR recorded_at < %(until)s)
ORDER BY sequence DESC
LIMIT %(limit)s OFFSET %(offset)s

-- name: audit
SELECT
    sequence, recorded_at, time, event_id, event_type, subject, kind, fact, run_id, n, agent, instance, topic, source,
    correlation_id, causation_id, traceparent, data, raw, reason
FROM audit
WHERE (%(correlation_id)s::text IS NULL OR correlation_id = %(correlation_id)s)
  AND (%(causation_id)s::text IS NULL OR causation_id = %(causation_id)s)
  AND (%(event_id)s::text IS NULL OR event_id = %(event_id)s)
  AND (%(run_id)s::text IS NULL OR run_id = %(run_id)s)
  AND (%(n)s::bigint IS NULL OR n = %(n)s)
  AND (%(agent)s::text IS NULL OR agent = %(agent)s)
  AND (%(instance)s::text IS NULL OR instance = %(instance)s)
  AND (%(event_type)s::text IS NULL OR event_type = %(event_type)s)
  AND (%(kind)s::text IS NULL OR kind = %(kind)s)
  AND (%(topic)s::text IS NULL OR topic = %(topic)s)
  AND (%(subject)s::text IS NULL OR subject ~ %(subject)s)
  AND (%(source)s::text IS NULL OR source = %(source)s)
  AND (%(who)s::text IS NULL OR source = %(who)s OR agent = %(who)s OR instance = %(who)s OR data ->> 'by' = %(who)s)
  AND (%(what)s::text IS NULL OR event_type ~ %(what)s)
  AND (%(since)s::timestamptz IS NULL OR recorded_at >= %(since)s)
  AND (%(until)s::timestamptz IS NULL OR recorded_at < %(until)s)
  AND (%(after)s::bigint IS NULL OR sequence > %(after)s)
  AND (%(contains)s::jsonb IS NULL OR data @> %(contains)s)
  AND (%(text)s::text IS NULL OR data::text ILIKE %(text)s OR reason ILIKE %(text)s)
  AND (NOT %(unreadable_only)s OR event_id IS NULL)
ORDER BY sequence DESC
LIMIT %(limit)s OFFSET %(offset)s

-- name: projections
SELECT
    c.projection, c.generation, c.version, c.state, c.shown, c.tables_in, c.sequence, c.event_id, c.kept_from, c.made_at,
    c.updated_at, c.hidden_at, is_claimed(c.projection, c.generation) AS written,
    greatest(%(last_sequence)s::bigint - c.sequence, 0) AS lag,
    (
        SELECT count(*) FROM parked_events AS p
        WHERE p.projection = c.projection AND p.generation = c.generation AND p.skipped_at IS NULL
    ) AS parked,
    r.keep_months, c.timeseries, c.timeseries_why
FROM checkpoints AS c
LEFT JOIN retention AS r USING (projection)
WHERE (%(projection)s::text IS NULL OR c.projection = %(projection)s)
ORDER BY c.projection, c.generation

-- name: parked
SELECT
    p.projection, p.generation, p.version, p.sequence, p.recorded_at, p.event_id, p.subject, p.reason, p.parked_at,
    p.skipped_at, p.skipped_by
FROM parked_events AS p
JOIN checkpoints AS c USING (projection, generation)
WHERE (%(projection)s::text IS NULL OR p.projection = %(projection)s) AND (%(everywhere)s OR c.shown)
  AND (%(skipped)s OR p.skipped_at IS NULL)
ORDER BY p.projection, p.generation, p.sequence
LIMIT %(limit)s OFFSET %(offset)s

-- name: tables_of
-- The tables of one generation with their rows as last estimated, and bytes with indexes, partitions added up.
SELECT
    t.relname AS name, t.relkind = 'p' AS partitioned,
    coalesce(sum(greatest(part.reltuples, 0)) FILTER (WHERE part.relkind = 'r'), 0)::bigint AS rows,
    sum(pg_total_relation_size(part.oid))::bigint AS bytes,
    count(*) FILTER (WHERE part.oid <> t.oid) AS partitions, 0 AS compressed
FROM pg_class AS t
CROSS JOIN LATERAL (
    SELECT t.oid, t.reltuples, t.relkind
    UNION ALL
    SELECT c.oid, c.reltuples, c.relkind FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
    WHERE i.inhparent = t.oid
) AS part
WHERE t.relnamespace = to_regnamespace(quote_ident(%(tables_in)s)) AND t.relkind IN ('r', 'p') AND NOT t.relispartition
GROUP BY t.oid, t.relname, t.relkind
ORDER BY t.relname

-- name: no_sorting
SET LOCAL enable_sort = off
