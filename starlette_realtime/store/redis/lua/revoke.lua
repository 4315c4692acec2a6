#!lua flags=allow-oom
-- Revoke what a subject was issued before a time; an earlier time takes nothing back.
-- KEYS: revocations, when each lapses, version. ARGV: subject, issued before (s), life (ms), at most how many.
-- Answers: 0 when there are too many.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('HGET', KEYS[1], ARGV[1])
if not known and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) then
    return 0
end
local last = tonumber(known or '')
if not (last and last >= tonumber(ARGV[2])) then  -- something else than a number is replaced
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
    redis.call('SET', KEYS[3], time[1] .. '.' .. time[2], 'KEEPTTL')
end
-- Another process may let tokens live for longer: what it has revoked stands for as long.
redis.call('ZADD', KEYS[2], 'GT', string.format('%d', now + tonumber(ARGV[3])), ARGV[1])
for _, key in ipairs(KEYS) do
    redis.call('PEXPIRE', key, ARGV[3] + 60000, 'NX')
    redis.call('PEXPIRE', key, ARGV[3] + 60000, 'GT')
end
return 1
