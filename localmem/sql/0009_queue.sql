-- Episodes that wait are read by one worker of all the processes that have the file open (worker.py, store_queue.py).
alter table episode add column due_at integer not null default 0;   -- no worker begins before: it failed, or its add() is at it
alter table episode add column begun integer not null default 0;    -- times a worker began it and died over it
alter table episode add column failures integer not null default 0; -- times its own words were the cause, not a missing model
alter table episode add column set_aside_at integer;                -- failed too often: waits for a person's resume()
alter table episode add column keep integer not null default 0 check (keep in (0, 1)); -- asked for: see notes.py
alter table episode add column owes_vectors integer not null default 0 check (owes_vectors in (0, 1));
create index episode_waiting on episode (seq) where state = 'pending' and set_aside_at is null;
create index episode_owing on episode (seq) where owes_vectors = 1;

-- The lease: at most one row. Who holds it raises the beat every two seconds; one that stands still is taken over.
create table worker (
  id integer primary key check (id = 1),
  holder text not null,                           -- random, new with each lease
  beat integer not null,
  pid integer not null,
  since integer not null,
  seen_at integer not null,                       -- when the beat was last raised
  done integer not null                           -- episodes finished under this lease
) strict;
