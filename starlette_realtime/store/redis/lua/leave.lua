#!lua flags=allow-oom
-- Remove a process's presence records from a topic: those that are named, or a step's worth of a dead process's.
-- KEYS: channel, meta, records, order, counts, holders, the process's connections, its tombstone, the last operation.
-- ARGV: PUBLISH or SPUBLISH, process, operation, ids that it had before, the operation's life (ms), how many to remove
--       of a dead process's (0: it lives), the tombstone's life (ms); then the connections.
-- Answers: the JSON of the entries that were the last of their `who`, and how many records the process has left.
local channel, meta, records, order, counts, holders, mine = unpack(KEYS, 1, 7)
local node, operation, former, step = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[6])
if step > 0 then
    redis.call('SET', KEYS[8], '1', 'PX', ARGV[7])
end
local done = redis.call('GET', KEYS[9])
if done then
    local last, answer = string.match(done, '^(%d+) (.*)$')
    if tonumber(last) >= tonumber(operation) then
        return {last == operation and answer or '[]', redis.call('SCARD', mine)}
    end
end
local leaving = {}
if step > 0 then
    local place = {}
    leaving = redis.call('SRANDMEMBER', mine, step)
    for _, connection in ipairs(leaving) do
        place[connection] = tonumber(redis.call('ZSCORE', order, connection) or '0')
    end
    table.sort(leaving, function(one, other) return place[one] < place[other] end)
else
    for at = 8, #ARGV do
        leaving[#leaving + 1] = ARGV[at]
    end
end
local gone, last = {}, {}
for _, connection in ipairs(leaving) do
    local held = redis.call('HGET', records, connection)
    local owner, length, start
    if held then
        owner, length, start = string.match(held, '^(%S+) (%d+) ()')
    end
    if held and (owner == node or string.find(former, owner, 1, true)) then
        local theirs = channel .. ':p:' .. owner
        redis.call('HDEL', records, connection)
        redis.call('ZREM', order, connection)
        redis.call('SREM', theirs, connection)
        if redis.call('EXISTS', theirs) == 0 then
            redis.call('SREM', holders, owner)
        end
        local who = string.sub(held, start, start + length - 1)
        if redis.call('HINCRBY', counts, who, -1) <= 0 then
            redis.call('HDEL', counts, who)
            last[#last + 1] = string.sub(held, start + length)
        end
        gone[#gone + 1] = cjson.encode(connection)
    elseif step > 0 then
        redis.call('SREM', mine, connection)  -- another one's: it must not be in the way of the rest
    end
end
if #gone > 0 then
    local before = tonumber(redis.call('HGET', meta, 'q') or '0')
    if before == 0 then
        local time = redis.call('TIME')
        before = time[1] * 1000 + math.floor(time[2] / 1000)
    end
    local sequence = string.format('%d', before + #gone)
    redis.call('HSET', meta, 'q', sequence)
    redis.call('PEXPIRE', meta, 600000, 'NX')
    redis.call('PEXPIRE', meta, 600000, 'GT')
    redis.call(ARGV[1], channel, string.format('d %d ', before) .. sequence
        .. '\n[[],[' .. table.concat(gone, ',') .. ']]')
end
local answer = '[' .. table.concat(last, ',') .. ']'
redis.call('SET', KEYS[9], operation .. ' ' .. answer, 'PX', ARGV[5])
return {answer, redis.call('SCARD', mine)}
