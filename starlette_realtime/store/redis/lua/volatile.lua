#!lua flags=allow-oom
-- Publish what is not kept. It is declared as a script that writes, so that a replica refuses it.
-- KEYS: the channel. ARGV: channel, PUBLISH or SPUBLISH, data.
local time = redis.call('TIME')
local at = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
return redis.call(ARGV[2], ARGV[1], 'v ' .. at .. '\n' .. ARGV[3])
