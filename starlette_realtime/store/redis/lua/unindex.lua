#!lua flags=allow-oom
-- Note that a process has no members in a topic any more, unless it has been noted anew since.
-- KEYS: the process's topics. ARGV: operation; then the topics.
for at = 2, #ARGV do
    local noted = redis.call('ZSCORE', KEYS[1], ARGV[at])
    if noted and tonumber(noted) <= tonumber(ARGV[1]) then
        redis.call('ZREM', KEYS[1], ARGV[at])
    end
end
return 1
