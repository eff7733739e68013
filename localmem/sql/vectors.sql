-- Derived vector tables, made when the embedder of the file is known; {dim} is its dimension.
-- chunk_size 8: small owners cost 6.5 KB a memory instead of 49.7 KB (measured), the scan costs the same.
create virtual table memory_vec using vec0 (
  embedding float[{dim}] distance_metric=cosine,
  owner_id integer partition key,
  live integer,
  valid_from integer,
  valid_to integer,
  expires_at integer,
  agent text,
  run text,
  chunk_size=8
);
create virtual table turn_vec using vec0 (
  embedding float[{dim}] distance_metric=cosine,
  owner_id integer partition key,
  pending integer,
  agent text,
  run text,
  chunk_size=8
);
