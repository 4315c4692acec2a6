#!lua flags=allow-oom
-- Declare a process dead: from now on, it notes no topic any more. Repeat it until no topics are left.
-- KEYS: its tombstone, its topics, its sign of life. ARGV: the tombstone's life (ms), how many topics.
-- Answers: topics where it may have members.
redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
redis.call('DEL', KEYS[3])
return redis.call('ZRANGE', KEYS[2], 0, tonumber(ARGV[2]) - 1)
