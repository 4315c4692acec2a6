#!lua flags=allow-oom
-- Renew a process's lease, or take it.
-- KEYS: nodes. ARGV: process, lease (ms), 1 to take it. Answers: the server's time (ms), 0 when the lease is over.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[3] ~= '1' then
    local last = redis.call('ZSCORE', KEYS[1], ARGV[1])
    if not last or now - tonumber(last) > tonumber(ARGV[2]) then
        return 0
    end
end
redis.call('ZADD', KEYS[1], string.format('%d', now), ARGV[1])
return now
