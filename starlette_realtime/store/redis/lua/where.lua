#!lua flags=allow-oom
-- Where topics are, and keep them from being forgotten.
-- KEYS: meta, stream of each topic. ARGV: a new epoch, keep (ms).
-- Answers: for each topic {epoch, offset, id, presence sequence}.
local keep, result = tonumber(ARGV[2]), {}
for n = 1, #KEYS, 2 do
    local meta = KEYS[n]
    local found = redis.call('HMGET', meta, 'e', 'o', 'i', 'q')
    if not found[1] then
        found = {ARGV[1], '0', '', found[4]}
        redis.call('DEL', KEYS[n + 1])
        redis.call('HSET', meta, 'e', ARGV[1], 'o', '0', 'i', '', 'c', '0', 'l', '0')
    end
    if redis.call('PTTL', meta) < keep then
        redis.call('PEXPIRE', meta, keep)
    end
    result[#result + 1] = {found[1], found[2], found[3] or '', found[4] or '0'}
end
return result
