-- Tells at once whether an owner has memories that are past their time.
create index memory_expiring on memory (owner_id, expires_at) where expires_at is not null;
