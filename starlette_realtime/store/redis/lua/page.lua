#!lua flags=allow-oom
-- The publications before a position, oldest first.
-- KEYS: meta, stream. ARGV: a new epoch, forget (ms), before epoch ('' for the newest), offset, id, limit, bytes.
-- Answers: whether there are older ones, whether the history has dropped older ones, epoch; then rows as in read.
local meta, stream = KEYS[1], KEYS[2]
local found = redis.call('HMGET', meta, 'e', 'o', 'i')
local epoch, offset = found[1], tonumber(found[2] or '0')
if not epoch then
    epoch, offset = ARGV[1], 0
    redis.call('DEL', stream)
    redis.call('HSET', meta, 'e', epoch, 'o', '0', 'i', '', 'c', '0', 'l', '0')
end
if redis.call('PTTL', meta) < tonumber(ARGV[2]) then
    redis.call('PEXPIRE', meta, ARGV[2])
end
local before, id, limit, bytes = tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local rows = redis.call('XLEN', stream)
local oldest = offset - rows + 1
local last = '+'
if ARGV[3] ~= '' then
    if ARGV[3] == epoch and before == 0 and id == '' then
        return {0, 0, epoch}
    end
    local row
    if ARGV[3] == epoch and before >= oldest and before <= offset then
        row = redis.call('XRANGE', stream, string.format('%d', before) .. '-0', '+', 'COUNT', 1)[1]
    end
    if not row or row[2][2] ~= id then
        return {0, 1, epoch}
    end
    last = string.format('%d', before - 1) .. '-0'
    rows = before - oldest
end
local result, size, taken, edge = {}, 0, {}, last
-- In small steps: a page is bounded in bytes, and the history may hold much more.
while #taken < limit and #taken < rows do
    local step = redis.call('XREVRANGE', stream, edge, '-', 'COUNT', math.min(16, limit - #taken))
    local full = #step == 0
    for _, row in ipairs(step) do
        size = size + #row[2][10]
        if size > bytes and #taken > 0 then
            full = true
            break
        end
        taken[#taken + 1] = row
        edge = '(' .. row[1]
    end
    if full then
        break
    end
end
local more = #taken < rows
result[1] = more and 1 or 0
result[2] = (not more and oldest > 1) and 1 or 0
result[3] = epoch
for n = #taken, 1, -1 do
    local fields = taken[n][2]
    result[#result + 1] = {taken[n][1]:match('^%d+'), fields[2], fields[4], fields[6], fields[10]}
end
return result
