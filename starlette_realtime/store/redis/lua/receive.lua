#!lua flags=allow-oom
-- Drop what a process has received, and give it what comes next.
-- KEYS: inbox, the inbox's size. ARGV: at most how many, then the ids of what was received.
-- Answers: rows of an id and data.
local size = 0
for at = 2, #ARGV do
    for _, row in ipairs(redis.call('XRANGE', KEYS[1], ARGV[at], ARGV[at])) do
        size = size + #row[2][2]
        redis.call('XDEL', KEYS[1], row[1])
    end
end
if redis.call('XLEN', KEYS[1]) == 0 then
    redis.call('DEL', KEYS[1], KEYS[2])
elseif size > 0 then
    redis.call('DECRBY', KEYS[2], size)
end
local result = {}
for _, row in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', ARGV[1])) do
    result[#result + 1] = {row[1], row[2][2]}
end
return result
