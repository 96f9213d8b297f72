-- KEYS: log, held, deleted, vdisks. ARGV: identity, epoch, identity of a log to be made ('' to make none), vdisk
-- -> {'state', ...} | {'fenced', epoch} | {'none'} | {'other', identity}
--    | {'sweep'}: what is left of a deleted log must go first
local function act()
  local epoch = tonumber(ARGV[2])
  if redis.call('EXISTS', log) == 1 then
    local identity, promised = load()
    if epoch <= promised then
      return { 'fenced', text(promised) }
    end
    refuse_other(identity, ARGV[1])
    redis.call('ZCARD', held)
    write_even_if_full()
    redis.call('HSET', log, 'epoch', ARGV[2])
    return state()
  end
  if epoch <= 0 then
    return { 'fenced', '0' }
  elseif redis.call('EXISTS', KEYS[3]) == 1 then
    return { 'sweep' }
  elseif ARGV[3] == '' then
    return { 'none' }
  end
  -- The hash first: it is refused where there is no memory. Runs without a log are what an eviction left.
  redis.call('HSET', log, 'layout', LAYOUT, 'identity', ARGV[3], 'epoch', ARGV[2], 'committed', '0', 'first', '1',
    'run_first', '0', 'run_last', '0', 'starts', '', 'members', '0 0 0 0',
    'clean_epoch', '0', 'clean_from', '1', 'late', '0')
  redis.call('DEL', held)
  -- Listed already, but for a delete that took it out again since.
  redis.pcall('SADD', KEYS[4], ARGV[4])
  return state()
end
