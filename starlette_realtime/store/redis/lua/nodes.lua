#!lua flags=allow-oom
-- Who has a lease, or had one that is over and not cleared away yet; declared as a script that writes, so that a
-- replica refuses it. KEYS: nodes. ARGV: at most how many, those first that were not heard of for the longest time.
-- Answers: the server's time (ms), then process and when it was last heard of (ms).
local time = redis.call('TIME')
local result = redis.call('ZRANGE', KEYS[1], 0, tonumber(ARGV[1]) - 1, 'WITHSCORES')
table.insert(result, 1, string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000)))
return result
