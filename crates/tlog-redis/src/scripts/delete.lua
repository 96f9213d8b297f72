-- KEYS: log, held, deleted. ARGV: identity, epoch
-- -> {'ok', identity} | {'fenced', epoch} | {'none'} | {'other', identity} | {'sweep'}: what is left of a log deleted earlier must go first
--
-- From here on the log is not known. What it held is a list of what `sweep_deleted` takes away, and no new log of the vdisk is made
-- before it is gone.
local function act()
  local identity, promised, _, _, run_first, run_last = load()
  if promised > tonumber(ARGV[2]) then
    return { 'fenced', text(promised) }
  end
  refuse_other(identity, ARGV[1])
  if redis.call('EXISTS', KEYS[3]) == 1 then
    return { 'sweep' }
  end
  local runs = redis.call('ZCARD', held)
  redis.call('DEL', log)
  if runs > 0 then
    redis.call('RENAME', held, KEYS[3])
  end
  if run_last > 0 then
    redis.call('ZADD', KEYS[3], text(run_first), text(run_first) .. '-' .. text(run_last))
  end
  return { 'ok', identity }
end
