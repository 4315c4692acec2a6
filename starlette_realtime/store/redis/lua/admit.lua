#!lua flags=allow-oom
-- Take one of a number of slots, or take it over.
-- KEYS: slots, fence. ARGV: process, operation, slot, limit, life (ms); then processes that are dead.
-- Answers: an empty list when it was taken, otherwise who holds the slots; 0 when it comes too late.
local slots, node, slot, limit = KEYS[1], ARGV[1], ARGV[3], tonumber(ARGV[4])
if tonumber(ARGV[2]) <= tonumber(redis.call('HGET', KEYS[2], node) or '0') then
    return 0
end
if redis.call('HEXISTS', slots, slot) == 0 and redis.call('HLEN', slots) >= limit then
    local dead, holders, known = {}, {}, {}
    for at = 6, #ARGV do
        dead[ARGV[at]] = true
    end
    local all = redis.call('HGETALL', slots)
    for at = 1, #all, 2 do
        if dead[all[at + 1]] then
            redis.call('HDEL', slots, all[at])
        elseif not known[all[at + 1]] then
            known[all[at + 1]] = true
            holders[#holders + 1] = all[at + 1]
        end
    end
    if redis.call('HLEN', slots) >= limit then
        return #holders > 0 and holders or {node}
    end
end
redis.call('HSET', slots, slot, node)
redis.call('PEXPIRE', slots, ARGV[5])
return {}
