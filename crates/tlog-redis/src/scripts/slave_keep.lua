-- KEYS: record, sequence. ARGV: epoch, mark, fill, point, last, applied, restoring, sequence ('' for none, '-' to leave it alone)
-- -> {'ok'} | {'changed'} | {'fenced', epoch}
KINDS[2] = 'string'

local function act()
  check((load()))
  redis.call('GET', KEYS[2])
  redis.call('HSET', facts, 'mark', ARGV[2], 'fill', ARGV[3], 'point', ARGV[4], 'last', ARGV[5], 'applied', ARGV[6], 'restoring', ARGV[7])
  if ARGV[8] == '' then
    redis.call('DEL', KEYS[2])
  elseif ARGV[8] ~= '-' then
    redis.call('SET', KEYS[2], ARGV[8])
  end
  return { 'ok' }
end
