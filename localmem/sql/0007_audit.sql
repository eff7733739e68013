-- What was done to the file, in a chain: each entry's mac covers all that stand before it (store_audit.py). The chain
-- names owners and memories by keyed hash; of texts it holds salted hashes, whose salts lie beside the texts and go
-- with them. The setting "audit_head" says where it ends, "file_id" tells this file from others.
create table audit (
  seq integer primary key check (seq >= 1),       -- without gaps
  at integer not null,
  actor text not null,                            -- who did it, as the application says
  op text not null,
  owner blob,                                     -- keyed hash of the owner's token
  subject blob,                                   -- keyed hash of the memory's or episode's id
  decision_id integer,
  commitment blob,                                -- sha256 of salt, place and text
  detail text,                                    -- JSON of counts and names of settings, never of what anybody said
  mac blob not null
) strict;

alter table version add column entry integer;     -- of the chain, that commits to the text; with its salt
alter table version add column salt blob;
alter table message add column entry integer;
alter table message add column salt blob;
