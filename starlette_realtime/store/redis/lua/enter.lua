#!lua flags=allow-oom
-- Add, change or take over a process's presence records in a topic; one diff tells of all that changed.
-- KEYS: channel, meta, records, order, counts, holders, the process's connections, its tombstone, its last operation.
-- ARGV: PUBLISH or SPUBLISH, process, operation, until when it may write (ms), ids that it had before ('*': take over
--       from anybody), presence's life (ms), the operation's life (ms), the ids under which it knew of those whom it
--       knows; then for each record: connection, who, entry, when this `who` was known to be there (ms; 0: never).
-- Answers: 1, the JSON of the entries that brought a `who`, the time (ms); 0 when the process may not write any more.
-- Who was known to be there, and was never told to have left since, is not brought: another server has lost them.
-- A record is "process length who entry"; its place in the order is the presence sequence that it came with.
local channel, meta, records, order, counts, holders, mine = unpack(KEYS, 1, 7)
local node, operation, former, life = ARGV[2], ARGV[3], ARGV[5], ARGV[6]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local stamp = string.format('%d', now)
local done = redis.call('GET', KEYS[9])
if done then
    local last, answer = string.match(done, '^(%d+) (.*)$')
    if tonumber(last) >= tonumber(operation) then
        return {1, last == operation and answer or '[]', stamp}
    end
end
if redis.call('EXISTS', KEYS[8]) == 1 or now > tonumber(ARGV[4]) then
    return {0}
end
local before = tonumber(redis.call('HGET', meta, 'q') or '0')
local sequence, run = before, nil
if before == 0 then
    -- It was never counted here, or the count was lost: go on where nobody has been. Whoever knew the records that
    -- are left has to read them again.
    sequence = now
    if redis.call('EXISTS', records) == 1 then
        before = now
    end
    local info = redis.pcall('INFO', 'server')
    run = type(info) == 'string' and string.match(info, 'run_id:(%x+)')
end
local buried = false
for id in string.gmatch(ARGV[8], '%S+') do
    buried = buried or redis.call('EXISTS', channel .. ':px:' .. id) == 1
end
local changed, joined = {}, {}
for at = 9, #ARGV, 4 do
    local connection, who, entry, known = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
    local held = redis.call('HGET', records, connection)
    local owner, length, start
    if held then
        owner, length, start = string.match(held, '^(%S+) (%d+) ()')
    end
    local moved = held and owner ~= node
    if not moved or former == '*' or string.find(former, owner, 1, true) then
        local content = #who .. ' ' .. who .. entry
        local same = held and string.sub(held, #owner + 2) == content
        if moved then
            local theirs = channel .. ':p:' .. owner
            redis.call('SREM', theirs, connection)
            if redis.call('EXISTS', theirs) == 0 then
                redis.call('SREM', holders, owner)
            end
        end
        if moved or not held then
            redis.call('SADD', mine, connection)
        end
        if moved or not same then
            redis.call('HSET', records, connection, node .. ' ' .. content)
        end
        if not same then
            sequence = sequence + 1
            changed[#changed + 1] = entry
            local was = held and string.sub(held, start, start + length - 1)
            if was and was ~= who and redis.call('HINCRBY', counts, was, -1) <= 0 then
                redis.call('HDEL', counts, was)
            end
            if was ~= who and redis.call('HINCRBY', counts, who, 1) == 1 then
                local left = known > 0 and tonumber(redis.call('ZSCORE', channel .. ':pl', who) or '0')
                if known == 0 or buried or left >= known then
                    joined[#joined + 1] = entry
                end
            end
            if not held then
                redis.call('ZADD', order, string.format('%d', sequence), connection)
            end
        end
    end
end
if redis.call('EXISTS', mine) == 1 then
    redis.call('SADD', holders, node)
end
if #changed > 0 then
    redis.call('HSET', meta, 'q', string.format('%d', sequence))
    if run then
        redis.call('HSET', meta, 'r', run)  -- the server that counts: see era.lua
    end
end
-- The topic's own script may want it to be known for longer.
redis.call('PEXPIRE', meta, 600000, 'NX')
redis.call('PEXPIRE', meta, 600000, 'GT')
for index = 3, 7 do
    redis.call('PEXPIRE', KEYS[index], life)
end
if #changed > 0 then
    redis.call(ARGV[1], channel, string.format('d %d %d\n', before, sequence)
        .. '[[' .. table.concat(changed, ',') .. '],[]]')
end
local answer = '[' .. table.concat(joined, ',') .. ']'
redis.call('SET', KEYS[9], operation .. ' ' .. answer, 'PX', ARGV[7])
return {1, answer, stamp}
