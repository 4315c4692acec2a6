#!lua flags=allow-oom
-- What came of an operation whose answer was lost; if it was not made, it never will be.
-- KEYS: the last operation. ARGV: operation, its life (ms). Answers: the JSON of its entries.
local done = redis.call('GET', KEYS[1])
if done then
    local last, answer = string.match(done, '^(%d+) (.*)$')
    if tonumber(last) >= tonumber(ARGV[1]) then
        return last == ARGV[1] and answer or '[]'
    end
end
redis.call('SET', KEYS[1], ARGV[1] .. ' []', 'PX', ARGV[2])
return '[]'
