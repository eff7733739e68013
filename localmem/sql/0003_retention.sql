-- How long turns are kept once they are extracted is the setting "retention": all (none set), evidence or none.
alter table message add column dropped_at integer; -- its words were not to be kept: content is ''

drop view turn_words;
create view turn_words (id, owner, text, grams) as
  select t.id, iif(e.state = 'pending', 'p', 'x') || e.owner_id, t.content, t.grams
  from message t join episode e on e.id = t.episode_id
  where t.suppressed_at is null and t.dropped_at is null and e.mode = 'infer' and t.role <> 'system';
