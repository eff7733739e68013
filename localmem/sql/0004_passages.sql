-- What stands beyond the first tokens of a long text, which its vector in vec0 does not know. Made with the embedder of
-- the file, where that says how to cut a text; derived, like vec0's tables.
create table passage (
  kind text not null check (kind in ('memory_vec', 'turn_vec')),
  owner_id integer not null references owner,
  id integer not null,                            -- of the version or message
  number integer not null check (number >= 1),    -- 0 would be the vector in vec0
  vector blob not null,                           -- int8; its length as a vector says nothing
  primary key (kind, owner_id, id, number)
) strict, without rowid;
create index passage_by_row on passage (kind, id);

drop table reembedded; -- where one was under way, it begins anew
delete from setting where name = 'reembedding';
create table reembedded (
  kind text not null check (kind in ('memory_vec', 'turn_vec')),
  id integer not null,                            -- of the version or message
  number integer not null,                        -- 0: for vec0; others: of its passages
  vector blob not null,
  primary key (kind, id, number)
) strict, without rowid;
