-- KEYS: log, held. ARGV: epoch, committed -> {'ok', identity} | {'fenced', epoch} | {'none'}
local function act()
  local identity, promised, known = load()
  local epoch, committed = tonumber(ARGV[1]), tonumber(ARGV[2])
  if promised > epoch then
    return { 'fenced', text(promised) }
  end
  if epoch > promised or committed > known then
    write_even_if_full()
    redis.call('HSET', log, 'epoch', ARGV[1], 'committed', text(math.max(committed, known)))
  end
  return { 'ok', identity }
end
