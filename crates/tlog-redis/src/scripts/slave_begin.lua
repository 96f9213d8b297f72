-- KEYS: part. ARGV: epoch, fill, index, stores, applied ('' while it is filled) -> {'ok'} | {'changed'} | {'fenced', epoch}
local function act()
  check((load()))
  redis.call('HSET', facts, 'fill', ARGV[2], 'index', ARGV[3], 'stores', ARGV[4], 'applied', ARGV[5])
  return { 'ok' }
end
