-- KEYS: log, held. ARGV: identity, epoch, first
-- -> {'ok', identity} | {'fenced', epoch} | {'uncommitted', committed} | {'none'} | {'other', identity}
--
-- From here on nobody is told of what is below; `sweep` takes it away.
local function act()
  local identity, promised, committed, kept_from = load()
  local epoch, first = tonumber(ARGV[2]), tonumber(ARGV[3])
  if promised > epoch then
    return { 'fenced', text(promised) }
  end
  refuse_other(identity, ARGV[1])
  if first > committed + 1 then
    return { 'uncommitted', text(committed) }
  end
  if first > kept_from then
    write_even_if_full()
    redis.call('HSET', log, 'first', ARGV[3])
  end
  return { 'ok', identity }
end
