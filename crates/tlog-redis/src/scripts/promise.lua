-- KEYS: log, held, deleted. ARGV: epoch, identity of a log to be made ('' to make none)
-- -> {'state', ...} | {'fenced', epoch} | {'none'} | {'sweep'}: what is left of a deleted log must go first
local function act()
  local epoch = tonumber(ARGV[1])
  if redis.call('EXISTS', log) == 1 then
    local _, promised = load()
    if epoch <= promised then
      return { 'fenced', text(promised) }
    end
    redis.call('ZCARD', held)
    write_even_if_full()
    redis.call('HSET', log, 'epoch', ARGV[1])
    return state()
  end
  if epoch <= 0 then
    return { 'fenced', '0' }
  elseif redis.call('EXISTS', KEYS[3]) == 1 then
    return { 'sweep' }
  elseif ARGV[2] == '' then
    return { 'none' }
  end
  -- The hash first: it is refused where there is no memory. Runs without a log are what an eviction left.
  redis.call('HSET', log, 'layout', '1', 'identity', ARGV[2], 'epoch', ARGV[1], 'committed', '0', 'first', '1',
    'run_first', '0', 'run_last', '0', 'starts', '', 'members', '0 0 0 0',
    'clean_epoch', '0', 'clean_from', '1', 'late', '0')
  redis.call('DEL', held)
  return state()
end
