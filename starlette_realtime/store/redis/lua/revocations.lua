#!lua flags=allow-oom
-- Forget a step's worth of the revocations that have lapsed. KEYS: revocations, when each lapses, version.
-- ARGV: how many. Answers: the version of what there is, '' where there is nothing.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lapsed = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%d', now), 'LIMIT', 0, ARGV[1])
for _, subject in ipairs(lapsed) do
    redis.call('HDEL', KEYS[1], subject)
    redis.call('ZREM', KEYS[2], subject)
end
if redis.call('EXISTS', KEYS[1]) == 0 then
    return ''
end
if #lapsed > 0 then
    redis.call('SET', KEYS[3], time[1] .. '.' .. time[2], 'KEEPTTL')
end
return redis.call('GET', KEYS[3]) or '-'
