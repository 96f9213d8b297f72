-- KEYS: log, held. ARGV: epoch, first -> {'ok', identity} | {'fenced', epoch} | {'uncommitted', committed} | {'none'}
--
-- From here on nobody is told of what is below; `sweep` takes it away.
local function act()
  local identity, promised, committed, kept_from = load()
  local epoch, first = tonumber(ARGV[1]), tonumber(ARGV[2])
  if promised > epoch then
    return { 'fenced', text(promised) }
  elseif first > committed + 1 then
    return { 'uncommitted', text(committed) }
  end
  if first > kept_from then
    write_even_if_full()
    redis.call('HSET', log, 'first', ARGV[2])
  end
  return { 'ok', identity }
end
