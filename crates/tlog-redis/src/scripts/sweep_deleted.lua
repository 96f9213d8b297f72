-- KEYS: log, deleted. ARGV: how many numbers -> {'ok'} | {'more'}
local function act()
  local member = redis.call('ZRANGE', held, 0, 0)[1]
  if not member then
    return { 'ok' }
  end
  local first, last = run(member)
  local upto = math.min(last, first + tonumber(ARGV[1]) - 1)
  local keys = {}
  for n = first, upto do
    keys[#keys + 1] = shard_key(n)
  end
  redis.call('DEL', unpack(keys))
  redis.call('ZREM', held, member)
  if upto < last then
    redis.call('ZADD', held, text(upto + 1), text(upto + 1) .. '-' .. text(last))
  end
  return { 'more' }
end
