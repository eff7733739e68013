-- Purges, begun and done. The certificate says what was proven; nothing here tells what was purged.
create table purge (
  id text primary key,
  at integer not null,
  state text not null check (state in ('incomplete', 'done')),
  reason text,                                    -- why it is incomplete
  detail text not null,                           -- JSON: what kind, whose by keyed hash, how many rows of which table
  secret blob,                                    -- of the needles sought for in the raw file, until they are not there
  certificate text,                               -- JSON
  check ((state = 'done') = (certificate is not null))
) strict, without rowid;

-- Without them each decision that goes would look through all versions for one that refers to it.
create index version_by_decision on version (decision_id) where decision_id is not null;
create index memory_by_decision on memory (delete_decision) where delete_decision is not null;
create index contested_by_decision on contested (decision_id) where decision_id is not null;
