-- KEYS: part, blocks. ARGV: epoch, fill, index, stores, applied ('' while it is filled) -> {'ok'} | {'changed'} | {'fenced', epoch}
local function act()
  check((load()))
  local blocks = redis.call('HLEN', KEYS[2])
  redis.call('HSET', facts, 'blocks', blocks, 'fill', ARGV[2], 'index', ARGV[3], 'stores', ARGV[4], 'applied', ARGV[5])
  return { 'ok' }
end
