#!lua flags=allow-oom
-- Give a slot back, unless another process has taken it over.
-- KEYS: slots, fence. ARGV: process, operation, ids that it had before, slot.
if tonumber(ARGV[2]) <= tonumber(redis.call('HGET', KEYS[2], ARGV[1]) or '0') then
    return 0
end
local holder = redis.call('HGET', KEYS[1], ARGV[4])
if holder and (holder == ARGV[1] or string.find(ARGV[3], holder, 1, true)) then
    redis.call('HDEL', KEYS[1], ARGV[4])
end
return 1
