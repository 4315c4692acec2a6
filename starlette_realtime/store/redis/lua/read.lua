#!lua flags=allow-oom
-- What a topic published after a position: all of it, or nothing.
-- KEYS: meta, stream. ARGV: a new epoch, forget (ms), since epoch ('' for none), since offset, since id, limit, bytes.
-- Answers: ok or why not, epoch, offset, id; then the rows {offset, id, previous, at, data}.
local meta, stream = KEYS[1], KEYS[2]
local found = redis.call('HMGET', meta, 'e', 'o', 'i', 'c')
local epoch, offset, last, total = found[1], tonumber(found[2] or '0'), found[3] or '', tonumber(found[4] or '0')
if not epoch then
    epoch, offset, last, total = ARGV[1], 0, '', 0
    redis.call('DEL', stream)
    redis.call('HSET', meta, 'e', epoch, 'o', '0', 'i', '', 'c', '0', 'l', '0')
end
if redis.call('PTTL', meta) < tonumber(ARGV[2]) then
    redis.call('PEXPIRE', meta, ARGV[2])
end
local function answer(status)
    return {status, epoch, string.format('%d', offset), last}
end
local since, id, limit, bytes = tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
if ARGV[3] == '' or (ARGV[3] == epoch and since == offset and id == last) then
    return answer('ok')
end
if ARGV[3] ~= epoch then
    return answer('forgotten')
end
local missed = offset - since
if missed <= 0 then
    return answer('rewound')
end
if missed > redis.call('XLEN', stream) then
    return answer('trimmed')
end
local first = redis.call('XRANGE', stream, string.format('%d', since + 1) .. '-0', '+', 'COUNT', 1)[1]
if not first then
    return answer('trimmed')
end
if missed > limit then
    return answer('too_many')
end
if first[2][4] ~= id then
    return answer('rewound')
end
if total - (tonumber(first[2][8]) - #first[2][10]) > bytes then
    return answer('too_many')
end
local result = answer('ok')
for _, row in ipairs(redis.call('XRANGE', stream, string.format('%d', since + 1) .. '-0', '+')) do
    local fields = row[2]
    result[#result + 1] = {row[1]:match('^%d+'), fields[2], fields[4], fields[6], fields[10]}
end
return result
