-- KEYS: record, sequence -> {'record', fields, sequence}
KINDS[2] = 'string'

local function act()
  load()
  local f = redis.call('HMGET', facts, 'epoch', 'owner', 'mark', 'fill', 'point', 'last', 'applied', 'restoring')
  return { 'record', f, redis.call('GET', KEYS[2]) or '' }
end
