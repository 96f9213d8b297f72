-- KEYS: part, blocks -> {'part', fields, how many blocks}
local function act()
  load()
  return { 'part', redis.call('HMGET', facts, 'epoch', 'fill', 'index', 'stores', 'applied', 'blocks'), redis.call('HLEN', KEYS[2]) }
end
