#!lua flags=allow-oom
-- Remove a process's presence records from a topic: those that are named, or a step's worth of a dead process's.
-- KEYS: channel, meta, records, order, counts, holders, the process's connections, its tombstone, the last operation.
-- ARGV: PUBLISH or SPUBLISH, process, operation, ids that it had before, the operation's life (ms), how many to remove
--       of a dead process's (0: it lives), the tombstone's life (ms). Then, of one that lives, the ids under which it
--       knew of those whom it knows, and for each connection: itself, its `who`, when that was known to be there (ms).
--       What is removed once more comes without a `who`, and with the time when it was removed first (0: it wasn't).
-- Answers: the JSON of the entries that were the last of their `who`, and how many records the process has left. Of one
--       that lives the JSON has two more parts: connections of which nobody knows, as of their `who`, and nobody told
--       that they left, so that another server has lost them; and those removed once more whose `who` stays this time.
--       And there is the time (ms).
local channel, meta, records, order, counts, holders, mine = unpack(KEYS, 1, 7)
local node, operation, former, step = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[6])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local stamp = string.format('%d', now)
if step > 0 then
    redis.call('SET', KEYS[8], '1', 'PX', ARGV[7])
end
local done = redis.call('GET', KEYS[9])
if done then
    local last, answer = string.match(done, '^(%d+) (.*)$')
    if tonumber(last) >= tonumber(operation) then
        return {last == operation and answer or '[]', redis.call('SCARD', mine), step == 0 and stamp or nil}
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
    for at = 9, #ARGV, 3 do
        leaving[#leaving + 1] = ARGV[at]
    end
end
local buried = false
for id in string.gmatch(step == 0 and ARGV[8] or '', '%S+') do
    buried = buried or redis.call('EXISTS', channel .. ':px:' .. id) == 1
end
-- When somebody was told to have left: who is announced anew after that has come again (see enter.lua).
local farewells = channel .. ':pl'
local gone, last, lost, stays = {}, {}, {}, {}
for number, connection in ipairs(leaving) do
    local whose, known = '', '0'
    if step == 0 then
        whose, known = ARGV[7 + 3 * number], ARGV[8 + 3 * number]
    end
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
            redis.call('ZADD', farewells, 'GT', whose == '' and known ~= '0' and known or stamp, who)
        elseif whose == '' and known ~= '0' then
            stays[#stays + 1] = cjson.encode(connection)
        end
        gone[#gone + 1] = cjson.encode(connection)
    elseif step > 0 then
        redis.call('SREM', mine, connection)  -- another one's: it must not be in the way of the rest
    elseif not held and whose ~= '' and known ~= '0' and not buried then
        local left = tonumber(redis.call('ZSCORE', farewells, whose) or '0')
        if left < tonumber(known) and redis.call('HEXISTS', counts, whose) == 0 then
            lost[#lost + 1] = cjson.encode(connection)
            redis.call('ZADD', farewells, stamp, whose)
        end
    end
end
if #gone > 0 then
    local before = tonumber(redis.call('HGET', meta, 'q') or '0')
    if before == 0 then
        before = now
    end
    local sequence = string.format('%d', before + #gone)
    redis.call('HSET', meta, 'q', sequence)
    redis.call('PEXPIRE', meta, 600000, 'NX')
    redis.call('PEXPIRE', meta, 600000, 'GT')
    redis.call(ARGV[1], channel, string.format('d %d ', before) .. sequence
        .. '\n[[],[' .. table.concat(gone, ',') .. ']]')
end
if #last + #lost > 0 then
    for _, who in ipairs(redis.call('ZRANGE', farewells, 0, -1001)) do
        redis.call('ZREM', farewells, who)
    end
    redis.call('PEXPIRE', farewells, ARGV[5])
end
local answer = '[' .. table.concat(last, ',') .. ']'
if step == 0 then
    answer = '[' .. answer .. ',[' .. table.concat(lost, ',') .. '],[' .. table.concat(stays, ',') .. ']]'
end
redis.call('SET', KEYS[9], operation .. ' ' .. answer, 'PX', ARGV[5])
return {answer, redis.call('SCARD', mine), step == 0 and stamp or nil}
