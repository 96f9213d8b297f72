-- KEYS: logs -> one integer for each: 1 where it is there
local reply = {}
for i, key in ipairs(KEYS) do
  reply[i] = redis.call('EXISTS', key)
end
return reply
