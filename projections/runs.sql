-- name: tables
CREATE TABLE runs (
    run_id              text        PRIMARY KEY,
    saga                text,
    version             text,
    status              text        NOT NULL,
    standalone          boolean     NOT NULL,
    input               jsonb,
    result              jsonb,
    error               jsonb,
    reason              text,
    trigger             bigint,
    retry_of            text,
    fork_of             text,
    fork_at             bigint,
    tasks               integer     NOT NULL,
    tasks_completed     integer     NOT NULL,
    tasks_failed        integer     NOT NULL,
    undo                jsonb,
    stuck               jsonb,
    stuck_from          text,
    opened_at           timestamptz NOT NULL,
    opened_by           text        NOT NULL,
    started_at          timestamptz,
    compensating_at     timestamptz,
    stuck_at            timestamptz,
    resumed_at          timestamptz,
    cancel_requested_at timestamptz,
    cancel_requested_by text,
    retry_requested_at  timestamptz,
    retry_requested_by  text,
    ended_at            timestamptz,
    correlation_id      text        NOT NULL,
    first_sequence      bigint      NOT NULL,
    last_sequence       bigint      NOT NULL
);
CREATE INDEX runs_opened_at ON runs (opened_at);
CREATE INDEX runs_saga ON runs (saga, opened_at) WHERE saga IS NOT NULL;
CREATE INDEX runs_status ON runs (status, opened_at);
CREATE INDEX runs_open ON runs (opened_at) WHERE ended_at IS NULL;

COMMENT ON TABLE runs IS
    'One row for each run. A standalone task is a run too: its status is that of task 0, where its input and output stand.';
COMMENT ON COLUMN runs.saga IS 'NULL for a standalone task.';
COMMENT ON COLUMN runs.version IS 'Version of the saga that started it.';
COMMENT ON COLUMN runs.status IS
    'requested, running, compensating or stuck; at the end completed, failed, compensated, cancelled or rejected.';
COMMENT ON COLUMN runs.standalone IS 'Nothing was said about the run itself: it is its task 0.';
COMMENT ON COLUMN runs.reason IS 'Why it is compensating, stuck, cancelled or rejected.';
COMMENT ON COLUMN runs.trigger IS 'Sequence of the message that asked for it.';
COMMENT ON COLUMN runs.retry_of IS 'The run that this one repeats.';
COMMENT ON COLUMN runs.fork_of IS 'The run whose history this one shares up to fork_at, a sequence of the stream.';
COMMENT ON COLUMN runs.tasks IS 'Tasks requested, compensations included.';
COMMENT ON COLUMN runs.tasks_failed IS 'Tasks that ended without a result: aborted, cancelled or rejected.';
COMMENT ON COLUMN runs.undo IS 'Numbers of the tasks to be undone, in this order.';
COMMENT ON COLUMN runs.stuck IS 'When last stuck: the step, what the log says about it and what the saga asked for.';
COMMENT ON COLUMN runs.stuck_from IS 'The status before it was last stuck.';
COMMENT ON COLUMN runs.opened_at IS 'When its first event was recorded.';
COMMENT ON COLUMN runs.opened_by IS 'Who wrote that event.';
COMMENT ON COLUMN runs.first_sequence IS 'Its first event in the stream.';
COMMENT ON COLUMN runs.last_sequence IS 'The last event that counted for the run or one of its tasks.';

CREATE TABLE tasks (
    run_id              text        NOT NULL,
    n                   integer     NOT NULL,
    agent               text,
    handler             text        NOT NULL,
    status              text        NOT NULL,
    attempt             bigint      NOT NULL,
    instance            text,
    priority            bigint      NOT NULL,
    affinity            text,
    labels              jsonb,
    timeout_s           double precision,
    retry               jsonb,
    compensation        boolean     NOT NULL,
    compensates         bigint,
    copied_from         text,
    changed             boolean     NOT NULL,
    input               jsonb,
    output              jsonb,
    error               jsonb,
    reason              text,
    placement           jsonb,
    duration_s          double precision,
    requested_at        timestamptz NOT NULL,
    requested_by        text        NOT NULL,
    assigned_at         timestamptz,
    deadline            timestamptz,
    failed_at           timestamptz,
    due                 timestamptz,
    escalated_at        timestamptz,
    resolution          text,
    resolved_at         timestamptz,
    resolved_by         text,
    note                text,
    cancel_requested_at timestamptz,
    cancel_requested_by text,
    ended_at            timestamptz,
    ended_by            text,
    outcome_unknown     boolean     NOT NULL,
    reverted            jsonb,
    reverted_at         timestamptz,
    correlation_id      text        NOT NULL,
    first_sequence      bigint      NOT NULL,
    last_sequence       bigint      NOT NULL,
    PRIMARY KEY (run_id, n)
);
CREATE INDEX tasks_requested_at ON tasks (requested_at);
CREATE INDEX tasks_open ON tasks (status, agent, instance) WHERE ended_at IS NULL;

COMMENT ON TABLE tasks IS
    'One row for each task. Columns about an attempt, an escalation or an error tell of the latest one.';
COMMENT ON COLUMN tasks.n IS 'Number of the task in its run, from 0; shared with timers and questions.';
COMMENT ON COLUMN tasks.agent IS 'Who was asked; NULL where the request names nobody.';
COMMENT ON COLUMN tasks.status IS
    'waiting, assigned, failed (the decision is pending), backoff, escalated or resolved; '
    'at the end completed, cancelled, aborted or rejected.';
COMMENT ON COLUMN tasks.attempt IS 'Number of the latest attempt; 0 before the first.';
COMMENT ON COLUMN tasks.timeout_s IS 'As the request says; NULL: the handler''s own.';
COMMENT ON COLUMN tasks.retry IS 'Retry policy of the request; NULL: the handler''s own.';
COMMENT ON COLUMN tasks.compensation IS 'The task can be undone.';
COMMENT ON COLUMN tasks.compensates IS 'This task undoes the one with that number.';
COMMENT ON COLUMN tasks.copied_from IS
    'Where it was executed, as RUN/N, when this run was forked from another; here nothing was.';
COMMENT ON COLUMN tasks.changed IS 'Copied with another output than the recorded one.';
COMMENT ON COLUMN tasks.error IS 'Of the last attempt that failed.';
COMMENT ON COLUMN tasks.reason IS 'Why it was retried, escalated, aborted, cancelled or rejected.';
COMMENT ON COLUMN tasks.placement IS 'Why this instance.';
COMMENT ON COLUMN tasks.deadline IS 'The attempt is over then.';
COMMENT ON COLUMN tasks.due IS 'Status backoff: when it is free again.';
COMMENT ON COLUMN tasks.resolution IS 'What a person decided: supply, retry or abort.';
COMMENT ON COLUMN tasks.outcome_unknown IS 'Cancelled, but the agent did not confirm: its effect may have happened.';
COMMENT ON COLUMN tasks.reverted IS
    'An answer that came after the end: its output, and the error if its effect could not be undone by the agent itself.';
COMMENT ON COLUMN tasks.first_sequence IS 'Its request in the stream.';
COMMENT ON COLUMN tasks.last_sequence IS 'The last event that counted.';

-- name: session
CREATE TEMPORARY TABLE changed_runs ON COMMIT DELETE ROWS AS TABLE runs WITH NO DATA;
CREATE TEMPORARY TABLE changed_tasks ON COMMIT DELETE ROWS AS TABLE tasks WITH NO DATA;

-- name: load_runs
SELECT run_id, status, standalone, stuck_from, fork_of, tasks, tasks_completed, tasks_failed
FROM runs JOIN unnest(%s::text[]) AS wanted (run_id) USING (run_id)

-- name: load_tasks
SELECT run_id, n, status FROM tasks JOIN unnest(%s::text[], %s::integer[]) AS wanted (run_id, n) USING (run_id, n)

-- name: insert_runs
COPY runs (
    run_id, saga, version, status, standalone, input, result, error, reason, trigger, retry_of,
    fork_of, fork_at, tasks, tasks_completed, tasks_failed, undo, stuck, stuck_from, opened_at, opened_by, started_at,
    compensating_at, stuck_at, resumed_at, cancel_requested_at, cancel_requested_by,
    retry_requested_at, retry_requested_by, ended_at, correlation_id, first_sequence, last_sequence
) FROM STDIN

-- name: update_runs
-- What identifies a run and its beginning never changes; everything else is overwritten where a change says so.
UPDATE runs AS r SET
    saga = coalesce(c.saga, r.saga),
    version = coalesce(c.version, r.version),
    status = coalesce(c.status, r.status),
    standalone = coalesce(c.standalone, r.standalone),
    input = coalesce(c.input, r.input),
    result = coalesce(c.result, r.result),
    error = coalesce(c.error, r.error),
    reason = coalesce(c.reason, r.reason),
    trigger = coalesce(c.trigger, r.trigger),
    retry_of = coalesce(c.retry_of, r.retry_of),
    fork_of = coalesce(c.fork_of, r.fork_of),
    fork_at = coalesce(c.fork_at, r.fork_at),
    tasks = coalesce(c.tasks, r.tasks),
    tasks_completed = coalesce(c.tasks_completed, r.tasks_completed),
    tasks_failed = coalesce(c.tasks_failed, r.tasks_failed),
    undo = coalesce(c.undo, r.undo),
    stuck = coalesce(c.stuck, r.stuck),
    stuck_from = coalesce(c.stuck_from, r.stuck_from),
    started_at = coalesce(c.started_at, r.started_at),
    compensating_at = coalesce(c.compensating_at, r.compensating_at),
    stuck_at = coalesce(c.stuck_at, r.stuck_at),
    resumed_at = coalesce(c.resumed_at, r.resumed_at),
    cancel_requested_at = coalesce(c.cancel_requested_at, r.cancel_requested_at),
    cancel_requested_by = coalesce(c.cancel_requested_by, r.cancel_requested_by),
    retry_requested_at = coalesce(c.retry_requested_at, r.retry_requested_at),
    retry_requested_by = coalesce(c.retry_requested_by, r.retry_requested_by),
    ended_at = coalesce(c.ended_at, r.ended_at),
    last_sequence = coalesce(c.last_sequence, r.last_sequence)
FROM changed_runs AS c
WHERE r.run_id = c.run_id

-- name: insert_tasks
COPY tasks (
    run_id, n, agent, handler, status, attempt, instance, priority, affinity, labels, timeout_s, retry,
    compensation, compensates, copied_from, changed, input, output, error, reason, placement, duration_s, requested_at, requested_by,
    assigned_at, deadline, failed_at, due, escalated_at, resolution, resolved_at, resolved_by, note,
    cancel_requested_at, cancel_requested_by, ended_at, ended_by, outcome_unknown, reverted, reverted_at, correlation_id,
    first_sequence, last_sequence
) FROM STDIN

-- name: update_tasks
-- What the request said never changes, but for the handler, which it may leave open.
UPDATE tasks AS t SET
    handler = coalesce(c.handler, t.handler),
    status = coalesce(c.status, t.status),
    attempt = coalesce(c.attempt, t.attempt),
    instance = coalesce(c.instance, t.instance),
    output = coalesce(c.output, t.output),
    error = coalesce(c.error, t.error),
    reason = coalesce(c.reason, t.reason),
    placement = coalesce(c.placement, t.placement),
    duration_s = coalesce(c.duration_s, t.duration_s),
    assigned_at = coalesce(c.assigned_at, t.assigned_at),
    deadline = coalesce(c.deadline, t.deadline),
    failed_at = coalesce(c.failed_at, t.failed_at),
    due = coalesce(c.due, t.due),
    escalated_at = coalesce(c.escalated_at, t.escalated_at),
    resolution = coalesce(c.resolution, t.resolution),
    resolved_at = coalesce(c.resolved_at, t.resolved_at),
    resolved_by = coalesce(c.resolved_by, t.resolved_by),
    note = coalesce(c.note, t.note),
    cancel_requested_at = coalesce(c.cancel_requested_at, t.cancel_requested_at),
    cancel_requested_by = coalesce(c.cancel_requested_by, t.cancel_requested_by),
    ended_at = coalesce(c.ended_at, t.ended_at),
    ended_by = coalesce(c.ended_by, t.ended_by),
    outcome_unknown = coalesce(c.outcome_unknown, t.outcome_unknown),
    reverted = coalesce(c.reverted, t.reverted),
    reverted_at = coalesce(c.reverted_at, t.reverted_at),
    last_sequence = coalesce(c.last_sequence, t.last_sequence)
FROM changed_tasks AS c
WHERE t.run_id = c.run_id AND t.n = c.n

-- name: forget_tasks
DELETE FROM tasks WHERE run_id = %s

-- name: forget_run
DELETE FROM runs WHERE run_id = %s
