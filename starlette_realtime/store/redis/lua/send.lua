#!lua flags=allow-oom
-- Send to one process.
-- KEYS: its sign of life, inbox, the inbox's size, that this was sent, the channel that wakes it.
-- ARGV: PUBLISH or SPUBLISH, data, at most how many, at most how many bytes, life (ms), how long this is known (ms).
-- Answers: 0 when it is gone, -1 when its inbox is full.
if redis.call('EXISTS', KEYS[4]) == 1 then
    return 1
end
if redis.call('EXISTS', KEYS[1]) == 0 then
    return 0
end
local size = tonumber(redis.call('GET', KEYS[3]) or '0')
if redis.call('XLEN', KEYS[2]) >= tonumber(ARGV[3]) or size + #ARGV[2] > tonumber(ARGV[4]) then
    return -1
end
redis.call('XADD', KEYS[2], '*', 'd', ARGV[2])
redis.call('INCRBY', KEYS[3], #ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
redis.call('PEXPIRE', KEYS[3], ARGV[5])
redis.call('SET', KEYS[4], '1', 'PX', ARGV[6])
redis.call(ARGV[1], KEYS[5], '')
return 1
