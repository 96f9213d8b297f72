-- KEYS: part or record. ARGV: epoch, owner ('' on a data store), '1' if only the owner may -> {'ok'} | {'fenced', epoch}
local function act()
  local promised, f = load('owner')
  if promised >= tonumber(ARGV[1]) or (ARGV[3] == '1' and f[3] ~= ARGV[2]) then
    return { 'fenced', string.format('%.0f', promised) }
  end
  -- A full server refuses a script's first write, if that can take memory: it must still be possible to fence on it.
  redis.call('HDEL', facts, 'no such field')
  redis.call('HSET', facts, 'layout', LAYOUT, 'epoch', ARGV[1])
  if ARGV[2] ~= '' then
    redis.call('HSET', facts, 'owner', ARGV[2])
  end
  return { 'ok' }
end
