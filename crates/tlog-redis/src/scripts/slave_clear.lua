-- KEYS: part, blocks. ARGV: epoch -> {'ok'} | {'changed'} | {'fenced', epoch}
local function act()
  check((load()))
  redis.call('HLEN', KEYS[2])
  redis.call('HDEL', facts, 'fill', 'index', 'stores', 'applied', 'blocks')
  -- Its memory comes back beside what else the server does, however much it is.
  redis.call('UNLINK', KEYS[2])
  return { 'ok' }
end
