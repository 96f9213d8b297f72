-- KEYS: log, vdisks. ARGV: vdisk -> {'ok'}
--
-- The end of a delete. It can come late, when there is a new log, which stays listed.
local KINDS = { '', 'set' }

local function act()
  if redis.call('EXISTS', KEYS[1]) == 0 then
    redis.call('SREM', KEYS[2], ARGV[1])
  end
  return { 'ok' }
end
