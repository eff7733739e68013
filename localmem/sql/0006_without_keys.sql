-- A version's text in small letters stood in its row and in an index: 0.2 KB a memory, for a question that few rows answer.
drop index version_by_key;
alter table version drop column key;
create index memory_taken_back on memory (owner_id, delete_event_at) where delete_reason = 'user_request';
