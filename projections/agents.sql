-- name: tables
CREATE TABLE agents (
    agent           text             NOT NULL,
    instance        text             NOT NULL,
    version         text             NOT NULL,
    description     text             NOT NULL,
    labels          jsonb            NOT NULL,
    slots           bigint           NOT NULL,
    handlers        jsonb            NOT NULL,
    heartbeat_s     double precision NOT NULL,
    recycle_after   bigint           NOT NULL,
    host            text             NOT NULL,
    pid             bigint           NOT NULL,
    health          text             NOT NULL,
    wants_drain     boolean          NOT NULL,
    reason          text,
    registered_at   timestamptz      NOT NULL,
    changed_at      timestamptz      NOT NULL,
    handled         bigint,
    first_sequence  bigint           NOT NULL,
    last_sequence   bigint           NOT NULL,
    PRIMARY KEY (agent, instance)
);
CREATE INDEX agents_health ON agents (health) WHERE health <> 'stopped';

COMMENT ON TABLE agents IS 'The registry: one row for each agent instance that ever registered.';
COMMENT ON COLUMN agents.version IS 'Of the agent''s code, as it says itself.';
COMMENT ON COLUMN agents.slots IS 'Tasks that it takes at a time.';
COMMENT ON COLUMN agents.handlers IS 'By name: JSON Schemas of input and output, timeout, retry policy, whether it can be undone.';
COMMENT ON COLUMN agents.heartbeat_s IS 'How often it says that it lives.';
COMMENT ON COLUMN agents.recycle_after IS 'Tasks after which it is renewed; 0: never.';
COMMENT ON COLUMN agents.health IS 'healthy, suspect, lost, draining or stopped; stopped is for good.';
COMMENT ON COLUMN agents.wants_drain IS 'It is to finish what it has and stop.';
COMMENT ON COLUMN agents.reason IS 'Why its health is what it is.';
COMMENT ON COLUMN agents.registered_at IS 'Of the latest registration.';
COMMENT ON COLUMN agents.changed_at IS 'When its health last changed.';
COMMENT ON COLUMN agents.handled IS 'How many tasks it had handled when it stopped.';

CREATE TABLE agent_health (
    recorded_at timestamptz NOT NULL,
    sequence    bigint      NOT NULL,
    agent       text        NOT NULL,
    instance    text        NOT NULL,
    health      text        NOT NULL,
    previous    text,
    reason      text        NOT NULL,
    source      text        NOT NULL,
    PRIMARY KEY (sequence, recorded_at)
) PARTITION BY RANGE (recorded_at);
CREATE INDEX agent_health_instance ON agent_health (agent, instance, recorded_at);
CREATE INDEX agent_health_recorded_at ON agent_health USING brin (recorded_at) WITH (autosummarize = on);

COMMENT ON TABLE agent_health IS 'Every change of an instance''s health. Partitioned by recorded_at.';
COMMENT ON COLUMN agent_health.previous IS 'NULL at its first registration.';
COMMENT ON COLUMN agent_health.source IS 'Who noticed.';

-- name: session
CREATE TEMPORARY TABLE changed_agents ON COMMIT DELETE ROWS AS TABLE agents WITH NO DATA

-- name: load_agents
SELECT agent, instance, health, wants_drain
FROM agents JOIN unnest(%s::text[], %s::text[]) AS wanted (agent, instance) USING (agent, instance)

-- name: insert_agents
COPY agents (
    agent, instance, version, description, labels, slots, handlers, heartbeat_s, recycle_after, host, pid, health,
    wants_drain, reason, registered_at, changed_at, handled, first_sequence, last_sequence
) FROM STDIN

-- name: update_agents
UPDATE agents AS a SET
    version = coalesce(c.version, a.version),
    description = coalesce(c.description, a.description),
    labels = coalesce(c.labels, a.labels),
    slots = coalesce(c.slots, a.slots),
    handlers = coalesce(c.handlers, a.handlers),
    heartbeat_s = coalesce(c.heartbeat_s, a.heartbeat_s),
    recycle_after = coalesce(c.recycle_after, a.recycle_after),
    host = coalesce(c.host, a.host),
    pid = coalesce(c.pid, a.pid),
    health = coalesce(c.health, a.health),
    wants_drain = coalesce(c.wants_drain, a.wants_drain),
    reason = coalesce(c.reason, a.reason),
    registered_at = coalesce(c.registered_at, a.registered_at),
    changed_at = coalesce(c.changed_at, a.changed_at),
    handled = coalesce(c.handled, a.handled),
    last_sequence = coalesce(c.last_sequence, a.last_sequence)
FROM changed_agents AS c
WHERE a.agent = c.agent AND a.instance = c.instance

-- name: add_months
SELECT add_months('agent_health', %s)

-- name: insert_health
COPY agent_health (recorded_at, sequence, agent, instance, health, previous, reason, source) FROM STDIN

-- name: forget_agent
DELETE FROM agents WHERE agent = %s AND instance = %s

-- name: forget_health
DELETE FROM agent_health WHERE agent = %s AND instance = %s
