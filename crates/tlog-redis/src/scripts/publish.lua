-- KEYS: log, held. ARGV: identity, epoch, committed -> {'ok', identity} | {'fenced', epoch} | {'none'} | {'other', identity}
local function act()
  local identity, promised, known = load()
  local epoch, committed = tonumber(ARGV[2]), tonumber(ARGV[3])
  if promised > epoch then
    return { 'fenced', text(promised) }
  end
  refuse_other(identity, ARGV[1])
  if epoch > promised or committed > known then
    write_even_if_full()
    redis.call('HSET', log, 'epoch', ARGV[2], 'committed', text(math.max(committed, known)))
  end
  return { 'ok', identity }
end
