#!lua flags=allow-oom
-- A process's sign of life for those who send to it. KEYS: its sign of life, inbox. ARGV: lease (ms).
-- Answers: how much waits in the inbox.
redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
return redis.call('XLEN', KEYS[2])
