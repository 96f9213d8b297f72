-- KEYS: log, held, shard. ARGV: identity, number, value, digest of what it may replace ('' for nothing), the shard's epoch
-- -> {'stored'} | {'pruned'} | {'there', what is, its digest} | {'uncommitted', committed} | {'none'} | {'other', identity}
local function act()
  local identity, promised, committed, kept_from, run_first, run_last = load()
  refuse_other(identity, ARGV[1])
  local n = tonumber(ARGV[2])
  if n > committed then
    return { 'uncommitted', text(committed) }
  elseif n < kept_from then
    return { 'pruned' }
  end
  local change = hold(n, run_first, run_last)
  if change[1] then
    local there = redis.pcall('GET', KEYS[3])
    if there then
      -- What is not even a string can be replaced by anything.
      local whole = type(there) == 'string'
      local digest = whole and redis.sha1hex(there) or 'none'
      if digest ~= ARGV[4] then
        return { 'there', whole and there or '', digest }
      end
    end
  end
  local late
  if tonumber(ARGV[5]) < promised then
    local f = redis.call('HMGET', log, 'clean_from', 'late')
    -- See start.lua.
    late = n >= number(f[1], 'clean_from') and n > number(f[2], 'late')
  end
  redis.call('SET', KEYS[3], ARGV[3])
  if late then
    redis.call('HSET', log, 'late', ARGV[2])
  end
  put_runs(change[4], change[5])
  if change[2] ~= run_first or change[3] ~= run_last then
    redis.call('HSET', log, 'run_first', text(change[2]), 'run_last', text(change[3]))
  end
  return { 'stored' }
end
