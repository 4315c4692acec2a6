#!lua flags=allow-oom
-- A server that was started again, or took over, may have lost the last changes, and their numbers are given again:
-- jump to where nobody has been, and have everybody read the members anew. Once for each server.
-- KEYS: channel, meta. ARGV: PUBLISH or SPUBLISH. Answers: 1 if it jumped.
local info = redis.pcall('INFO', 'server')
local run = type(info) == 'string' and string.match(info, 'run_id:(%x+)')
local found = redis.call('HMGET', KEYS[2], 'q', 'r')
if not run or not found[1] or found[2] == run then
    return 0
end
local time = redis.call('TIME')
local sequence = math.max(time[1] * 1000 + math.floor(time[2] / 1000), tonumber(found[1]) + 1)
local text = string.format('%d', sequence)
redis.call('HSET', KEYS[2], 'q', text, 'r', run)
redis.call(ARGV[1], KEYS[1], 'd ' .. text .. ' ' .. text .. '\n[[],[]]')
return 1
