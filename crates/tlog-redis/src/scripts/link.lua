-- Format 1. KEYS: id, list of last ids. ARGV: shard, how many ids to keep, what its caller knows in front of the list ('' if it has
-- not looked, '-' for nothing)
-- -> {'ok'} | {'moved', what is in front}
--
-- A command can come long after its caller has given up and tried again. By then newer ids are in front, and must stay there.
local KINDS = { 'string', 'list' }

local function act()
  local newest = redis.call('LINDEX', KEYS[2], 0)
  local front = newest or '-'
  if ARGV[3] ~= '' and ARGV[3] ~= front and newest ~= KEYS[1] then
    return { 'moved', front }
  end
  redis.call('SET', KEYS[1], ARGV[1])
  if newest ~= KEYS[1] then
    redis.call('LPUSH', KEYS[2], KEYS[1])
  end
  redis.call('LTRIM', KEYS[2], 0, tonumber(ARGV[2]) - 1)
  return { 'ok' }
end
