-- KEYS: part, blocks. ARGV: epoch, fill, from, to, how many blocks are set, index and content of each, indices of those deleted
-- -> {'ok'} | {'changed'} | {'fenced', epoch}
local function act()
  local promised, f = load('fill', 'applied', 'blocks')
  check(promised)
  if f[3] ~= ARGV[2] then
    return { 'changed' }
  end
  if f[4] ~= ARGV[3] then
    -- It is the second time, as the answer to the first was lost; or it comes late, or the store has lost something.
    return { (f[4] == ARGV[4] and ARGV[3] ~= ARGV[4]) and 'ok' or 'changed' }
  end
  local deleted = 6 + 2 * tonumber(ARGV[5])
  if tostring(redis.call('HLEN', KEYS[2])) ~= f[5] then
    -- Somebody else has changed blocks, or the server has evicted them.
    return { 'changed' }
  end
  -- The first write, which a full server refuses: before the store says that it has them.
  if deleted > 6 then
    redis.call('HSET', KEYS[2], unpack(ARGV, 6, deleted - 1))
  end
  if #ARGV >= deleted then
    redis.call('HDEL', KEYS[2], unpack(ARGV, deleted))
  end
  redis.call('HSET', facts, 'applied', ARGV[4], 'blocks', redis.call('HLEN', KEYS[2]))
  return { 'ok' }
end
