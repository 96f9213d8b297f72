-- KEYS: log, held. ARGV: how many numbers -> {'ok'} | {'more'} | {'none'}
--
-- Deletes shards below `first`, lowest first. The last run, in the hash, is the highest.
local function act()
  local _, _, _, kept_from, run_first, run_last = load()
  local budget = tonumber(ARGV[1])
  local member = redis.call('ZRANGE', held, 0, 0)[1]
  local first, last = run_first, run_last
  if member then
    first, last = run(member)
  end
  if first == 0 or first >= kept_from then
    return { 'ok' }
  end
  local upto = math.min(last, kept_from - 1, first + budget - 1)
  local keys = {}
  for n = first, upto do
    keys[#keys + 1] = shard_key(n)
  end
  redis.call('DEL', unpack(keys))
  if member then
    put_runs({ member }, upto < last and { { upto + 1, last } } or {})
  elseif upto < last then
    redis.call('HSET', log, 'run_first', text(upto + 1))
  else
    redis.call('HSET', log, 'run_first', '0', 'run_last', '0')
  end
  return { 'more' }
end
