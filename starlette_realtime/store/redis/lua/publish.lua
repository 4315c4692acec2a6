#!lua
-- Publish to one topic, in order, each publication once.
-- KEYS: meta, stream, then for each publication the key under which it is known.
-- ARGV: channel, PUBLISH or SPUBLISH, a new epoch, history size, history ttl (ms), forget (ms), history bytes;
--       then for each publication: id, for how long it is known (ms), data.
-- Answers: for each publication "epoch offset id".
local meta, stream = KEYS[1], KEYS[2]
if not redis.acl_check_cmd(ARGV[2], ARGV[1], '') then
    -- An error halfway undoes nothing: what was appended could be answered for, though nobody has heard it.
    return redis.error_reply('NOPERM this user has no permissions to publish on the channel')
end
local channel, publish, size, ttl, forget = ARGV[1], ARGV[2], tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
local most = tonumber(ARGV[7])
local found = redis.call('HMGET', meta, 'e', 'o', 'i', 'c', 'l')
local epoch, offset, last = found[1], tonumber(found[2] or '0'), found[3] or ''
local total, largest = tonumber(found[4] or '0'), tonumber(found[5] or '0')
if not epoch then
    epoch, offset, last, total, largest = ARGV[3], 0, '', 0, 0
    redis.call('DEL', stream)
end
local time = redis.call('TIME')
local at = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
local answers, appended = {}, false
for n = 3, #KEYS do
    local base = 7 + (n - 3) * 3
    local id, known, data = ARGV[base + 1], ARGV[base + 2], ARGV[base + 3]
    local answer = redis.call('GET', KEYS[n])
    if not answer then
        appended = true
        offset = offset + 1
        total = total + #data
        largest = math.max(largest, #data)
        local number = string.format('%d', offset)
        if size > 0 then
            -- c: how many bytes the topic has published up to and with this one.
            redis.call('XADD', stream, 'MAXLEN', '=', size, number .. '-0', 'i', id, 'p', last, 'a', at,
                'c', string.format('%d', total), 'd', data)
        end
        answer = epoch .. ' ' .. number .. ' ' .. id
        redis.call('SET', KEYS[n], answer, 'PX', known)
        redis.call(publish, channel, 'p ' .. answer .. ' ' .. last .. ' ' .. at .. '\n' .. data)
        last = id
    end
    answers[n - 2] = answer
end
if appended then
    redis.call('HSET', meta, 'e', epoch, 'o', string.format('%d', offset), 'i', last,
        'c', string.format('%d', total), 'l', string.format('%d', largest))
    redis.call('PEXPIRE', meta, math.max(forget, redis.call('PTTL', meta)))
    if size > 0 then
        redis.call('PEXPIRE', stream, ttl)
        -- Only where so many of the largest would be too much is it worth a look.
        if largest * size > most then
            local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
            while first and total - (tonumber(first[2][8]) - #first[2][10]) > most do
                redis.call('XTRIM', stream, 'MINID', string.format('%d', tonumber(first[1]:match('^%d+')) + 1) .. '-0')
                first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
            end
        end
    else
        redis.call('DEL', stream)
    end
end
return answers
