#!lua flags=allow-oom
-- A topic's presence records, the longest present first. It is declared as a script that writes, so that a replica
-- refuses it. KEYS: meta, records, order. ARGV: how many. Answers: presence sequence, total, JSON of the entries.
local limit, shown = tonumber(ARGV[1]), {}
local start = 0
while start < limit do
    local stop = math.min(start + 1000, limit)
    local connections = redis.call('ZRANGE', KEYS[3], start, stop - 1)
    if #connections == 0 then
        break
    end
    for _, held in ipairs(redis.call('HMGET', KEYS[2], unpack(connections))) do
        if held then
            local length, rest = string.match(held, '^%S+ (%d+) ()')
            shown[#shown + 1] = string.sub(held, rest + length)
        end
    end
    start = stop
end
local sequence = redis.call('HGET', KEYS[1], 'q') or '0'
return {sequence, redis.call('HLEN', KEYS[2]), '[' .. table.concat(shown, ',') .. ']'}
