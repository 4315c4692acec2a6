#!lua flags=allow-oom
-- Give what there is once to who asks first. KEYS: what it is. ARGV: the caller's mark, for how long it is known (ms).
-- Answers: the mark of who has it already, or nothing.
return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'GET', 'PX', ARGV[2])
