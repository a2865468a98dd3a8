-- The support desk's tables. Safe to run again: it only adds what is missing.
-- Rows that agents write carry the idempotency key of the task that wrote them, so a repeated attempt finds its own row.

create schema if not exists support;

create table if not exists support.orders (
    id               text primary key check (id ~ '^[0-9]{4,6}$'),
    customer         text not null,
    email            text not null,
    item             text not null,
    amount_cents     integer not null check (amount_cents > 0),
    currency         text not null check (currency = 'eur'), -- one currency, so amounts may be added up
    status           text not null check (status in ('processing', 'shipped', 'delivered', 'cancelled', 'refunded')),
    placed_on        date not null,
    -- The stock count holds the order: this many attempts of every look-up are turned away before one gets through.
    -- A stand-in for lock contention that happens the same way each time the demo runs.
    busy_attempts    integer not null default 0 check (busy_attempts >= 0),
    stripe_customer  text,
    payment_intent   text unique,
    charge           text unique
);

create table if not exists support.escalations (
    id         bigint generated always as identity primary key,
    key        text not null unique,
    ticket_id  text not null,
    queue      text not null check (queue in ('complaints', 'payments', 'logistics', 'triage')),
    due_at     timestamptz not null,
    summary    text not null,
    status     text not null default 'open' check (status in ('open', 'withdrawn')),
    filed_at   timestamptz not null default now()
);

create table if not exists support.feedback (
    key             text primary key,
    ticket_id       text not null,
    intent          text not null,
    confidence      double precision not null check (confidence between 0 and 1),
    resolution      text not null check (resolution in ('refunded', 'answered', 'thanked', 'escalated')),
    refunded_cents  integer not null check (refunded_cents >= 0),
    rating          double precision check (rating between 0 and 1),
    recorded_at     timestamptz not null default now()
);

create table if not exists support.letters (
    id         bigint generated always as identity primary key,
    key        text not null unique,
    ticket_id  text not null,
    recipient  text not null,
    subject    text not null,
    body       text not null,
    posted_at  timestamptz not null default now()
);
