#!lua flags=allow-oom
-- Note that a process has members in a topic, before it has.
-- KEYS: the process's topics, its tombstone. ARGV: topic, operation, life (ms). Answers: 0 when it was declared dead.
if redis.call('EXISTS', KEYS[2]) == 1 then
    return 0
end
redis.call('ZADD', KEYS[1], 'GT', ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
