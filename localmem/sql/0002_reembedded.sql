-- Vectors of another embedder on their way in: made bit by bit, put in place all at once (store_vectors.py).
-- Empty but while a reembed() is under way; whose vectors they are is the setting "reembedding".
create table reembedded (
  kind text not null check (kind in ('memory_vec', 'turn_vec')),
  id integer not null,                            -- of the version or message
  vector blob not null,
  primary key (kind, id)
) strict, without rowid;
