-- Base tables. Times are whole microseconds since 1970-01-01 UTC; "for ever" is null here and 2^62 in vec0.
-- memory_fts, turn_fts, memory_vec and turn_vec are derived: reindex() rebuilds them, check() compares them.
-- Vectors stand in vec0 alone (a second copy would cost 1.5 KB a memory); what is lost there is embedded again.

create table setting (
  name text primary key,
  value text not null
) strict, without rowid;

create table owner (
  id integer primary key,
  token text not null unique,                     -- 'u:alice', 'a:…', 'r:…'
  revision integer not null default 0,            -- raised by every change of its memories
  documents integer not null default 0,           -- live heads, and the words in them: BM25's statistics
  words integer not null default 0
) strict;

create table episode (
  id text primary key,
  seq integer not null unique,                    -- order of arrival
  owner_id integer not null references owner,
  user_id text, agent_id text, run_id text,
  event_at integer not null,
  recorded_at integer not null,
  state text not null check (state in ('pending', 'done')),
  mode text not null check (mode in ('infer', 'verbatim')),
  metadata text not null,                         -- JSON given with add()
  expires_at integer,
  error text,                                     -- why it is still pending: the error's class, never its text
  attempts integer not null default 0
) strict, without rowid;
create index episode_pending on episode (owner_id, event_at, seq) where state = 'pending';
create index episode_by_owner on episode (owner_id, seq);

create table message (
  id integer primary key autoincrement,           -- an id once used for text is never used again
  episode_id text not null references episode,
  position integer not null,
  role text not null,
  name text,
  content text not null,                          -- after masking
  grams text,                                     -- character pairs of scripts without spaces
  suppressed_at integer,                          -- taken back by its author; waits for purge
  unique (episode_id, position)
) strict;

create table memory (
  id text primary key,
  seq integer not null unique,
  owner_id integer not null references owner,
  user_id text, agent_id text, run_id text,
  kind text not null check (kind in ('semantic', 'episodic', 'procedural')),
  actor text not null check (actor in ('user', 'assistant', 'tool', 'document')),
  metadata text not null,
  created_at integer not null,
  expires_at integer,
  head integer not null unique references version deferrable initially deferred,
  deleted_at integer,                             -- tombstone: when the file learned of it
  delete_event_at integer,                        -- and when it became true
  delete_reason text,
  delete_decision integer references decision,
  confirmed_at integer,                           -- last time the same was said again
  check ((deleted_at is null) = (delete_event_at is null))
) strict, without rowid;
create index memory_by_owner on memory (owner_id, seq);
create index memory_by_agent on memory (agent_id, seq) where agent_id is not null;
create index memory_by_run on memory (run_id, seq) where run_id is not null;

create table version (
  id integer primary key autoincrement,           -- rowid of its vector and its word-index entry
  memory_id text not null references memory deferrable initially deferred,
  number integer not null check (number >= 1),    -- in the order of recording
  text text not null,
  hash text not null,                             -- md5 of the text, as mem0 shows it
  key text not null,                              -- normalised text: equal keys are exact duplicates
  grams text,
  words integer not null,
  valid_from integer not null,
  valid_to integer,
  recorded_at integer not null,
  superseded_at integer,
  reason text not null,                           -- model, manual, verbatim, reverted
  decision_id integer references decision,
  suppressed integer not null default 0 check (suppressed in (0, 1)),
  unique (memory_id, number)
) strict;
create index version_by_key on version (key, memory_id);

create table evidence (
  id integer primary key,
  version_id integer not null references version,
  message_id integer not null references message,
  start integer not null,
  stop integer not null,
  kind text not null check (kind in ('support', 'confirm')),
  event_at integer not null,
  check (0 <= start and start <= stop),
  unique (version_id, message_id, start, stop, kind)
) strict;
create index evidence_by_message on evidence (message_id);

create table mention (
  owner_id integer not null references owner,
  name text not null,                             -- normalised
  version_id integer not null references version,
  primary key (owner_id, name, version_id)
) strict, without rowid;
create index mention_by_version on mention (version_id);

create table contested (
  memory_id text not null references memory,
  other_id text not null references memory,
  decision_id integer references decision,
  primary key (memory_id, other_id)
) strict, without rowid;

create table decision (
  id integer primary key autoincrement,
  episode_id text references episode,
  owner_id integer not null references owner,
  position integer not null,
  message integer,                                -- position of the message it was heard in
  fact text not null,
  quote text not null,
  op text not null check (op in ('ADD', 'UPDATE', 'DELETE', 'NOOP')),
  targets text not null,                          -- JSON list of memory ids
  text text,
  confidence real not null,
  probabilities text not null,                    -- JSON
  guards text not null,                           -- JSON list of rule names
  neighbours text not null,                       -- JSON list of [memory id, version, cosine]
  fingerprint text not null,                      -- JSON
  reason text not null,
  unsupported integer not null check (unsupported in (0, 1)),
  suppressed integer not null default 0 check (suppressed in (0, 1)),
  at integer not null
) strict;
create index decision_by_episode on decision (episode_id, position);
create index decision_by_owner on decision (owner_id, id);

-- What the word index holds. o<owner>: heads. h<owner>: superseded or deleted, for include="history".
create view memory_words (id, owner, text, grams) as
  select v.id, iif(m.head = v.id and m.deleted_at is null, 'o', 'h') || m.owner_id, v.text, v.grams
  from version v join memory m on m.id = v.memory_id
  where v.suppressed = 0 and m.delete_reason is not 'retraction';

-- p<owner>: turns not extracted yet. x<owner>: extracted.
create view turn_words (id, owner, text, grams) as
  select t.id, iif(e.state = 'pending', 'p', 'x') || e.owner_id, t.content, t.grams
  from message t join episode e on e.id = t.episode_id
  where t.suppressed_at is null and e.mode = 'infer' and t.role <> 'system';

create virtual table memory_fts using fts5 (
  owner, text, grams, content = 'memory_words', content_rowid = 'id', columnsize = 0,
  tokenize = 'porter unicode61 remove_diacritics 2'
);
insert into memory_fts (memory_fts, rank) values ('secure-delete', 1);

create virtual table turn_fts using fts5 (
  owner, text, grams, content = 'turn_words', content_rowid = 'id', columnsize = 0,
  tokenize = 'porter unicode61 remove_diacritics 2'
);
insert into turn_fts (turn_fts, rank) values ('secure-delete', 1);
