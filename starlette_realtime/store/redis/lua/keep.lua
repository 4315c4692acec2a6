#!lua flags=allow-oom
-- Have a process hold exactly these slots of a key. What another process has taken over stays with that one.
-- What it asked for before this, and comes later, is not done any more.
-- KEYS: slots, fence. ARGV: process, operation, ids that it had before, life (ms), the operation's life (ms),
--       how many slots; then these, and those that it is about to take.
local slots, node, former, count = KEYS[1], ARGV[1], ARGV[3], tonumber(ARGV[6])
redis.call('HSET', KEYS[2], node, ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
local wanted = {}
for at = 7, #ARGV do
    wanted[ARGV[at]] = true
    if at - 6 <= count then
        local holder = redis.call('HGET', slots, ARGV[at])
        if not holder or holder ~= node and string.find(former, holder, 1, true) then
            redis.call('HSET', slots, ARGV[at], node)
        end
    end
end
local all = redis.call('HGETALL', slots)
for at = 1, #all, 2 do
    local holder = all[at + 1]
    if not wanted[all[at]] and (holder == node or string.find(former, holder, 1, true)) then
        redis.call('HDEL', slots, all[at])
    end
end
redis.call('PEXPIRE', slots, ARGV[4])
return 1
